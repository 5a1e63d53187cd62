"""`drivesim data verify`: whether the files and tables of a clip store are whole and agree with each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from data_prep.shards import members
from data_prep.writer import sha256
from drivesim.clip import CLASSES
from drivesim.config import option, parse
from drivesim.data.clip_file import SEE_VERIFY, ClipFile
from drivesim.data.remote import exists, join
from drivesim.data.schema import SPLITS, TABLES
from drivesim.data.store import ClipStore, clip_file
from drivesim.data.video import count_frames
from drivesim.errors import UserError

CORNERS = ["x1", "y1", "x2", "y2"]
SHOWN_DIGITS = 12  # of a hash
REMEDY = (
    "delete store.json, and parts/CLIP.* of each clip named; then the same `drivesim prepare` makes those clips, the "
    "shards and the tables again, and `overwrite=true` all of it"
)


@dataclass
class VerifyConfig:
    """Check every file and row of a clip store. Names what is damaged, a line each, and then exits with code 2.

    Files: sha256, number of frames, none missing, none too many. Tables: readable, every frame of every clip once, no
    frame or box of an unknown clip or frame, corners within [0, 1], known classes and splits, a route in one split.
    """

    store: str = option(help="folder of the store, made by `drivesim prepare`")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv`, or if anything is damaged"""
    config = parse(VerifyConfig, argv, "drivesim data verify")
    store = ClipStore(config.store)
    count = 0
    for line in damage(store):
        tqdm.write(line)  # to stdout, past the progress bar
        count += 1
    if count:
        raise UserError(f"{store.root} is damaged in {count} places, named above; {REMEDY}")
    print(f"{store.root} is whole: {len(store.index)} clips, {store.index['frames'].sum()} frames")


def damage(store: ClipStore) -> Iterator[str]:
    """One line for each thing that is wrong, the quick checks first; nothing for a whole store."""
    tables = {}
    for name in TABLES:
        try:
            tables[name] = store.table(name)
        except UserError as error:
            yield str(error)
    if "index" not in tables:
        return
    index = tables["index"]
    yield from index_damage(index)
    index = index.drop_duplicates("clip")
    if "frames" in tables:
        yield from frames_damage(index, tables["frames"])
        yield from place_damage(index, "frames_at", tables["frames"])
    if "boxes" in tables:
        yield from boxes_damage(index, tables["boxes"])
        yield from place_damage(index, "boxes_at", tables["boxes"])
    yield from file_damage(store, index)


def index_damage(index: pd.DataFrame) -> Iterator[str]:
    """Clips named twice, unknown splits, routes in several splits."""
    for clip in index.loc[index["clip"].duplicated(), "clip"].unique():
        yield f"index.parquet: clip {clip} is there more than once"
    for row in index[~index["split"].isin(SPLITS)].itertuples():
        yield f"index.parquet: clip {row.clip} has split {row.split!r}, expected one of {', '.join(SPLITS)}"
    for route, splits in index.groupby("route")["split"].unique().items():
        if len(splits) > 1:
            yield f"index.parquet: route {route} lies in {' and '.join(sorted(splits))}, expected one split"


def frames_damage(index: pd.DataFrame, frames: pd.DataFrame) -> Iterator[str]:
    """Rows of unknown clips; clips whose rows are not frame 0, 1, 2 ... once each."""
    yield from _unknown_clips("frames", frames, index)
    numbers = frames.groupby("clip")["frame"].apply(sorted).to_dict()
    for clip, count in zip(index["clip"], index["frames"], strict=True):
        if (found := numbers.get(clip, [])) != list(range(count)):
            missing = len(set(range(count)) - set(found))
            stray = f"{missing} frames missing, {len(found) - count + missing} rows too many"
            yield f"frames.parquet: clip {clip} has {stray}, the index says {count} frames"


def boxes_damage(index: pd.DataFrame, boxes: pd.DataFrame) -> Iterator[str]:
    """Rows of unknown clips, frames or classes; corners that are unknown, outside the picture or out of order."""
    yield from _unknown_clips("boxes", boxes, index)
    boxes = boxes[boxes["clip"].isin(index["clip"])]
    count = boxes["clip"].map(index.set_index("clip")["frames"])
    corners = boxes[CORNERS]
    inside = ((corners >= 0) & (corners <= 1)).all(axis=1)  # false for NaN
    ordered = (boxes["x1"] < boxes["x2"]) & (boxes["y1"] < boxes["y2"])
    for wrong, what in (
        (~boxes["frame"].between(0, count, inclusive="left"), "of frames that the clip does not have"),
        (~boxes["class"].isin(CLASSES), f"of a class that is none of {', '.join(CLASSES)}"),
        (~inside, "with corners outside [0, 1]"),
        (inside & ~ordered, "without x1 < x2 and y1 < y2"),
    ):
        for clip, rows in boxes[wrong].groupby("clip"):
            first = rows.iloc[0]
            place = f"the first in frame {first['frame']}, track {first['track']}"
            yield f"boxes.parquet: clip {clip} has {len(rows)} boxes {what}, {place}"


def place_damage(index: pd.DataFrame, at: str, table: pd.DataFrame) -> Iterator[str]:
    """Clips whose rows do not begin where the index says."""
    first = table["clip"].reset_index(drop=True).drop_duplicates()
    begins = pd.Series(first.index, first.to_numpy())
    known = index[index["clip"].isin(begins.index)]
    found = begins.loc[known["clip"]].to_numpy()
    for clip, said, row in zip(known["clip"], known[at], found, strict=True):
        if said != row:
            yield f"index.parquet: clip {clip} has {at} {said}, its rows begin at {row}"


def file_damage(store: ClipStore, index: pd.DataFrame) -> Iterator[str]:
    """Shards that are missing or belong to no clip, videos that are not what was written; with a progress bar."""
    if isinstance(store.root, Path):
        known = sorted({store.root / shard for shard in index["shard"]})
        for path in sorted({*store.root.glob("shards/*.tar"), *store.root.glob("clips/*.mp4")} - set(known)):
            yield f"{path} belongs to no clip of index.parquet; delete it"
        for file in (file for path in known if path.exists() for file in members(path)):
            if file.stem not in set(index["clip"]):
                yield f"{file} belongs to no clip of index.parquet"
    with tqdm(total=len(index), desc="verify", unit="clip") as bar:
        for shard, rows in index.groupby("shard"):
            if not exists(join(store.root, str(shard))):
                yield f"{join(store.root, str(shard))} is missing, with {len(rows)} clips"
                continue
            for row in rows.itertuples():
                try:
                    yield from clip_damage(clip_file(store.root, row.clip, row), row.sha256, row.frames)
                except UserError as error:
                    yield str(error).removesuffix(SEE_VERIFY)
                bar.update()


def clip_damage(video: ClipFile, expected: str, frames: int) -> Iterator[str]:
    """Whether a video is what was written. raises UserError if it cannot be read"""
    with video.open() as file:
        found = sha256(file)
    if found != expected:
        yield f"{video} has sha256 {found[:SHOWN_DIGITS]}..., the index says {expected[:SHOWN_DIGITS]}..."
    if (count := count_frames(video)) != frames:
        yield f"{video} holds {count} frames, the index says {frames}"


def _unknown_clips(name: str, table: pd.DataFrame, index: pd.DataFrame) -> Iterator[str]:
    for clip, rows in table[~table["clip"].isin(index["clip"])].groupby("clip"):
        yield f"{name}.parquet: {len(rows)} rows of clip {clip}, which is not in index.parquet"
