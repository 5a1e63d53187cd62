"""The types that flow everywhere: a camera, the layout of boxes that steers a clip, and the clip itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from drivesim.classes import CLASSES as CLASSES
from drivesim.classes import VEHICLES as VEHICLES

NO_BOX = -1  # class of an empty slot
NO_WEATHER = -1  # weather where it is unknown
SOLID = ("z_m", "length_m", "width_m", "height_m", "yaw")  # what is told of a box in space, named as in the clip store
MIN_VISIBILITY = 0.15  # share of itself that an object must show: asking for a hidden car steers nothing
SPEED_MPS = 8.0  # taken for driven where nobody says how fast, in training and in sampling alike


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    intrinsics  [3, 3] pixels, as nuScenes `calibrated_sensor.camera_intrinsic`
    height, width  pixels
    """

    intrinsics: np.ndarray
    height: int
    width: int

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project camera-frame points [n, 3] (metres; x right, y down, z forward) to pixels [n, 2] (u, v).

        Off-image pixels are kept: a box half out of view must keep its shape.
        raises  ValueError if a point is not in front of the camera
        """
        depth = points[:, 2:]
        if (hidden := int((depth <= 0).sum())) > 0:
            raise ValueError(f"{hidden} of {len(points)} points have z <= 0; clip boxes to the near plane first")
        return (points / depth @ self.intrinsics.T)[:, :2]


@dataclass(frozen=True)
class Layout:
    """What a clip is asked to show, frame by frame. Leading dimensions are [T] for a clip and [B, T] for a batch.

    boxes        [..., N, 4] x1, y1, x2, y2 as fractions of width and height, inside [0, 1]
    classes      [..., N] index into CLASSES, NO_BOX for an empty slot
    tracks       [..., N] identity over time, NO_BOX for an empty slot
    night        [...] 0 by day, 1 by night (dusk between); NaN where unknown
    crowdedness  [...] number of vehicles in view; NaN where unknown
    known        [...] True where boxes are given; False says "unknown", which is not "no cars"
    travel       [...] metres the camera has driven forward since the clip began; NaN where unknown
    heading      [...] radians it has turned to the right since the clip began; NaN where unknown
    weather      [...] index into WEATHERS, NO_WEATHER where unknown
    speed        [...] m/s that the camera drives forward; NaN where unknown
    turn         [...] radians a second that it turns to the right; NaN where unknown
    steering     [...] radians of the steering wheel, positive to the left; NaN where unknown
    solids       [..., N, 5] of each box its SOLID: depth of the centre, length, width, height in metres, and yaw in
                 radians about the camera's y axis, 0 where the length lies along the view; NaN where unknown
    """

    boxes: Tensor
    classes: Tensor
    tracks: Tensor
    night: Tensor
    crowdedness: Tensor
    known: Tensor
    travel: Tensor
    heading: Tensor
    weather: Tensor
    speed: Tensor
    turn: Tensor
    steering: Tensor
    solids: Tensor

    @classmethod
    def unknown(cls, *leading: int, slots: int = 1) -> "Layout":
        """A layout that asks for nothing: the unconditional case."""
        none = torch.full((*leading, slots), NO_BOX, dtype=torch.long)
        labels = ("night", "crowdedness", "travel", "heading", "speed", "turn", "steering")
        return cls(
            torch.zeros(*leading, slots, 4),
            none,
            none.clone(),
            known=torch.zeros(leading).bool(),
            weather=torch.full(leading, NO_WEATHER),
            solids=torch.full((*leading, slots, len(SOLID)), float("nan")),
            **{name: torch.full(leading, float("nan")) for name in labels},
        )

    def driven(self, times_s: Tensor, speed_mps: float) -> "Layout":
        """The same, driven straight on at `speed_mps` where it is not known how. times_s [...] of every frame."""
        unknown = self.travel.isnan() | self.heading.isnan()
        return replace(
            self,
            travel=torch.where(unknown, times_s * speed_mps, self.travel),
            heading=torch.where(unknown, torch.zeros_like(self.heading), self.heading),
        )

    def moving(self, times_s: Tensor) -> "Layout":
        """The same with speed and turn where they are not known but the way driven is: its slope.

        times_s  [T] increasing seconds of the frames of this clip, [T]
        """
        if self.num_frames < 2:
            return self
        slopes = (torch.gradient(way, spacing=(times_s.to(way),))[0] for way in (self.travel, self.heading))
        speed, turn = (torch.where(k.isnan(), s, k) for k, s in zip((self.speed, self.turn), slopes, strict=True))
        return replace(self, speed=speed, turn=turn)

    def mirrored(self) -> "Layout":
        """The same drive seen in a mirror, left and right exchanged."""
        x1, y1, x2, y2 = self.boxes.unbind(-1)
        boxes = torch.stack([1 - x2, y1, 1 - x1, y2], -1)
        empty = (self.classes == NO_BOX)[..., None]
        return replace(
            self,
            boxes=torch.where(empty, self.boxes, boxes),
            heading=-self.heading,
            turn=-self.turn,
            steering=-self.steering,
            solids=torch.cat([self.solids[..., :-1], -self.solids[..., -1:]], -1),  # the yaw
        )

    def cropped(self, left: float, top: float, width: float, height: float) -> "Layout":
        """What a part of the picture shows, given in fractions of it.

        Boxes of which less than MIN_VISIBILITY is left are emptied; how many vehicles are in view is unknown then.
        """
        corner, size = self.boxes.new_tensor([left, top] * 2), self.boxes.new_tensor([width, height] * 2)
        moved = (self.boxes - corner) / size
        boxes = moved.clamp(0, 1)
        left_over = _area(boxes) / _area(moved).clamp_min(1e-9)
        gone = (left_over < MIN_VISIBILITY) | (self.classes == NO_BOX)
        return replace(
            self,
            boxes=boxes.masked_fill(gone[..., None], 0),
            classes=self.classes.masked_fill(gone, NO_BOX),
            tracks=self.tracks.masked_fill(gone, NO_BOX),
            solids=self.solids.masked_fill(gone[..., None], float("nan")),
            crowdedness=torch.full_like(self.crowdedness, float("nan")),
        )

    @property
    def num_frames(self) -> int:
        return self.night.shape[-1]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Layout":
        """Apply `function` to every tensor (indexing, moving to a device, stacking)."""
        return Layout(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def __getitem__(self, index) -> "Layout":
        """Index the leading dimensions: frames of a clip, clips of a batch."""
        return self.map(lambda tensor: tensor[index])

    def to(self, *args, **kwargs) -> "Layout":
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def pad(self, slots: int) -> "Layout":
        """Bring the box axis to `slots`: empty slots are added, or the smallest boxes of a frame left out."""
        missing = slots - self.classes.shape[-1]
        if missing < 0:
            keep = _area(self.boxes).masked_fill(self.classes == NO_BOX, -1).argsort(-1, descending=True)[..., :slots]
            boxes, solids = (
                of_box.gather(-2, keep[..., None].expand(*keep.shape, of_box.shape[-1]))
                for of_box in (self.boxes, self.solids)
            )
            classes, tracks = self.classes.gather(-1, keep), self.tracks.gather(-1, keep)
            return replace(self, boxes=boxes, classes=classes, tracks=tracks, solids=solids)

        def grow(t: Tensor) -> Tensor:
            return torch.nn.functional.pad(t, (0, missing), value=NO_BOX)

        boxes = torch.nn.functional.pad(self.boxes, (0, 0, 0, missing))
        solids = torch.nn.functional.pad(self.solids, (0, 0, 0, missing), value=float("nan"))
        return replace(self, boxes=boxes, classes=grow(self.classes), tracks=grow(self.tracks), solids=solids)

    def first(self, slots: int) -> "Layout":
        """The first `slots` boxes of each frame."""
        kept = {name: getattr(self, name)[..., :slots] for name in ("classes", "tracks")}
        return replace(self, boxes=self.boxes[..., :slots, :], solids=self.solids[..., :slots, :], **kept)

    @staticmethod
    def stack(layouts: Sequence["Layout"]) -> "Layout":
        """Stack layouts of equal shape along a new first dimension."""
        names = [f.name for f in fields(Layout)]
        return Layout(**{name: torch.stack([getattr(layout, name) for layout in layouts]) for name in names})

    @staticmethod
    def cat(layouts: Sequence["Layout"], dim: int = 0) -> "Layout":
        """Concatenate layouts along a leading dimension, frames one after the other say."""
        names = [f.name for f in fields(Layout)]
        return Layout(**{name: torch.cat([getattr(layout, name) for layout in layouts], dim) for name in names})


@dataclass(frozen=True)
class Clip:
    """A piece of video with its layout.

    video   [T, 3, H, W] in [-1, 1] (a batch: [B, T, 3, H, W])
    layout  leading dimensions [T] (a batch: [B, T])
    fps     frames a second
    name    where it comes from, for messages and captions
    """

    video: Tensor
    layout: Layout
    fps: float
    name: str = ""


def _area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...]"""
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def to_uint8(video: Tensor) -> Tensor:
    """[..., 3, H, W] in [-1, 1] -> uint8 of the same shape."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(video: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] -> float32 in [-1, 1]."""
    return video.float() / 127.5 - 1
