"""Writing a clip store: one clip at a time as it streams by, then the tables over all clips."""

import hashlib
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.spatial.transform import Rotation

from data_prep.encoding import encode
from data_prep.shards import SHARD_MB, pack
from data_prep.source import NAN, Box, Frame, MapLayer, RawClip
from drivesim.data.schema import BOXES, FRAMES, INDEX, MAPS, SCHEMA, TABLES
from drivesim.data.tables import completed
from drivesim.files import atomic_path
from drivesim.tags import tags

# A row group ends at the first clip past as many. Reading one of 8192 frames takes a millisecond or two, half of which
# a smaller one would take as well; pictures of maps are large. A file's footer tells of each group and is read first:
# that of 4096 groups takes 80 ms.
GROUP_ROWS, MOST_GROUPS, GROUP_BYTES = 8192, 4096, 1 << 26
ORIGIN = b"origin"
ORDER = {
    "index": [("clip", "ascending")],
    "frames": [("clip", "ascending"), ("frame", "ascending")],
    "boxes": [("clip", "ascending"), ("frame", "ascending"), ("track", "ascending")],
    "maps": [("clip", "ascending"), ("layer", "ascending")],
}


def write_clip(root: Path, clip: RawClip, split: str, origin: str = "", lossless: bool = False) -> dict[str, Any]:
    """Stream a clip into the store; returns its INDEX row. A clip that is there already is not touched.

    The index part is written last: where it exists, the video and the other parts are whole.
    origin    what the clip is made from; one made from something else does not count as being there
    lossless  keep every pixel as it is, in files four to nine times as large
    raises    UserError if the disk is full or a frame's size does not fit; Refused if there is no frame; whatever
              `clip.frames` raises
    """
    finished = root / "parts" / f"{clip.name}.index.parquet"
    if finished.exists():
        if written_from(finished) == origin:
            return pq.read_table(finished).to_pylist()[0]
        finished.unlink()
    rate = frame_rate(clip.fps)
    rows = ClipRows(clip.name, rate)
    video = root / "clips" / f"{clip.name}.mp4"
    with atomic_path(video) as temporary:
        height, width = encode(temporary, rows.collect(clip.frames), rate, clip.name, lossless, tags(clip.provenance))
    index = rows.index(clip, split) | {"height": height, "width": width, "bytes": video.stat().st_size}
    with open(video, "rb") as file:
        index["sha256"] = sha256(file)
    maps = [_map_columns(clip.name, layer) for layer in clip.maps]
    _write_table(root / "parts" / f"{clip.name}.maps.parquet", pa.Table.from_pylist(maps, MAPS))
    _write_table(root / "parts" / f"{clip.name}.boxes.parquet", pa.Table.from_pylist(rows.boxes, BOXES))
    _write_table(root / "parts" / f"{clip.name}.frames.parquet", pa.Table.from_pylist(rows.frames, FRAMES))
    _write_table(finished, pa.Table.from_pylist([index], INDEX.with_metadata({ORIGIN: origin})))
    return index


def written_from(index_part: Path) -> str:
    """The `origin` that the clip of an index part was written with."""
    return (pq.read_schema(index_part).metadata or {}).get(ORIGIN, b"").decode()


def merge(root: Path, info: dict[str, Any], shard_mb: float = SHARD_MB) -> None:
    """Gather the parts of all clips into the tables, pack the clips into shards of about `shard_mb` megabytes, then
    write store.json, which says the store is whole.

    The same parts give the same bytes, in whatever order the clips were made.
    """
    clips = sorted(part.name.removesuffix(".index.parquet") for part in (root / "parts").glob("*.index.parquet"))
    index = pa.concat_tables([INDEX.empty_table(), *_groups(_part(root, clip, "index") for clip in clips)])
    for count, at in (("frames", "frames_at"), ("boxes", "boxes_at")):
        index = _with_starts(index, count, at)
    index = pack(root, index, shard_mb)
    for name, rows in {"frames": _sum(index, "frames"), "boxes": _sum(index, "boxes"), "maps": 0}.items():
        groups = _groups((_part(root, clip, name) for clip in clips), group_rows(rows))
        _write_groups(root / f"{name}.parquet", TABLES[name], groups)
    _write_table(root / "index.parquet", index)
    with atomic_path(root / "store.json") as temporary:
        temporary.write_text(json.dumps({"schema": SCHEMA} | info, indent=2, sort_keys=True) + "\n")


def _with_starts(index: pa.Table, count: str, at: str) -> pa.Table:
    """Note where the rows of each clip begin in a table that is sorted as the index is."""
    counts = index[count].to_numpy().astype(np.int64)
    return index.set_column(index.column_names.index(at), INDEX.field(at), pa.array(np.cumsum(counts) - counts))


def _part(root: Path, clip: str, name: str) -> pa.Table:
    table = pq.ParquetFile(root / "parts" / f"{clip}.{name}.parquet").read()
    schema = TABLES[name]
    return completed(table, schema.names).select(schema.names).replace_schema_metadata(None).sort_by(ORDER[name])


def _sum(index: pa.Table, column: str) -> int:
    return int(index[column].to_numpy().sum(dtype=np.int64))


def _groups(parts: Iterator[pa.Table], most_rows: int = GROUP_ROWS) -> Iterator[pa.Table]:
    """Tables joined into row groups, one in memory at a time; the rows of a part stay in one group."""
    held: list[pa.Table] = []
    rows = size = 0
    for part in parts:
        if part.num_rows:
            held.append(part)
            rows, size = rows + part.num_rows, size + part.nbytes
        if rows >= most_rows or size >= GROUP_BYTES:
            yield pa.concat_tables(held).combine_chunks()
            held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _write_groups(path: Path, schema: pa.Schema, groups: Iterator[pa.Table]) -> None:
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)


def frame_rate(fps: float) -> Fraction:
    """The exact rate that a float stands for: 29.97 -> 30000/1001 written out, 1.875 -> 15/8."""
    return Fraction(fps).limit_denominator(1001)


class ClipRows:
    """The table rows of a clip, gathered while its pictures pass by; only numbers are kept."""

    def __init__(self, clip: str, rate: Fraction) -> None:
        self.clip, self.rate = clip, rate
        self.frames: list[dict[str, Any]] = []
        self.boxes: list[dict[str, Any]] = []

    def collect(self, frames: Iterator[Frame]) -> Iterator[np.ndarray]:
        """Note each frame's ground truth and pass its picture on."""
        for number, frame in enumerate(frames):
            self.frames.append({"clip": self.clip, "frame": number, "time_s": float(number / self.rate)})
            self.frames[-1] |= _frame_columns(frame)
            self.boxes += [{"clip": self.clip, "frame": number} | _box_columns(box) for box in frame.boxes]
            yield frame.image

    def index(self, clip: RawClip, split: str) -> dict[str, Any]:
        """The INDEX row, but for what the video file tells."""
        return {
            "clip": clip.name,
            "route": clip.route,
            "split": split,
            "frames": len(self.frames),
            "fps": float(self.rate),
            "start_s": clip.start_s,
            "camera": clip.camera,
            "source": clip.source,
            "licence": clip.licence,
            "night": self._mean("night"),
            "weather": clip.weather,
            "caption": clip.caption,
            "synthetic": bool(clip.provenance),
            "provenance": json.dumps(dict(clip.provenance), sort_keys=True) if clip.provenance else "",
            "label_recall": self._mean_of_known("label_recall"),
            "label_ok": all(row["label_ok"] for row in self.frames),
            "crowdedness": self._mean("vehicles"),
            "speed_mps": self._mean("speed_mps"),
            "has_boxes": clip.has_boxes,
            "boxes": len(self.boxes),
        }

    def _mean(self, column: str) -> float:
        return float(np.mean([row[column] for row in self.frames]))

    def _mean_of_known(self, column: str) -> float:
        known = [row[column] for row in self.frames if not np.isnan(row[column])]
        return float(np.mean(known)) if known else NAN


def _frame_columns(frame: Frame) -> dict[str, Any]:
    columns = {"speed_mps": frame.speed_mps, "night": frame.night, "vehicles": frame.vehicles}
    columns["steering_rad"] = frame.steering_rad
    columns |= dict.fromkeys(("x_m", "y_m", "z_m", "qw", "qx", "qy", "qz", "fx", "fy", "cx", "cy"), NAN)
    if frame.pose is not None:
        qx, qy, qz, qw = Rotation.from_matrix(frame.pose[:3, :3]).as_quat(canonical=True)
        x, y, z = frame.pose[:3, 3]
        columns |= {"x_m": x, "y_m": y, "z_m": z, "qw": qw, "qx": qx, "qy": qy, "qz": qz}
    if frame.intrinsics is not None:
        matrix = frame.intrinsics
        columns |= {"fx": matrix[0, 0], "fy": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2]}
    columns["label_recall"] = frame.label_recall
    return {name: float(value) for name, value in columns.items()} | {"label_ok": frame.label_ok}


def _box_columns(box: Box) -> dict[str, Any]:
    columns: dict[str, Any] = {"track": box.track, "class": box.name, "visibility": box.visibility, "yaw": box.yaw}
    columns |= zip(("x1", "y1", "x2", "y2"), map(float, box.xyxy), strict=True)
    columns |= zip(("x_m", "y_m", "z_m"), map(float, box.centre_m), strict=True)
    columns |= zip(("length_m", "width_m", "height_m"), map(float, box.size_m), strict=True)
    return columns


def _map_columns(clip: str, layer: MapLayer) -> dict[str, Any]:
    _, png = cv2.imencode(".png", layer.mask.astype(np.uint8) * 255)
    place = {"x_m": layer.x_m, "y_m": layer.y_m, "metres_per_pixel": layer.metres_per_pixel}
    return {"clip": clip, "layer": layer.name, **place, "png": png.tobytes()}


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def group_rows(rows: int) -> int:
    """How many rows of a table of `rows` make a group, the least that is read for a clip."""
    return max(GROUP_ROWS, -(-rows // MOST_GROUPS))


def sha256(file: BinaryIO) -> str:
    """The hash of a file's bytes as hexadecimal digits, whatever its size."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
