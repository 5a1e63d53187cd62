"""Folders of pictures as a source: one recording a folder, with a file of times or at a rate that is told."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.naming import printable, unit_names
from data_prep.options import ClipOptions, data_root
from data_prep.recording import Shot, clips_of
from data_prep.source import Dropped, Frame, RawClip, Refused, Unit
from data_prep.timestamps import FILES, UNITS, read_times
from data_prep.videos import TRAILING_NUMBER
from data_prep.walk import folders_below
from drivesim.config import option
from drivesim.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
ROUTE_BY = ("recording", "name", "folder")


@dataclass
class ImagesConfig(ClipOptions):
    """Options of source=images."""

    source_fps: float = option(0.0, "pictures a second of recordings without a file of times; 0: they are left out")
    time_unit: str = option("s", "of the numbers in files of times: s, ms, us or ns")
    route_by: str = option(
        "recording", "one route (never split) is: recording; name, folders alike but for a trailing number; folder"
    )

    def check(self, source: str = "images") -> None:
        """raises UserError for values that cannot work"""
        super().check(source)
        if not 0 <= self.source_fps <= 1000:
            raise UserError(f"images.source_fps is {self.source_fps}; expected more than 0, at most 1000")
        if self.time_unit not in UNITS:
            raise UserError(f"images.time_unit is {self.time_unit!r}; expected one of {', '.join(UNITS)}")
        if self.route_by not in ROUTE_BY:
            raise UserError(f"images.route_by is {self.route_by!r}; expected one of {', '.join(ROUTE_BY)}")


class ImagesSource:
    """Every folder below `root` that holds pictures. One unit is one folder; no boxes, day or night unknown.

    raises  UserError if `root` is no folder or a value of `config` cannot work
    """

    def __init__(self, config: ImagesConfig, root: Path | str | None) -> None:
        config.check()
        self.config, self.root = config, data_root("images", root, "the recordings")

    def units(self) -> list[Unit]:
        """One unit a folder, sorted. raises UserError if none holds a picture"""
        found = {}
        for folder, folders, files in folders_below(self.root):
            pictures = any(is_picture(name) for name in files)
            if pictures or not folders:
                found[folder.relative_to(self.root)] = pictures
        if not any(found.values()):
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(f"root={self.root} holds no picture ({kinds}); give the folder with the recordings")
        paths = sorted(found)
        # A folder without pictures becomes a line in dropped.json. It must not be the route that is held out.
        return [
            Unit(name, self._route(path), "images", path.as_posix(), "" if found[path] else "train")
            for name, path in zip(unit_names(paths), paths, strict=True)
        ]

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        """The clips of one folder, one after the other; pictures that cannot be used come as Dropped."""
        folder = self.root / unit.path
        names = picture_names(folder)
        times = self._times(folder, names)
        if untimed := [name for name in names if name not in times]:
            first = printable(untimed[0])
            yield Dropped(unit.name, f"no time is given for {len(untimed)} pictures ({first} first), left out")
        template = RawClip(
            name=unit.name,
            route=unit.route,
            fps=self.config.fps,
            source=printable(Path(unit.path)),
            licence=self.config.licence,
            has_boxes=False,
            frames=iter(()),
        )
        # What makes a Frame of a picture is the place for anything else that is known about it.
        shots = [Shot(time_s, folder / name, Frame) for name, time_s in times.items()]
        yield from clips_of(template, shots, self.config)

    def _times(self, folder: Path, names: Sequence[str]) -> dict[str, float]:
        """Seconds by name of the picture, in the order of recording."""
        files = [folder / name for name in FILES if (folder / name).exists()]
        if len(files) > 1:
            raise Refused(f"{printable(folder)} holds {' and '.join(FILES)}; leave one of them")
        if files:
            return read_times(files[0], names, self.config.time_unit)
        if not self.config.source_fps:
            raise Refused(f"{printable(folder)} holds no {' or '.join(FILES)}; add one or give images.source_fps")
        return {name: number / self.config.source_fps for number, name in enumerate(names)}

    def _route(self, path: Path) -> str:
        if self.config.route_by == "folder":
            path = path.parent
        elif self.config.route_by == "name":
            path = path.parent / TRAILING_NUMBER.sub("", path.name)
        return printable(path)


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture by its name."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def picture_names(folder: Path) -> list[str]:
    """The pictures of a folder, 2 before 10. raises Refused if there is none"""
    names = [path.name for path in folder.iterdir() if is_picture(path.name)]
    if not names:
        raise Refused(f"{printable(folder)} holds no picture")
    return sorted(names, key=_order)


def _order(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, so that two names compare part by part
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
