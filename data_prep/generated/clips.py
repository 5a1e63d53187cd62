"""A generated video as clips of a store: its layout frame by frame as boxes, labels and poses of the camera."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from data_prep.generated.found import Generated
from data_prep.generated.space import LensOptions, centres, intrinsics, poses
from data_prep.source import NAN, Box, Frame, RawClip, Unit
from drivesim.clip import CLASSES, NO_BOX, NO_WEATHER, VEHICLES
from drivesim.config import option
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError
from drivesim.generation.layout_file import Lens


@dataclass
class PieceOptions:
    """How videos are cut into clips."""

    clip_seconds: float = option(20.0, "longest clip; longer stretches are cut into equal ones")
    min_seconds: float = option(1.0, "shorter stretches are dropped")

    def check(self) -> None:
        """raises UserError for values that cannot work"""
        if not 0 < self.min_seconds <= self.clip_seconds:
            found = f"min_seconds is {self.min_seconds}, clip_seconds {self.clip_seconds}"
            raise UserError(f"{found}; expected 0 < min_seconds <= clip_seconds")


@dataclass(frozen=True)
class Labelled:
    """A generated video after its label check.

    recall, ok  [T] of the window around each frame
    """

    video: Generated
    recall: np.ndarray
    ok: np.ndarray
    lens_options: LensOptions

    def clips(self, unit: Unit, kept: np.ndarray, options: PieceOptions, licence: str) -> Iterator[RawClip]:
        """Clips of the stretches of frames in `kept` [T] bool, to be read one after the other."""
        pictures = enumerate(self.video.pictures())
        for number, piece in enumerate(pieces(kept, self.video.fps, options)):
            yield RawClip(
                name=f"{unit.name}_{number:04d}",
                route=unit.route,
                fps=self.video.fps,
                source=unit.path,
                licence=licence,
                has_boxes=True,
                frames=self._frames(pictures, piece),
                weather=self._weather(piece),
                start_s=piece.start / self.video.fps,
                provenance=self.video.provenance,
            )

    def _frames(self, pictures: Iterator[tuple[int, np.ndarray]], piece: range) -> Iterator[Frame]:
        for number, picture in pictures:
            if number >= piece.start:
                yield self.frame(number, picture)
            if number == piece.stop - 1:
                return

    def frame(self, number: int, picture: np.ndarray) -> Frame:
        """One frame with all that is known of it."""
        layout, boxes = self.video.layout, self._boxes(number)
        asked = float(layout.crowdedness[number])
        return Frame(
            picture,
            boxes,
            pose=None if self._poses is None else self._poses[number],
            intrinsics=intrinsics(self._lens, self.video.height, self.video.width),
            speed_mps=float(layout.speed[number]),
            night=float(layout.night[number]),
            vehicles=sum(box.name in VEHICLES for box in boxes) if np.isnan(asked) else asked,
            steering_rad=float(layout.steering[number]),
            label_recall=float(self.recall[number]),
            label_ok=bool(self.ok[number]),
        )

    def _boxes(self, number: int) -> list[Box]:
        frame = self.video.layout[number]
        filled = frame.classes != NO_BOX
        corners, solids = (part[filled].double().numpy() for part in (frame.boxes, frame.solids))
        places = centres(corners, solids, self._lens)
        known = np.isfinite(places).all(1)
        return [
            Box(
                track,
                CLASSES[kind],
                tuple(corner),
                centre_m=tuple(place),
                size_m=tuple(solid[1:4]) if in_space else (NAN, NAN, NAN),
                yaw=solid[4] if in_space else NAN,
            )
            for track, kind, corner, place, solid, in_space in zip(
                frame.tracks[filled].tolist(),
                frame.classes[filled].tolist(),
                corners.tolist(),
                places.tolist(),
                solids.tolist(),
                known.tolist(),
                strict=True,
            )
        ]

    def _weather(self, piece: range) -> str:
        """Of a clip that has one; empty where it changes or nobody asked for one."""
        asked = set(self.video.layout.weather[piece.start : piece.stop].tolist())
        return WEATHERS[asked.pop()] if len(asked) == 1 and NO_WEATHER not in asked else ""

    @cached_property
    def _lens(self) -> Lens:
        return self.video.lens or self.lens_options.lens(self.video.height, self.video.width)

    @cached_property
    def _poses(self) -> np.ndarray | None:
        layout = self.video.layout
        return poses(layout.travel.double().numpy(), layout.heading.double().numpy())


def pieces(kept: np.ndarray, fps: float, options: PieceOptions) -> Iterator[range]:
    """Stretches of frames that are all kept [T] bool, cut into equal parts that are not too long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], kept.astype(np.int8), [0]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        if stop - start >= round(options.min_seconds * fps):
            parts = -(-(stop - start) // max(1, round(options.clip_seconds * fps)))
            bounds = np.linspace(start, stop, parts + 1).round().astype(int).tolist()
            yield from (range(*bound) for bound in pairwise(bounds))
