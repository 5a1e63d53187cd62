"""The conditions: each thing that a model can be told of a frame, by itself.

A condition knows its name, what it lays beside the latents (planes), what it says in the token of labels (numbers), and
how a layout looks that does not tell it. Which ones a model is told is one list in its config; each is dropped in
training at a rate of its own, so each can be given, left out or guided by itself in sampling.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from drivesim.clip import NO_BOX, NO_WEATHER, VEHICLES, Layout
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError

USUAL = ("boxes", "night", "crowdedness")  # what bundles were told that do not say what they were told
CODE = 24  # bits by which tracks are told apart
CODE_PLANES = 8  # of which are drawn
CROWD_SCALE = 10.0  # vehicles in view that count as 1
SPEED_SCALE_MPS = 10.0
TURN_SCALE = 0.2  # radians a second: 90 degrees in eight seconds
STEERING_SCALE = 3.0  # radians of the steering wheel: half a turn
NEAR_M = 10.0  # metres that count as a closeness of 1
CLOSEST = 2.0  # closeness at most


class Drawing:
    """What conditions draw from: a layout [...] with N slots on a grid of height x width cells."""

    def __init__(self, layout: Layout, height: int, width: int) -> None:
        self.layout, self.height, self.width = layout, height, width

    @cached_property
    def given(self) -> Tensor:
        """Slots that hold a box that is told, [..., N]."""
        return (self.layout.classes != NO_BOX) & self.layout.known[..., None]

    @cached_property
    def area(self) -> Tensor:
        """Share of each cell that each box covers, 0..1, [..., N, h, w]."""
        x1, y1, x2, y2 = self.layout.boxes.unbind(-1)
        return _cover(y1, y2, self.height)[..., :, None] * _cover(x1, x2, self.width)[..., None, :]

    def front(self, rank: Tensor, values: Tensor, told: Tensor) -> Tensor:
        """In each cell the values [..., N, K] of the box in front, the one with the highest rank [..., N] above 0 of
        those that are told [..., N]; 0 where there is none. [..., K, h, w]"""
        shown = (self.area > 0) & told[..., None, None]
        best = (shown * rank[..., None, None]).argmax(-3, keepdim=True)  # [..., 1, h, w]
        planes = (shown * value[..., None, None] for value in values.unbind(-1))
        return torch.cat([plane.gather(-3, best) for plane in planes], -3)

    def flat(self, value: Tensor) -> Tensor:
        """Numbers [...] constant over the picture, [..., h, w]."""
        return value[..., None, None].expand(*value.shape, self.height, self.width)


def _cover(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Share of each of so many equal parts of 0..1 that lies between low and high [..., N]: [..., N, cells]"""
    edge = torch.arange(cells, device=low.device) / cells
    end = torch.minimum(high[..., None], edge + 1 / cells)
    return ((end - torch.maximum(low[..., None], edge)) * cells).clamp(0, 1)


@dataclass(frozen=True)
class Condition:
    """One thing that a model may be told. Also what there is to say for one that says nothing.

    name      in config.denoiser.conditions, config.*.drop and guidance
    planes    how many it draws
    numbers   how many it says in the token of labels
    features  how many say what the mean picture looks like (models/prior.py)
    """

    name: str
    planes: int = 0
    numbers: int = 0
    features: int = 0
    needs: str = ""  # a condition that this one adds to

    def draw(self, drawing: Drawing) -> Tensor:
        """Planes [..., planes, h, w]."""
        return self.say(drawing.layout)[..., None, None].expand(
            *drawing.layout.night.shape, self.planes, drawing.height, drawing.width
        )

    def say(self, layout: Layout) -> Tensor:
        """Numbers [..., numbers] for the token of labels."""
        return layout.night.new_zeros(*layout.night.shape, self.numbers)

    def feature(self, planes: Tensor) -> Tensor:
        """[..., features] of what it drew, one cell of it: planes [..., planes]."""
        return planes[..., :0]

    def told(self, layout: Layout) -> Tensor:
        """Whether the layout tells it, bool [...]."""
        raise NotImplementedError

    def forget(self, layout: Layout, forgotten: Tensor) -> Layout:
        """The layout without it where forgotten, bool, of a shape that broadcasts to [...]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Label(Condition):
    """A number of the whole picture, NaN where unknown: (value, 1), or (0, 0). scaled = (value - middle) / scale"""

    middle: float = 0.0
    scale: float = 1.0

    def say(self, layout: Layout) -> Tensor:
        value = (getattr(layout, self.name) - self.middle) / self.scale
        return torch.stack([value.nan_to_num(0.0), (~value.isnan()).float()], -1)

    def feature(self, planes: Tensor) -> Tensor:
        return planes[..., : self.features]

    def told(self, layout: Layout) -> Tensor:
        return ~getattr(layout, self.name).isnan()

    def forget(self, layout: Layout, forgotten: Tensor) -> Layout:
        return replace(layout, **{self.name: getattr(layout, self.name).masked_fill(forgotten, float("nan"))})


@dataclass(frozen=True)
class Night(Label):
    """Dusk is no mean of day and night, so the mean picture also depends on the square."""

    def feature(self, planes: Tensor) -> Tensor:
        night, known = planes.unbind(-1)
        return torch.stack([night, night**2, known], -1)


@dataclass(frozen=True)
class Weather(Condition):
    """One of WEATHERS as a 1 among zeros; zeros alone where unknown."""

    def say(self, layout: Layout) -> Tensor:
        kinds = torch.arange(len(WEATHERS), device=layout.weather.device)
        return (layout.weather[..., None] == kinds).float()

    def feature(self, planes: Tensor) -> Tensor:
        return planes

    def told(self, layout: Layout) -> Tensor:
        return layout.weather != NO_WEATHER

    def forget(self, layout: Layout, forgotten: Tensor) -> Layout:
        return replace(layout, weather=layout.weather.masked_fill(forgotten, NO_WEATHER))


@dataclass(frozen=True)
class Boxes(Condition):
    """Where vehicles and people are in the picture.

    planes  vehicles and persons, share of the cell covered, 0..1; height of the largest covering vehicle, a cue for
            its distance; whether boxes are known
    """

    def draw(self, drawing: Drawing) -> Tensor:
        layout = drawing.layout
        vehicle = drawing.given & (layout.classes < len(VEHICLES))
        person = drawing.given & ~vehicle
        vehicles = drawing.area * vehicle[..., None, None]
        heights = (layout.boxes[..., 3] - layout.boxes[..., 1])[..., None, None]
        persons = drawing.area * person[..., None, None]
        drawn = [vehicles.amax(-3), persons.amax(-3), (vehicles * heights).amax(-3)]
        return torch.stack([*drawn, drawing.flat(layout.known.float())], -3)

    def say(self, layout: Layout) -> Tensor:
        return layout.known.float()[..., None]

    def told(self, layout: Layout) -> Tensor:
        return layout.known

    def forget(self, layout: Layout, forgotten: Tensor) -> Layout:
        return replace(layout, known=layout.known & ~forgotten)


@dataclass(frozen=True)
class Tracks(Condition):
    """Which box is which over time: bits of a code of its own for each track, +1 or -1.

    planes  some bits of the box in front: the one that reaches down furthest, as what is nearer does on a road
    """

    def draw(self, drawing: Drawing) -> Tensor:
        layout = drawing.layout
        bits = codes(layout.tracks)[..., :CODE_PLANES]
        return drawing.front(layout.boxes[..., 3], bits, drawing.given & (layout.tracks != NO_BOX))

    def told(self, layout: Layout) -> Tensor:
        return layout.known & (layout.tracks != NO_BOX).any(-1)

    def forget(self, layout: Layout, forgotten: Tensor) -> Layout:
        return replace(layout, tracks=layout.tracks.masked_fill(_box_wise(forgotten), NO_BOX))


@dataclass(frozen=True)
class Solids(Condition):
    """How boxes stand in space: how far away, how large, which way they look.

    planes  of the nearest box in a cell: closeness (10 m away is 1, at most 2), sine and cosine of its yaw
    """

    def draw(self, drawing: Drawing) -> Tensor:
        known = drawing.given & solid_known(drawing.layout)
        close = closeness(drawing.layout.solids[..., 0])
        yaw = drawing.layout.solids[..., -1].nan_to_num(0.0)
        return drawing.front(close, torch.stack([close, yaw.sin(), yaw.cos()], -1), known)

    def told(self, layout: Layout) -> Tensor:
        return layout.known & solid_known(layout).any(-1)

    def forget(self, layout: Layout, forgotten: Tensor) -> Layout:
        return replace(layout, solids=layout.solids.masked_fill(_box_wise(forgotten)[..., None], float("nan")))


def _box_wise(forgotten: Tensor) -> Tensor:
    return forgotten if forgotten.dim() == 0 else forgotten[..., None]


def solid_known(layout: Layout) -> Tensor:
    """Boxes of which all of SOLID is known, [..., N]."""
    return ~layout.solids.isnan().any(-1)


def closeness(depth_m: Tensor) -> Tensor:
    """NEAR_M / depth, at most CLOSEST; 0 where unknown."""
    return (NEAR_M / depth_m.clamp_min(NEAR_M / CLOSEST)).nan_to_num(0.0)


def codes(tracks: Tensor) -> Tensor:
    """Bits of tracks [...], +1 or -1, [..., CODE]; zeros for NO_BOX. A hash: numbers alike get codes that are not."""
    mixed = tracks
    for _ in range(2):
        mixed = ((mixed >> 16) ^ mixed) * 0x45D9F3B & 0xFFFFFFFF
    bits = ((mixed >> 16) ^ mixed)[..., None] >> torch.arange(CODE, device=tracks.device) & 1
    return (2.0 * bits - 1.0) * (tracks != NO_BOX)[..., None]


# In the order of their planes and numbers in a network: a new one goes to the end.
CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        Boxes("boxes", planes=4, numbers=1),
        Night("night", 2, 2, 3, middle=0.5, scale=0.5),
        Label("crowdedness", 2, 2, 2, scale=CROWD_SCALE),
        Weather("weather", len(WEATHERS), len(WEATHERS), len(WEATHERS)),
        Label("speed", 2, 2, scale=SPEED_SCALE_MPS),
        Label("turn", 2, 2, scale=TURN_SCALE),
        Label("steering", 2, 2, scale=STEERING_SCALE),
        Solids("solids", planes=3, needs="boxes"),
        Tracks("tracks", planes=CODE_PLANES, needs="boxes"),
    )
}


def chosen(names: Sequence[str]) -> list[Condition]:
    """Conditions by name, in the order of a network's planes. raises ValueError for unknown, doubled or lone names"""
    if unknown := [name for name in names if name not in CONDITIONS]:
        raise ValueError(f"unknown condition {unknown[0]!r}; known: {', '.join(CONDITIONS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"conditions are {', '.join(names)}; give each once")
    found = [condition for name, condition in CONDITIONS.items() if name in names]
    if lone := [condition for condition in found if condition.needs and condition.needs not in names]:
        raise ValueError(f"condition {lone[0].name} says more of {lone[0].needs}; add {lone[0].needs}")
    return found


def check_known(what: str, names: Iterable[str], have: Sequence[str]) -> None:
    """raises UserError if `what` asks for a condition that a model is not told"""
    if unknown := [name for name in names if name not in have]:
        raise UserError(f"{what}: this model is not told {unknown[0]}; it is told {', '.join(have) or 'nothing'}")


def without(layout: Layout, names: Iterable[str]) -> Layout:
    """The layout as if it did not tell these conditions."""
    for name in names:
        layout = CONDITIONS[name].forget(layout, torch.ones((), dtype=torch.bool, device=layout.night.device))
    return layout
