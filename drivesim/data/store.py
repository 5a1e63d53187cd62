"""Reading a clip store, whose files and tables drivesim/data/schema.py and docs/clip_store.md describe."""

import copy
import difflib
import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy.spatial.transform import Rotation

from drivesim.clip import CLASSES, MIN_VISIBILITY, NO_BOX, NO_WEATHER, SOLID, Camera, Layout
from drivesim.data.clip_file import ClipFile
from drivesim.data.remote import Place, exists, join, place, read_text
from drivesim.data.schema import BOXES, FRAMES, INDEX, SCHEMA, SPLITS, TABLES, WEATHERS
from drivesim.data.tables import ClipRows, read_table
from drivesim.data.where import select
from drivesim.errors import UserError

POSE = ["x_m", "y_m", "z_m", "qx", "qy", "qz", "qw"]  # columns of FRAMES


@dataclass
class ClipStore:
    """Read side of a store, in a local folder or under a URL that fsspec knows (https://, s3://, memory:// ...).

    Memory holds the index; the rows of a clip in the other tables are read when asked for.

    selection  the condition that the clips of the index were selected by; empty for all of the store's
    raises     UserError if `root` holds no finished store, or one of another schema
    """

    root: Place
    selection: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.root = place(self.root)
        marker = join(self.root, "store.json")
        if isinstance(marker, Path) and not marker.exists():
            started = marker.with_name("parts").exists()
            state = (
                "a preparation that did not finish; run the same `drivesim prepare` again"
                if started
                else f"no clip store; make one with `drivesim prepare out={self.root}`"
            )
            raise UserError(f"{self.root} holds {state}")
        try:
            self.info = json.loads(read_text(marker))
        except json.JSONDecodeError as error:
            raise UserError(f"{marker} is not readable ({error}); prepare the store again") from error
        if self.info.get("schema") != SCHEMA:
            raise UserError(
                f"{self.root} has schema {self.info.get('schema')}, this version reads {SCHEMA}; "
                "prepare the store again"
            )

    @cached_property
    def cache(self) -> Path:
        """Folder for what is made from the clips: beside a local store; for a remote one in the user's cache folder,
        named after the contents of the clips, so that a store that was made anew finds nothing stale."""
        if isinstance(self.root, Path):
            return self.root / "cache"
        contents = hashlib.sha256("".join(self.hashes.values()).encode()).hexdigest()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drivesim" / contents[:16]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of every clip of the store, selected or not, the sha256 of its video."""
        table = read_table(self.root, "index", ["clip", "sha256"])
        return dict(zip(table["clip"].to_pylist(), table["sha256"].to_pylist(), strict=True))

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row a clip, indexed by clip name; texts are categories. Without the hashes of the files and without
        what generated clips come from: with the hashes and with plain texts a million clips would take 250 MB, not 90.

        raises  UserError for names that would lead out of a folder
        """
        columns = [field for field in INDEX if field.name not in ("sha256", "provenance")]
        texts = [field.name for field in columns if pa.types.is_string(field.type) and field.name != "clip"]
        table = read_table(self.root, "index", [field.name for field in columns], texts)
        bad = table["clip"].filter(pc.match_substring_regex(table["clip"], r"[/\\]|^\."))
        if len(bad):
            raise UserError(f"{self.root}: index.parquet names a clip {bad[0].as_py()!r}, which is no file name")
        return table.to_pandas(ignore_metadata=True).set_index("clip")

    @cached_property
    def _frames(self) -> ClipRows:
        return ClipRows(self.root, "frames")

    @cached_property
    def _boxes(self) -> ClipRows:
        return ClipRows(self.root, "boxes")

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows of one of TABLES. raises UserError if the file is missing or damaged, or lacks columns"""
        return read_table(self.root, name, columns).to_pandas(ignore_metadata=True)

    def query(self, where: str) -> pd.DataFrame:
        """The rows of the index for which a condition holds, with a column `seconds`. raises UserError, see where.py"""
        return select(self.index.assign(seconds=self.index["frames"] / self.index["fps"]), where)

    def select(self, where: str) -> "ClipStore":
        """This store as if it held no clips but those for which `where` holds; an empty condition leaves all.

        raises  UserError if there are none, or for a condition that cannot be read
        """
        if not where.strip():
            return self
        chosen = copy.copy(self)
        chosen.index = self.query(where).drop(columns="seconds")
        chosen.selection = f"({self.selection}) and ({where})" if self.selection else where
        if chosen.index.empty:
            raise UserError(f"{self.root}: where={where} holds for none of {len(self.index)} clips; ask for less")
        return chosen

    def summary(self) -> dict[str, Any]:
        """What a record of training says of the clips that it may learn from, `licences` by the number of clips."""
        index = self.index[self.index["split"] == "train"]
        licences = index["licence"].astype(str).replace("", "unknown").value_counts()
        return {
            "name": str(self.root).rstrip("/").rpartition("/")[2],
            "source": self.info.get("source", "unknown"),
            "clips": len(index),
            "hours": round(float((index["frames"] / index["fps"]).sum()) / 3600, 4),
            "licences": {name: int(count) for name, count in sorted(licences.items())},
        }

    def clips(self, split: str | None = None) -> list[str]:
        """Names of the clips of a split, or of all."""
        rows = self.index if split is None else self.index[self.index["split"] == split]
        return list(rows.index)

    def row(self, clip: str) -> pd.Series:
        """The clip's row of the index. raises UserError, with names that are alike, if there is no such clip"""
        # By bisection: the hash table that .loc builds takes a second and 100 MB for a million names.
        at = bisect_left(self.index.index, clip)
        if at == len(self.index) or self.index.index[at] != clip:
            close = difflib.get_close_matches(clip, self.clips(), n=3) or self.clips()[:3]
            raise UserError(f"{self.root} has no clip {clip!r}; try {', '.join(close)}")
        return self.index.iloc[at]

    def video(self, clip: str) -> ClipFile:
        """Where the pictures of a clip are, for `drivesim.data.video`.

        raises  UserError if there is no such clip, or the index places it outside the store
        """
        return clip_file(self.root, clip, self.row(clip))

    def frames(self, clip: str) -> pd.DataFrame:
        """Rows of the FRAMES table of one clip, one a frame, in order."""
        return self._frames_of(clip, self.row(clip)).to_pandas(ignore_metadata=True)

    def boxes(self, clip: str) -> pd.DataFrame:
        """Rows of the BOXES table of one clip."""
        return self._boxes_of(clip, self.row(clip)).to_pandas(ignore_metadata=True)

    def _frames_of(self, clip: str, row: pd.Series) -> pa.Table:
        return self._frames.of(clip, int(row.frames_at), int(row.frames))

    def _boxes_of(self, clip: str, row: pd.Series) -> pa.Table:
        return self._boxes.of(clip, int(row.boxes_at), int(row.boxes))

    def holds_class(self, name: str) -> np.ndarray:
        """Which clips of the index have a box of a class: bool [clips]."""
        begins, counts = self.index["boxes_at"].to_numpy(), self.index["boxes"].to_numpy()
        found, at = np.zeros(len(begins), bool), 0
        for classes in self._boxes.scan("class"):
            rows = at + np.flatnonzero(pc.equal(classes, name).to_numpy())
            owners = np.searchsorted(begins, rows, side="right") - 1
            owners, rows = owners[owners >= 0], rows[owners >= 0]
            found[owners[rows < begins[owners] + counts[owners]]] = True  # others belong to clips not selected
            at += len(classes)
        return found

    def camera(self, clip: str, frame: int = 0) -> Camera:
        """The camera of a frame, in pixels of the stored size."""
        row = self.frames(clip).iloc[frame]
        matrix = np.array([[row.fx, 0, row.cx], [0, row.fy, row.cy], [0, 0, 1]])
        size = self.row(clip)
        return Camera(matrix, int(size.height), int(size.width))

    def layout(self, clip: str, slots: int = 24, min_visibility: float = MIN_VISIBILITY) -> Layout:
        """The whole clip's layout, [T] frames of `slots` boxes; the largest are kept.

        Boxes seen less than `min_visibility` are left out: asking for a hidden car steers nothing.
        """
        frames, boxes = self.tables_of(clip)
        row = self.row(clip)
        layout = frame_labels(frames, row.weather, float(row.fps)).pad(slots)
        _fill_boxes(layout, boxes, min_visibility)
        return replace(layout, known=torch.full_like(layout.known, bool(row.has_boxes)))

    def tables_of(self, clip: str) -> tuple[pa.Table, pa.Table]:
        """Rows of the FRAMES and of the BOXES table of one clip."""
        row = self.row(clip)
        return self._frames_of(clip, row), self._boxes_of(clip, row)


def frame_labels(frames: pa.Table, weather: str, fps: float) -> Layout:
    """What rows of the FRAMES table say of whole frames: a layout [T] of one empty slot, whose boxes are not known."""
    layout = Layout.unknown(len(frames))
    layout.night[:] = torch.tensor(frames["night"].to_numpy())
    layout.crowdedness[:] = torch.tensor(frames["vehicles"].to_numpy())
    layout.weather[:] = WEATHERS.index(weather) if weather in WEATHERS else NO_WEATHER
    layout.speed[:] = torch.tensor(frames["speed_mps"].to_numpy())
    layout.steering[:] = torch.tensor(frames["steering_rad"].to_numpy())
    travel, heading = ego_motion(frames.select(POSE).to_pandas(ignore_metadata=True, use_threads=False))
    layout.travel[:], layout.heading[:] = torch.from_numpy(travel), torch.from_numpy(heading)
    return layout.moving(torch.arange(len(frames)) / fps)


def clip_file(root: Place, clip: str, row: Any) -> ClipFile:
    """Where a row of the index says that a clip lies. raises UserError if that is outside the store"""
    parts = PurePosixPath(row.shard)
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{root}: index.parquet places clip {clip} in {row.shard}, outside the store; prepare the store again"
        )
    return ClipFile(f"{clip}.mp4", join(root, row.shard), int(row.shard_at), int(row.bytes))


def is_store(root: Place | str) -> bool:
    """Whether a finished store is there, and in reach."""
    try:
        return exists(join(place(root), "store.json"))
    except UserError:
        return False


def _fill_boxes(layout: Layout, table: pa.Table, min_visibility: float) -> None:
    """Put rows of the BOXES table into the slots of an empty layout.

    In numpy: of a store that does not fit into memory every window pays for this, and pandas takes ten times as long.
    """
    table = table.filter(pa.array(~(table["visibility"].to_numpy() < min_visibility)))
    frame, track = (table[name].to_numpy().astype(np.int64) for name in ("frame", "track"))
    corners = np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], 1).astype(np.float32)
    classes = pc.index_in(table["class"], pa.array(CLASSES))
    if classes.null_count:
        found = table["class"].filter(classes.is_null())[0]
        raise UserError(f"a box of class {found}, expected one of {', '.join(CLASSES)}; see `drivesim data verify`")
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    order = np.lexsort((track, -area, frame))
    slot = np.arange(len(order)) - np.searchsorted(frame[order], frame[order])  # 0, 1, 2 ... in each frame
    solids = np.stack([table[name].to_numpy() for name in SOLID], 1).astype(np.float32)
    order, slot = (part[slot < layout.classes.shape[-1]] for part in (order, slot))
    at = torch.from_numpy(frame[order]), torch.from_numpy(slot)
    layout.boxes[at] = torch.from_numpy(corners[order])
    layout.classes[at] = torch.from_numpy(classes.to_numpy().astype(np.int64)[order])
    layout.tracks[at] = torch.from_numpy(track[order])
    layout.solids[at] = torch.from_numpy(solids[order])


def ego_motion(frames: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """How far the camera of a clip has driven, metres, and turned to the right, radians, since its first
    frame: float32 [T] each, from the poses of the FRAMES table; NaN from the first unknown pose on."""
    place, turn = np.split(frames[POSE].to_numpy(float), [3], axis=1)
    unknown = ~np.isfinite(np.hstack([place, turn])).all(1)
    camera = Rotation.from_quat(np.where(unknown[:, None], [0.0, 0, 0, 1], turn)).as_matrix()  # camera to world
    step = np.einsum("tij,ti->tj", camera[:-1], np.diff(place, axis=0))  # in the camera before: x right, z forward
    relative = camera[:-1].transpose(0, 2, 1) @ camera[1:]
    yaw = np.arctan2(relative[:, 0, 2], relative[:, 2, 2])
    hidden = np.where(np.maximum.accumulate(unknown), np.nan, 0.0)
    travel, heading = (np.concatenate([[0.0], np.cumsum(part)]) + hidden for part in (step[:, 2], yaw))
    return travel.astype(np.float32), heading.astype(np.float32)


__all__ = ["BOXES", "FRAMES", "INDEX", "NO_BOX", "SCHEMA", "SPLITS", "TABLES", "ClipStore", "ego_motion"]
