"""Clips in tar shards: packed at the end of a preparation, unpacked where another preparation must go on.

Shards are plain POSIX tar files with <clip>.mp4 and <clip>.json (the clip's index row) one after the other, which is
what the `webdataset` library calls a sample. What is in which shard follows from the sorted clips and their sizes.
In the names within a shard a clip's dots are written %2E: what follows the first dot is the kind of file.
"""

import json
import math
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from tqdm import tqdm

from drivesim.data.clip_file import ClipFile
from drivesim.data.schema import INDEX, SPLITS
from drivesim.files import atomic_path

SHARD_MB = 512.0  # large enough to be fetched at full speed, small enough for a hundred workers to share out
PLACED = ("shard", "shard_at", "frames_at", "boxes_at")  # known only when all clips are: no part of a clip's own row


def pack(root: Path, index: pa.Table, shard_mb: float = SHARD_MB) -> pa.Table:
    """Bring every clip into the shard where it belongs; returns the index, sorted as it was, that says where.

    Stopped anywhere and called again it ends with the same bytes: a shard gets its name when it is whole, and only
    then its clips stop being files of their own. Takes room for one shard more than the clips.
    index   the rows of all clips, sorted by clip
    raises  UserError if the disk is full
    """
    shards = dict(plan(index, shard_mb * 1e6))
    sizes = dict(zip(index["clip"].to_pylist(), index["bytes"].to_pylist(), strict=True))
    names = index["clip"].to_pylist()
    for path in sorted((root / "shards").glob("*.tar")):
        if not _settled(path, [names[row] for row in shards.get(f"shards/{path.name}", [])], sizes):
            _unpack(path, sizes)
    where: dict[str, tuple[str, int]] = {}
    for shard, rows in tqdm(shards.items(), "pack", unit="shard"):
        if not (root / shard).exists():
            _write(root, shard, index.take(rows).to_pylist())
        where |= {file.stem: (shard, file.offset) for file in members(root / shard)}
    if (root / "clips").exists() and not any((root / "clips").iterdir()):
        (root / "clips").rmdir()
    columns = zip(*(where[name] for name in names), strict=True) if names else ((), ())
    for column, values in zip(("shard", "shard_at"), columns, strict=True):
        at = index.column_names.index(column)
        index = index.set_column(at, INDEX.field(column), pa.array(values, INDEX.field(column).type))
    return index


def plan(index: pa.Table, most_bytes: float) -> Iterator[tuple[str, list[int]]]:
    """Each shard with the rows of its clips: in the order of the index, filled up to `most_bytes` of video."""
    splits, sizes = index["split"].to_pylist(), index["bytes"].to_pylist()
    for split in SPLITS:
        number, filled = 0, 0
        rows: list[int] = []
        for row in (row for row, found in enumerate(splits) if found == split):
            if rows and filled + sizes[row] > most_bytes:
                yield f"shards/{split}-{number:05d}.tar", rows
                number, filled, rows = number + 1, 0, []
            filled += sizes[row]
            rows.append(row)
        if rows:
            yield f"shards/{split}-{number:05d}.tar", rows


def members(path: Path) -> Iterator[ClipFile]:
    """The videos that a shard holds whole; of one that is cut off or damaged, those before the damage."""
    size = os.stat(path).st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                clip, dot, kind = member.name.partition(".")
                if kind == "mp4" and member.offset_data + member.size <= size:
                    yield ClipFile(clip.replace("%2E", ".") + dot + kind, path, member.offset_data, member.size)
    except tarfile.TarError:
        return


def forget_lost(root: Path) -> None:
    """Let what was lost be made again: clips whose video is neither a file nor in a shard, and units that had one."""
    parts, suffix = root / "parts", ".index.parquet"
    there = {path.stem for path in (root / "clips").glob("*.mp4")}
    there |= {file.stem for path in (root / "shards").glob("*.tar") for file in members(path)}
    known = {path.name.removesuffix(suffix) for path in parts.glob(f"*{suffix}")}
    for clip in known - there:
        (parts / f"{clip}{suffix}").unlink()
    for record in parts.glob("*.unit.json"):
        if not known & there >= set(json.loads(record.read_text())["clips"]):
            record.unlink()


def _settled(path: Path, clips: Sequence[str], sizes: Mapping[str, int]) -> bool:
    """Whether a shard holds these very clips, and none of them was made anew since."""
    found = [(file.stem, file.bytes) for file in members(path)]
    anew = any((path.parents[1] / "clips" / f"{clip}.mp4").exists() for clip in clips)
    return found == [(clip, sizes[clip]) for clip in clips] and not anew


def _unpack(path: Path, sizes: Mapping[str, int]) -> None:
    """Make the clips of a shard files of their own again, but for those that are, and remove the shard."""
    for file in members(path):
        loose = path.parents[1] / "clips" / f"{file.stem}.mp4"
        if sizes.get(file.stem) == file.bytes and not loose.exists():
            with atomic_path(loose) as temporary, file.open() as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target)
    path.unlink()


def _write(root: Path, shard: str, rows: list[dict[str, Any]]) -> None:
    """Write a shard from the files of its clips, then remove those."""
    clips = [root / "clips" / f"{row['clip']}.mp4" for row in rows]
    with atomic_path(root / shard) as temporary, open(temporary, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for clip, row in zip(clips, rows, strict=True):
                with open(clip, "rb") as video:
                    add_sample(tar, row, video)
        file.flush()
        os.fsync(file.fileno())  # soon the only copy: not even a power cut may leave it empty
    for clip in clips:
        clip.unlink()


def add_sample(tar: tarfile.TarFile, row: dict[str, Any], video: BinaryIO) -> None:
    """Append a clip to an open shard: its video, and its row of the index."""
    tar.addfile(_entry(row["clip"], "mp4", row["bytes"]), video)
    text = _json(row)
    tar.addfile(_entry(row["clip"], "json", len(text)), BytesIO(text))


def _entry(clip: str, kind: str, size: int) -> tarfile.TarInfo:
    """The head of a file in a tar: time, owner and group stay 0, so that equal clips give equal bytes."""
    entry = tarfile.TarInfo(f"{clip.replace('.', '%2E')}.{kind}")
    entry.size = size
    return entry


def _json(row: dict[str, Any]) -> bytes:
    """A clip's own index row. JSON has no NaN: what is unknown is null."""
    own = {name: value for name, value in row.items() if name not in PLACED}
    known = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in own.items()}
    return (json.dumps(known, ensure_ascii=False) + "\n").encode()
