"""A folder of driving videos as a source: resampled, cropped, cut at scene changes, split into clips."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.options import ClipOptions
from data_prep.scenes import mark_cuts
from data_prep.source import Dropped, Frame, RawClip, Refused, Unit
from drivesim.config import option
from drivesim.data.video import SUFFIXES, FrameIterator, iterate
from drivesim.errors import UserError

ROUTE_BY = ("name", "file", "folder")
TRAILING_NUMBER = re.compile(r"(?<=[^\W_])[\W_]+\d+$|(?<=[^\W\d_])\d+$")  # of drive_12, drive12, 2024-05-01_3


@dataclass
class VideosConfig(ClipOptions):
    """Options of source=videos."""

    route_by: str = option(
        "name", "one route (never split) is: name, files alike but for a trailing number; file; folder"
    )

    def check(self, source: str = "videos") -> None:
        """raises UserError for values that cannot work"""
        super().check(source)
        if self.route_by not in ROUTE_BY:
            raise UserError(f"videos.route_by is {self.route_by!r}; expected one of {', '.join(ROUTE_BY)}")


class VideosSource:
    """Every video under `root`, in sub-folders too. One unit is one file; no boxes, no poses, day or night unknown.

    raises  UserError if `root` is no folder or a value of `config` cannot work
    """

    def __init__(self, config: VideosConfig, root: Path | str | None) -> None:
        config.check()
        if root is None:
            raise UserError("source=videos needs root=FOLDER, the folder with the videos")
        self.config, self.root = config, Path(root)
        if not self.root.is_dir():
            raise UserError(f"root={root} is not a folder; give the folder with the videos")

    def units(self) -> list[Unit]:
        """One unit a file, sorted. raises UserError if there is no video."""
        paths = sorted(
            path.relative_to(self.root)
            for folder, _, names in os.walk(self.root)
            for path in (Path(folder, name) for name in names)
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        if not paths:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(f"root={self.root} holds no video ({kinds}); give the folder with the videos")
        taken = Counter(_slug(path.with_suffix("")) for path in paths)
        return [Unit(_unit_name(path, taken), self._route(path), "videos", path.as_posix()) for path in paths]

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        """Clips of one file, to be read one after the other; what is unreadable or lost comes as Dropped."""
        config = self.config
        try:
            frames = iterate(self.root / unit.path, config.fps, config.size, crop=config.crop)
            stream = _Stream(mark_cuts(frames))
        except UserError as error:
            yield Dropped(unit.name, str(error))
            return
        number = 0
        while not stream.ended:
            piece = _piece(stream, config)
            yield self._clip(unit, number, piece)
            _drain(piece)
            number += 1
        yield from _losses(unit, frames)

    def _clip(self, unit: Unit, number: int, frames: Iterator[Frame]) -> RawClip:
        return RawClip(
            name=f"{unit.name}_{number:04d}",
            route=unit.route,
            fps=self.config.fps,
            source=unit.path,
            licence=self.config.licence,
            has_boxes=False,
            frames=frames,
        )

    def _route(self, path: Path) -> str:
        if self.config.route_by == "folder":
            return path.parent.as_posix()
        # drive_0.mp4 and drive_1.mp4 were most likely cut from one drive. A name that is all number says nothing.
        stem = path.stem if self.config.route_by == "file" else TRAILING_NUMBER.sub("", path.stem)
        return (path.parent / stem).as_posix()


class _Stream:
    """A stream of (frame, starts a scene) that can be asked what comes next."""

    def __init__(self, marked: Iterator[tuple[np.ndarray, bool]]) -> None:
        self._marked = marked
        self._ahead = next(marked, None)

    @property
    def ended(self) -> bool:
        return self._ahead is None

    @property
    def at_cut(self) -> bool:
        return self._ahead is not None and self._ahead[1]

    def take(self) -> np.ndarray:
        assert self._ahead is not None
        frame, _ = self._ahead
        self._ahead = next(self._marked, None)
        return frame


def _piece(stream: _Stream, config: VideosConfig) -> Iterator[Frame]:
    """Frames up to the next cut, the longest clip or the end; raises Refused there if they were too few."""
    longest = max(1, round(config.clip_seconds * config.fps))
    count = 0
    while not stream.ended and count < longest and not (count and stream.at_cut):
        yield Frame(stream.take())
        count += 1
    if count < round(config.min_seconds * config.fps):
        seconds, why = count / config.fps, "before a cut or the end"
        raise Refused(f"{seconds:.2f} s {why}, shorter than videos.min_seconds={config.min_seconds:g}")


def _drain(piece: Iterator[Frame]) -> None:
    """Read what the consumer left, as it does for a clip that is in the store already."""
    try:
        for _ in piece:
            pass
    except Refused:
        pass  # a consumer that read to the end has heard of it; one that did not has no use for it


def _losses(unit: Unit, frames: FrameIterator) -> Iterator[Dropped]:
    if frames.lost:
        found = f"{frames.decoded} of {frames.promised} promised frames decode"
        yield Dropped(unit.name, f"{found}; the file is cut off or damaged, the readable frames were used")


def _slug(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", path.as_posix()).strip("._") or "video"


def _unit_name(path: Path, taken: Counter[str]) -> str:
    """The path as a file name; a hash tells apart paths that would become the same one."""
    slug = _slug(path.with_suffix(""))
    return slug if taken[slug] == 1 else f"{slug}-{hashlib.sha256(path.as_posix().encode()).hexdigest()[:6]}"
