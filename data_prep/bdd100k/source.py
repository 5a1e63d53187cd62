"""BDD100K as a source: its 40 s videos, or the pictures of its tracking set with their boxes.

Read after the published description (https://doc.bdd100k.com/format.html and download.html):

    videos/<split>/<video>.mov                           30 frames a second
    info/100k/<split>/<video>.json                       speed from the phone's GPS, once a second
    labels/det_20/det_<split>.json                       weather and time of day of each video; of 2018:
    labels/bdd100k_labels_images_<split>.json            ... the same, or
    labels/100k/<split>/<video>.json                     ... one file a video
    images/track/<split>/<video>/<video>-0000001.jpg     5 pictures a second of 2,000 of the videos
    labels/box_track_20/<split>/<video>.json             their boxes; the test split has none
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.annotations import Annotations, Instant
from data_prep.bdd100k.labels import Sky, read_skies, read_sky, read_speed, read_tracks
from data_prep.film import clips_of_video
from data_prep.found import Found, find
from data_prep.naming import printable, unit_names
from data_prep.options import ClipOptions, data_root
from data_prep.recording import Shot, clips_of, read_picture
from data_prep.source import Box, Dropped, Frame, RawClip, Refused, Unit
from drivesim.config import option
from drivesim.data.schema import SPLITS
from drivesim.data.video import SUFFIXES, Shown
from drivesim.errors import UserError

FORMS = {"video": 30.0, "track": 5.0}  # -> frames a second as recorded
FOLDERS = {"video": "videos", "track": "images/track"}  # -> where a form lies, a folder for each split below
SKIES = ("labels/det_20/det_{}.json", "labels/bdd100k_labels_images_{}.json")
GAP_S = 1.5  # speeds come once a second; the last one holds this long
NUMBER = re.compile(r"-(\d+)\.(?:jpg|png)$")  # of a picture, from 1


@dataclass
class Bdd100kConfig(ClipOptions):
    """Options of source=bdd100k."""

    form: str = option("video", "video (30 fps, boxes unknown) or track (pictures at 5 fps with boxes)")
    splits: list[str] = option(list(SPLITS), "the official splits to prepare")
    fps: float = option(0.0, "frames a second to resample to; 0: as recorded, 30 or 5")
    licence: str = option("BDD100K", "noted in the index of the store")

    def check(self, source: str = "bdd100k") -> None:
        """raises UserError for values that cannot work"""
        if self.form not in FORMS:
            raise UserError(f"bdd100k.form is {self.form!r}; expected one of {', '.join(FORMS)}")
        if unknown := [name for name in self.splits if name not in SPLITS]:
            raise UserError(f"bdd100k.splits has {unknown[0]!r}; expected some of {', '.join(SPLITS)}")
        ClipOptions.check(self.at_rate(), source)

    def at_rate(self) -> "Bdd100kConfig":
        """The same with the rate of the form in place of 0."""
        return replace(self, fps=self.fps or FORMS[self.form])


class Bdd100kSource:
    """Implements `data_prep.source.Source`: one unit is one video, in its official split and a route of its own.

    raises  UserError if `root` does not hold what the form needs, or a value of `config` cannot work
    """

    def __init__(self, config: Bdd100kConfig, root: Path | str | None) -> None:
        config.check()
        self.root = data_root("bdd100k", root, "videos, images, labels and info")
        self.config = config.at_rate()
        self.inside = Path("bdd100k") if (self.root / "bdd100k").is_dir() else Path()  # as the archives unpack
        self.pictures = self.inside / FOLDERS[config.form]
        if not (self.root / self.pictures).is_dir():
            raise UserError(f"root={root} holds no {self.pictures}; bdd100k.form={config.form} needs it")
        if config.form == "track" and not self._beside("labels/box_track_20").is_dir():
            raise UserError(f"root={root} holds no labels/box_track_20; unpack the labels of the tracking set too")

    def units(self) -> list[Unit]:
        """One unit a video, by split and name. raises UserError if there is none, or labels cannot be read"""
        units: list[Unit] = []
        for split in self.config.splits:
            if (self.root / self.pictures / split).is_dir():
                units += self._units(split)
        if not units:
            raise UserError(f"{self.root / self.pictures} holds nothing of the splits {', '.join(self.config.splits)}")
        return units

    def _units(self, split: str) -> list[Unit]:
        files = self._files(self.root / self.pictures / split)
        names = unit_names([Path(split) / file.path.with_suffix("") for file in files])
        skies = self._skies(split)
        units = []
        for name, file in zip(names, files, strict=True):
            sky = skies.get(file.path.stem)
            facts = ("out", file.problem) if file.problem else ("sky", sky.weather, str(sky.night)) if sky else ()
            # Rides are cut into several videos, but the official splits part by video: a route is what they part by.
            route = printable(Path(split) / file.path.with_suffix(""))
            path = (self.pictures / split / file.path).as_posix()
            units.append(Unit(name, route, path=path, split=split, facts=facts))
        return units

    def _files(self, folder: Path) -> list[Found]:
        if self.config.form == "video":
            return find(folder, SUFFIXES)
        return [Found(path.relative_to(folder)) for path in sorted(folder.iterdir()) if path.is_dir()]

    def _skies(self, split: str) -> dict[str, Sky]:
        found = [path for name in SKIES if (path := self._beside(name.format(split))).exists()]
        return read_skies(found[0]) if found else {}

    def _beside(self, kind: str, unit: Unit | None = None) -> Path:
        """Where files of another kind lie, or the JSON file of that kind that belongs to a unit."""
        folder = self.root / self.inside / kind
        if unit is None:
            return folder
        video = Path(unit.path).relative_to(self.pictures)
        return folder / video.with_name(f"{video.stem}.json")

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        """Clips of one video; labels that cannot be read come as Dropped, or end the unit if they are its boxes."""
        if unit.facts[:1] == ("out",):
            raise Refused(f"{printable(unit.path)} {unit.facts[1]}")
        sky, speed, complaint = Sky(), list[Instant](), ""
        try:
            sky = Sky(unit.facts[1], float(unit.facts[2])) if unit.facts else self._own_sky(unit)
            speed = self._speed(unit)
        except UserError as error:
            complaint = printable(str(error))
        template = RawClip(
            name=unit.name,
            route=unit.route,
            fps=self.config.fps,
            source=printable(unit.path),
            licence=self.config.licence,
            has_boxes=False,
            frames=iter(()),
            weather=sky.weather,
        )
        notes = Annotations(speed, GAP_S, sky.night)
        if self.config.form == "video":
            yield from clips_of_video(self.root / unit.path, template, self.config, notes)
        else:
            yield from self._track_clips(unit, template, notes)
        if complaint:
            yield Dropped(unit.name, f"{complaint}; the clips were made without it")

    def _own_sky(self, unit: Unit) -> Sky:
        path = self._beside("labels/100k", unit)
        return read_sky(path) if path.exists() else Sky()

    def _speed(self, unit: Unit) -> list[Instant]:
        path = self._beside("info/100k", unit)
        return read_speed(path) if path.exists() else []

    def _track_clips(self, unit: Unit, template: RawClip, notes: Annotations) -> Iterator[RawClip | Dropped]:
        folder, labels = self.root / unit.path, self._beside("labels/box_track_20", unit)
        pictures = {path.name for path in folder.iterdir() if NUMBER.search(path.name)}
        if not labels.exists():
            if unit.split != "test":
                yield Dropped(unit.name, f"{printable(labels)} is missing; the boxes of its clips are unknown")
            yield from clips_of(template, _shots(folder, pictures, notes, {}), self.config)
            return
        try:
            boxes = read_tracks(labels, _size(folder, pictures))
        except UserError as error:
            raise Refused(printable(str(error))) from error
        if unlabelled := sorted(pictures - boxes.keys()):
            yield Dropped(unit.name, f"{len(unlabelled)} pictures have no labels, {unlabelled[0]} first; left out")
        shots = _shots(folder, {name for name in boxes if NUMBER.search(name)}, notes, boxes)
        yield from clips_of(replace(template, has_boxes=True), shots, self.config)


def _size(folder: Path, pictures: set[str]) -> tuple[int, int]:
    """(height, width) of the first picture that can be read; all of a video have one size. raises Refused"""
    for name in sorted(pictures):
        try:
            height, width = read_picture(folder / name).shape[:2]
        except (OSError, ValueError):
            continue
        return height, width
    raise Refused(f"{printable(folder)} holds no readable picture")


def _shots(folder: Path, names: set[str], notes: Annotations, boxes: dict[str, list[Box]]) -> list[Shot]:
    """The pictures in order, 5 a second from picture 1 on."""
    numbers = {name: int(NUMBER.search(name)[1]) for name in names}  # type: ignore[index]
    return [
        Shot((numbers[name] - 1) / FORMS["track"], folder / name, _Describe(notes, numbers[name], boxes.get(name, [])))
        for name in sorted(names, key=lambda name: numbers[name])
    ]


@dataclass(frozen=True)
class _Describe:
    """Makes the Frame of a picture."""

    notes: Annotations
    number: int
    boxes: list[Box]

    def __call__(self, picture: np.ndarray) -> Frame:
        size = (picture.shape[0], picture.shape[1])
        shown = Shown((self.number - 1) / FORMS["track"], size, size)
        return replace(self.notes.frame(picture, shown), boxes=self.boxes)
