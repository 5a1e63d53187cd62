"""A folder of driving videos as a source: resampled, cropped, cut at scene changes, split into clips."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep import sidecar
from data_prep.film import NoNotes, Notes, clips_of_video
from data_prep.found import Found, find
from data_prep.naming import printable, unit_names
from data_prep.options import ClipOptions, data_root
from data_prep.sidecar import read_sidecar, sidecar_of
from data_prep.source import Dropped, RawClip, Refused, Unit
from drivesim.config import option
from drivesim.data.video import SUFFIXES
from drivesim.errors import UserError

ROUTE_BY = ("name", "file", "folder")
TRAILING_NUMBER = re.compile(r"(?<=[^\W_])[\W_]+\d+$|(?<=[^\W\d_])\d+$")  # of drive_12, drive12, 2024-05-01_3


@dataclass
class VideosConfig(ClipOptions):
    """Options of source=videos."""

    route_by: str = option(
        "name", "one route (never split) is: name, files alike but for a trailing number; file; folder"
    )
    gap_seconds: float = option(1.0, "longest pause between two boxes of a track in a sidecar file that is bridged")

    def check(self, source: str = "videos") -> None:
        """raises UserError for values that cannot work"""
        super().check(source)
        if self.route_by not in ROUTE_BY:
            raise UserError(f"videos.route_by is {self.route_by!r}; expected one of {', '.join(ROUTE_BY)}")
        if not self.gap_seconds >= 0:
            raise UserError(f"videos.gap_seconds is {self.gap_seconds}; expected 0 or more")


class VideosSource:
    """Every video under `root`, in sub-folders too; boxes and labels where a sidecar file lies beside it.

    One unit is one file. What lies there and cannot be used is a unit too, so that it is told of.
    raises  UserError if `root` is no folder or a value of `config` cannot work
    """

    def __init__(self, config: VideosConfig, root: Path | str | None) -> None:
        config.check()
        self.config, self.root = config, data_root("videos", root, "the videos")

    def units(self) -> list[Unit]:
        """One unit a file, sorted. raises UserError if there is no video."""
        files = find(self.root, SUFFIXES)
        if not files:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(f"root={self.root} holds no video ({kinds}); give the folder with the videos")
        files += _without_video(find(self.root, sidecar.SUFFIXES), files)
        names = unit_names([file.path.with_suffix("") for file in files])
        return [self._unit(name, file) for name, file in zip(names, files, strict=True)]

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        """Clips of one file, to be read one after the other; what is unreadable or lost comes as Dropped."""
        if unit.facts:
            raise Refused(f"{printable(unit.path)} {unit.facts[0]}")
        path = self.root / unit.path
        template = RawClip(
            name=unit.name,
            route=unit.route,
            fps=self.config.fps,
            source=printable(unit.path),
            licence=self.config.licence,
            has_boxes=False,
            frames=iter(()),
        )
        notes: Notes = NoNotes()
        try:
            if (beside := sidecar_of(path)) is not None:
                found = read_sidecar(beside, path, self.config.gap_seconds)
                notes, template.weather, template.caption = found.notes, found.weather, found.caption
                template.licence = found.licence or template.licence
        except UserError as error:  # boxes that are lost in silence would be worse than a video that is left out
            raise Refused(printable(str(error))) from error
        yield from clips_of_video(path, template, self.config, notes)

    def _unit(self, name: str, file: Found) -> Unit:
        if file.problem:  # given a split, it takes no place in one
            route = f"left out: {printable(file.path)}"
            return Unit(name, route, path=file.path.as_posix(), split="train", facts=(file.problem,))
        route = route_of(Path(printable(file.path)), self.config.route_by)
        return Unit(name, route, "videos", file.path.as_posix())


def route_of(path: Path, route_by: str) -> str:
    """The route of a video, by one of ROUTE_BY."""
    if route_by == "folder":
        return path.parent.as_posix()
    # drive_0.mp4 and drive_1.mp4 were most likely cut from one drive. A name that is all number says nothing.
    stem = path.stem if route_by == "file" else TRAILING_NUMBER.sub("", path.stem)
    return (path.parent / stem).as_posix()


def _without_video(sidecars: list[Found], videos: list[Found]) -> list[Found]:
    """Sidecars that no video stands beside: a slip of the pen, and boxes that nobody would miss."""
    expected = {video.path.with_name(video.path.stem + suffix) for video in videos for suffix in sidecar.SUFFIXES}
    problem = "holds boxes, but no video of that name lies beside it; rename one of them"
    return [Found(file.path, problem) for file in sidecars if not file.problem and file.path not in expected]
