"""One drive seen by one camera, as either layout of KITTI gives it, on its way to clips."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.kitti.calibration import Calibration
from data_prep.kitti.objects import Labelled
from data_prep.kitti.oxts import Motion
from data_prep.recording import Shot
from data_prep.source import NAN, Frame, Refused

SUFFIXES = (".jpg", ".png")  # KITTI has png; many keep it as jpg to save room. Of both the latter is taken.
DAY = 0.0  # KITTI was recorded by day
LISTED = 3  # numbers named in a note


@dataclass(frozen=True)
class Drive:
    """Everything by frame number, which counts from 0 and is the same in all files of a drive.

    times_s  seconds, of any origin
    objects  None where nothing is labelled
    """

    pictures: dict[int, Path]
    times_s: dict[int, float]
    calibration: Calibration
    motions: dict[int, Motion]
    objects: dict[int, list[Labelled]] | None

    def shots(self) -> list[Shot]:
        """What to make clips of. A picture that is missing in between has a shot too, and is found out when read."""
        first, last = min(self.pictures), max(self.pictures)
        numbers = [number for number in self.times_s if first <= number <= last]
        some = self.pictures[first]
        return [
            Shot(
                self.times_s[number],
                self.pictures.get(number, some.with_stem(f"{number:0{len(some.stem)}d}")),
                partial(self.frame, number),
            )
            for number in numbers
        ]

    def frame(self, number: int, picture: np.ndarray) -> Frame:
        """The frame of a picture, uint8 RGB [H, W, 3], with all that is known about it."""
        height, width = picture.shape[:2]
        boxes = [labelled.box(self.calibration, height, width) for labelled in (self.objects or {}).get(number, ())]
        motion = self.motions.get(number)
        return Frame(
            picture,
            [box for box in boxes if box is not None],
            pose=motion.imu_to_world @ self.calibration.camera_to_imu if motion else None,
            intrinsics=self.calibration.intrinsics,
            speed_mps=motion.speed_mps if motion else NAN,
            night=DAY,
        )

    def notes(self) -> Iterator[str]:
        """Where the parts of the drive do not match."""
        first, last = min(self.pictures), max(self.pictures)
        if late := self.pictures.keys() - self.times_s.keys():
            yield f"no time is given for {_count(late, 'picture')}, left out"
        if self.times_s and (absent := [n for n in self.times_s if not first <= n <= last]):
            yield f"the pictures are {first} to {last}, times are given for {_count(absent, 'more')}"
        if self.motions and (still := self.pictures.keys() - self.motions.keys()):
            yield f"oxts has no row for {_count(still, 'picture')}: pose and speed unknown"
        if surplus := self.motions.keys() - self.pictures.keys():
            yield f"oxts has {_count(surplus, 'row')} without a picture"
        if blind := (self.objects or {}).keys() - self.pictures.keys():
            yield f"labels are given for {_count(blind, 'frame')} without a picture, left out"


def _count(numbers: Collection[int], what: str) -> str:
    """3 pictures (7, 8, 9)"""
    named = ", ".join(map(str, sorted(numbers)[:LISTED])) + (" ..." if len(numbers) > LISTED else "")
    plural = "" if len(numbers) == 1 or what == "more" else "s"
    return f"{len(numbers)} {what}{plural} ({named})"


def numbered_pictures(folder: Path) -> dict[int, Path]:
    """The pictures of a folder by their numbers, in order. raises Refused if there is none, or most are missing"""
    if not folder.is_dir():
        raise Refused(f"{folder} is missing")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.stem.isdecimal())
    if not paths:
        raise Refused(f"{folder} holds no picture called by a number, as 0000000000.png")
    pictures = dict(sorted((int(path.stem), path) for path in paths))
    first, last = min(pictures), max(pictures)
    if 2 * len(pictures) < last - first + 1:
        raise Refused(f"{folder} holds {len(pictures)} of the pictures {first} to {last}, less than half of them")
    return pictures
