"""A scenario worked out: the camera's way, and where everybody is, frame by frame.

The world is the frame of the first camera: x right, y down, z forward, metres; yaw in radians about its y axis, 0 where
the length lies along z, growing to the right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drivesim.clip import Camera, Layout
from drivesim.scenarios.road import Road

EGO_SIZE_M = (4.4, 1.8)  # length and width of the car around the camera, which is in its middle
AT_GROUND_LEAST = 1e-3  # fraction of the picture that a box must end below the horizon for its distance to be told


@dataclass(frozen=True)
class Actor:
    """A car or a person over T frames; NaN wherever it is not there or that is not known.

    centre    [T, 3] metres in the world;  yaw [T];  size [T, 3] length, width, height in metres
    boxes     [T, 4] its box on the picture where that is given, not to be worked out; None if it is to be
    solids    [T, 5] drivesim.clip.SOLID as given beside `boxes`
    share     [T] what was seen of it where it was recorded, 0..1;  others [T] what the other actors left of it then
    added     from the scenario, or moved by it: may not stand in another
    asked     for by itself: must be seen at some time
    """

    name: str
    track: int
    kind: str
    centre: np.ndarray
    yaw: np.ndarray
    size: np.ndarray
    boxes: np.ndarray | None = None
    solids: np.ndarray | None = None
    share: np.ndarray | None = None
    others: np.ndarray | None = None
    priority: float = 0.0
    added: bool = True
    asked: bool = True

    @property
    def in_space(self) -> np.ndarray:
        """[T] where its place in space is known."""
        return np.isfinite(self.centre).all(-1) & np.isfinite(self.size).all(-1) & np.isfinite(self.yaw)

    def __str__(self) -> str:
        return f"{self.name} (track {self.track})" if self.name else f"track {self.track}"


@dataclass(frozen=True)
class Scene:
    """Everything over T frames.

    times_s  [T] increasing; 0 is the first frame of the video.  frame_s: how long the last frame lasts
    height_m of the camera over the road
    poses    [T, 4, 4] camera to world; None where it is not known how the camera moves
    road     the way that the camera takes; None with poses
    labels   [T] a layout without boxes: night, weather, the way driven ...
    known    [T] whether it is known what there is at all
    redriven the camera drives another way than was recorded
    """

    source: str
    title: str
    times_s: np.ndarray
    frame_s: float
    camera: Camera
    height_m: float
    poses: np.ndarray | None
    road: Road | None
    labels: Layout
    known: np.ndarray
    actors: Sequence[Actor] = field(default_factory=tuple)
    redriven: bool = False

    @property
    def seconds(self) -> float:
        return float(self.times_s[-1] + self.frame_s)

    def when(self, frame: int) -> str:
        return f"frame {frame} ({max(0.0, self.times_s[frame]):.2f} s)"

    def in_camera(self, actor: Actor) -> tuple[np.ndarray, np.ndarray]:
        """Centre [T, 3] and yaw [T] of an actor in the frame of the camera at each time."""
        if self.poses is None:
            return actor.centre, actor.yaw
        turn, place = self.poses[:, :3, :3], self.poses[:, :3, 3]
        length = np.stack([np.sin(actor.yaw), np.zeros_like(actor.yaw), np.cos(actor.yaw)], -1)
        centre, along = (np.einsum("tij,ti->tj", turn, vector) for vector in (actor.centre - place, length))
        return centre, np.arctan2(along[:, 0], along[:, 2])

    def depth(self, actor: Actor) -> np.ndarray:
        """Metres before the camera [T]: of the centre; else as given; else of the road where its box ends below."""
        depth = self.in_camera(actor)[0][:, 2]
        if actor.boxes is None:
            return depth
        if actor.solids is not None:
            depth = np.where(np.isnan(depth), actor.solids[:, 0], depth)
        return np.where(np.isnan(depth), self.ground_depth(actor.boxes), depth)

    def ground_depth(self, boxes: np.ndarray) -> np.ndarray:
        """Metres to the road at the lower edges of boxes [T, 4]; inf on and above the horizon, NaN for no box."""
        below = boxes[:, 3] - self.camera.intrinsics[1, 2] / self.camera.height
        focal = self.camera.intrinsics[1, 1] / self.camera.height
        near = below > AT_GROUND_LEAST
        return np.where(
            near, focal * self.height_m / np.where(near, below, 1.0), np.where(np.isnan(below), np.nan, np.inf)
        )
