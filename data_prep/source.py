"""What a source of raw driving data gives to `drivesim prepare`: units of work, clips, frames, ground truth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

NAN = float("nan")


@dataclass
class Box:
    """One object in one frame, 2D in fractions of the picture and 3D in the camera frame.

    xyxy        x1, y1, x2, y2, fractions of width and height, clipped to [0, 1]
    visibility  visible share of the box's own pixels, 0..1 (NaN unknown)
    centre_m    x right, y down, z forward; size_m: length, width, height; yaw about the camera's y axis, radians
    """

    track: int
    name: str  # one of drivesim.clip.CLASSES
    xyxy: tuple[float, float, float, float]
    visibility: float = NAN
    centre_m: tuple[float, float, float] = (NAN, NAN, NAN)
    size_m: tuple[float, float, float] = (NAN, NAN, NAN)
    yaw: float = NAN


@dataclass
class Frame:
    """One frame as it goes into the store.

    image       [H, W, 3] uint8 RGB, of the stored size
    pose        [4, 4] camera to world or None; metres; world: x east, y north, z up; camera: x right, y down, z forward
    intrinsics  [3, 3] pixels, or None
    label_recall, label_ok  share of the boxes around this moment that a detector finds, and whether that is enough
    """

    image: np.ndarray
    boxes: Sequence[Box] = field(default_factory=list)
    pose: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    speed_mps: float = NAN
    night: float = NAN
    vehicles: float = NAN
    steering_rad: float = NAN
    label_recall: float = NAN
    label_ok: bool = True


@dataclass(frozen=True)
class MapLayer:
    """A road map seen from above. mask [h, w] bool, up is +y; x_m, y_m: world position of its lower left corner."""

    name: str  # one of drivesim.data.schema.MAP_LAYERS
    mask: np.ndarray
    x_m: float
    y_m: float
    metres_per_pixel: float


@dataclass
class RawClip:
    """A clip on its way into the store; `frames` is consumed once, in order, one frame in memory at a time.

    camera   channel, CAM_FRONT say; empty where there is one camera only
    weather  one of drivesim.data.schema.WEATHERS, empty where unknown
    caption  what it shows, in words; empty where nobody says
    start_s  seconds from the start of the recording; tells which clips of several cameras belong together
    provenance  what model made it, for JSON, where one did; nothing of what was filmed or drawn
    """

    name: str  # file name friendly and unique in the store
    route: str
    fps: float
    source: str
    licence: str
    has_boxes: bool
    frames: Iterator[Frame]
    camera: str = ""
    weather: str = ""
    caption: str = ""
    maps: Sequence[MapLayer] = ()
    start_s: float = NAN
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """The smallest idempotent piece of a preparation: one town route, one input video.

    name   file name friendly and unique
    route  one side of every split: units that show the same drive share it
    group  routes of different groups are split separately, so that each split gets some of each; by default the
           route's name without its number, as full-rate and sparse town routes differ
    path   the input file relative to the root, where there is one
    split  train, val or test where the data says so; else routes are shared out
    stamp  noted by `drivesim prepare`: size and time of the file or folder at `path`, so that a change is noticed
    lossless  noted by `drivesim prepare`: keep every pixel as it is
    facts  what the source noted as it listed its units, of a meaning of its own: so a worker that is handed a unit
           need not read a large file again
    """

    name: str
    route: str
    group: str = ""
    path: str = ""
    split: str = ""
    stamp: str = ""
    lossless: bool = False
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A piece of input that did not become a clip, and why."""

    unit: str
    reason: str


class Refused(Exception):
    """Raised by the frames of a RawClip: the piece is no clip after all (too short), and why; nothing of it is kept.

    So a source can stream a piece whose length it does not know yet. Raised by `Source.clips` it ends the unit: the
    rest of it is not usable, what came before stays.
    """


class Source(Protocol):
    """A kind of raw data. Instances are pickled to worker processes, so they hold configuration only."""

    def units(self) -> list[Unit]:
        """All units, in a fixed order. raises UserError when there is nothing to prepare."""

    def clips(self, unit: Unit) -> Iterator["RawClip | Dropped"]:
        """The clips of one unit, one after the other."""
