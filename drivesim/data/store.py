"""Reading a clip store, whose files and tables drivesim/data/schema.py and docs/clip_store.md describe."""

import difflib
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy.spatial.transform import Rotation

from drivesim.clip import CLASSES, NO_BOX, Camera, Layout
from drivesim.data.clip_file import ClipFile
from drivesim.data.remote import Place, exists, join, open_file, place, read_text
from drivesim.data.schema import BOXES, FRAMES, INDEX, SCHEMA, SPLITS, TABLES
from drivesim.errors import UserError


@dataclass
class ClipStore:
    """Read side of a store, in a local folder or under a URL that fsspec knows (https://, s3://, memory:// ...).

    raises  UserError if `root` holds no finished store, or one of another schema
    """

    root: Place

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
        contents = hashlib.sha256("".join(self.table("index")["sha256"]).encode()).hexdigest()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drivesim" / contents[:16]

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row a clip, indexed by clip name. raises UserError for names that would lead out of a folder"""
        index = self.table("index").set_index("clip")
        if len(bad := index.index[index.index.str.contains(r"[/\\]|^\.")]):
            raise UserError(f"{self.root}: index.parquet names a clip {bad[0]!r}, which is no file name")
        return index

    @cached_property
    def _frames(self) -> dict[str, pd.DataFrame]:
        return dict(iter(self.table("frames").groupby("clip", sort=False)))

    @cached_property
    def _boxes(self) -> dict[str, pd.DataFrame]:
        return dict(iter(self.table("boxes").groupby("clip", sort=False)))

    def table(self, name: str) -> pd.DataFrame:
        """All rows of one of TABLES. raises UserError if the file is missing or damaged, or lacks columns"""
        path = join(self.root, f"{name}.parquet")
        try:
            table = pd.read_parquet(self.file(f"{name}.parquet"))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is not readable ({reason}); prepare the store again") from error
        if missing := [column for column in TABLES[name].names if column not in table]:
            raise UserError(f"{path} lacks {', '.join(missing)}; prepare the store again")
        return table

    def clips(self, split: str | None = None) -> list[str]:
        """Names of the clips of a split, or of all."""
        rows = self.index if split is None else self.index[self.index["split"] == split]
        return list(rows.index)

    def file(self, name: str) -> Path | BinaryIO:
        """A file of the store, as pandas and pyarrow read it. raises UserError if a remote one cannot be opened"""
        path = join(self.root, name)
        return path if isinstance(path, Path) else open_file(path)

    def known(self, clip: str) -> str:
        """The name back. raises UserError, with names that are alike, if there is no such clip"""
        if clip not in self.index.index:
            close = difflib.get_close_matches(clip, self.clips(), n=3) or self.clips()[:3]
            raise UserError(f"{self.root} has no clip {clip!r}; try {', '.join(close)}")
        return clip

    def video(self, clip: str) -> ClipFile:
        """Where the pictures of a clip are, for `drivesim.data.video`.

        raises  UserError if there is no such clip, or the index places it outside the store
        """
        return clip_file(self.root, clip, self.index.loc[self.known(clip)])

    def frames(self, clip: str) -> pd.DataFrame:
        """Rows of the FRAMES table, one a frame, in order."""
        return self._frames[clip]

    def boxes(self, clip: str) -> pd.DataFrame:
        """Rows of the BOXES table of one clip."""
        return self._boxes.get(clip, pd.DataFrame(columns=BOXES.names))

    def camera(self, clip: str, frame: int = 0) -> Camera:
        """The camera of a frame, in pixels of the stored size."""
        row = self.frames(clip).iloc[frame]
        matrix = np.array([[row.fx, 0, row.cx], [0, row.fy, row.cy], [0, 0, 1]])
        size = self.index.loc[clip]
        return Camera(matrix, int(size.height), int(size.width))

    def layout(self, clip: str, slots: int = 24, min_visibility: float = 0.15) -> Layout:
        """The whole clip's layout, [T] frames of `slots` boxes; the largest are kept.

        Boxes seen less than `min_visibility` are left out: asking for a hidden car steers nothing.
        """
        info, frames, table = self.index.loc[clip], self.frames(clip), self.boxes(clip)
        count = int(info.frames)
        layout = Layout.unknown(count, slots=slots)
        if len(table):
            table = table[~(table["visibility"] < min_visibility)]
            area = (table["x2"] - table["x1"]) * (table["y2"] - table["y1"])
            table = table.assign(area=area).sort_values(["frame", "area", "track"], ascending=[True, False, True])
            slot = table.groupby("frame").cumcount().to_numpy()
            table, slot = table[slot < slots], slot[slot < slots]
            at = (torch.from_numpy(table["frame"].to_numpy().astype(np.int64)), torch.from_numpy(slot.astype(np.int64)))
            layout.boxes[at] = torch.from_numpy(table[["x1", "y1", "x2", "y2"]].to_numpy().astype(np.float32))
            layout.classes[at] = torch.tensor([CLASSES.index(name) for name in table["class"]], dtype=torch.long)
            layout.tracks[at] = torch.from_numpy(table["track"].to_numpy().astype(np.int64))
        layout.night[:] = torch.from_numpy(frames["night"].to_numpy().astype(np.float32))
        layout.crowdedness[:] = torch.from_numpy(frames["vehicles"].to_numpy().astype(np.float32))
        layout.known[:] = bool(info.has_boxes)
        travel, heading = ego_motion(frames)
        layout.travel[:], layout.heading[:] = torch.from_numpy(travel), torch.from_numpy(heading)
        return layout


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


def ego_motion(frames: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """How far the camera of a clip has driven, metres, and turned to the right, radians, since its first
    frame: float32 [T] each, from the poses of the FRAMES table; NaN from the first unknown pose on."""
    place = frames[["x_m", "y_m", "z_m"]].to_numpy(float)
    turn = frames[["qx", "qy", "qz", "qw"]].to_numpy(float)
    unknown = ~np.isfinite(np.hstack([place, turn])).all(1)
    camera = Rotation.from_quat(np.where(unknown[:, None], [0.0, 0, 0, 1], turn)).as_matrix()  # camera to world
    step = np.einsum("tij,ti->tj", camera[:-1], np.diff(place, axis=0))  # in the camera before: x right, z forward
    relative = camera[:-1].transpose(0, 2, 1) @ camera[1:]
    yaw = np.arctan2(relative[:, 0, 2], relative[:, 2, 2])
    hidden = np.where(np.maximum.accumulate(unknown), np.nan, 0.0)
    travel, heading = (np.concatenate([[0.0], np.cumsum(part)]) + hidden for part in (step[:, 2], yaw))
    return travel.astype(np.float32), heading.astype(np.float32)


__all__ = ["BOXES", "FRAMES", "INDEX", "NO_BOX", "SCHEMA", "SPLITS", "TABLES", "ClipStore", "ego_motion"]
