"""How a layout steers the image network: as planes laid beside the latents and as tokens for cross-attention.

Which conditions there are, and what each says, is in models/conditions.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from drivesim.clip import CLASSES, NO_BOX, SOLID, Layout
from drivesim.diffusion.draws import Generator, rand
from drivesim.models.conditions import CODE, CONDITIONS, USUAL, Boxes, Drawing, chosen, closeness, codes, solid_known
from drivesim.models.conditions import CROWD_SCALE as CROWD_SCALE

POSITIONS = 4
TRACK_NUMBERS = 2**31 + 11  # prime; tracks are below it


def plane_count(conditions: Sequence[str] = USUAL) -> int:
    """Planes of a layout told by these conditions, positions not counted."""
    return sum(condition.planes for condition in chosen(conditions))


PLANES = plane_count()


def rasterise(layout: Layout, height: int, width: int, conditions: Sequence[str] = USUAL) -> Tensor:
    """Draw a layout [...] as planes [..., plane_count, height, width], those of each condition in turn."""
    drawing = Drawing(layout, height, width)
    drawn = [condition.draw(drawing) for condition in chosen(conditions)]
    return torch.cat([layout.boxes.new_zeros(*layout.night.shape, 0, height, width), *drawn], -3)


def feature_count(conditions: Sequence[str] = USUAL) -> int:
    """Of `label_features`."""
    return 1 + sum(condition.features for condition in chosen(conditions))


def label_features(planes: Tensor, conditions: Sequence[str] = USUAL) -> Tensor:
    """What the planes [B, T, P, h, w] of a layout say of the whole picture, for a mean that is linear in it: 1; night,
    its square, whether it is known; crowdedness, whether it is known; and so on. [B, T, feature_count]"""
    parts, at = planes[..., 0, 0], 0
    features = [torch.ones_like(parts[..., :1])]
    for condition in chosen(conditions):
        features.append(condition.feature(parts[..., at : at + condition.planes]))
        at += condition.planes
    return torch.cat(features, -1)


def positions(height: int, width: int) -> Tensor:
    """Where a cell lies: y, x, y², x² of its middle, each axis from -1 to 1, [POSITIONS, height, width].

    A road is below and a sky above, in every picture. A convolution can only infer where it is from its padding, and
    where all is noise the place is the best guess there is.
    """
    y, x = ((torch.arange(cells) + 0.5) / cells * 2 - 1 for cells in (height, width))
    y, x = y[:, None].expand(height, width), x[None].expand(height, width)
    return torch.stack([y, x, y**2, x**2])


class LayoutTokens(nn.Module):
    """Boxes and labels as tokens for cross-attention: one of each box, Fourier features of the corners plus a class
    embedding, plus what further conditions say of the box; and one of what is told of the whole picture."""

    FREQUENCIES = 6

    def __init__(self, dim: int, conditions: Sequence[str] = USUAL) -> None:
        super().__init__()
        self.conditions = chosen(conditions)
        self.boxes = any(isinstance(condition, Boxes) for condition in self.conditions)
        if self.boxes:
            self.classes = nn.Embedding(len(CLASSES) + 1, dim)  # the last is "no box"
            self.box = nn.Sequential(nn.Linear(4 * 2 * self.FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        numbers = sum(condition.numbers for condition in self.conditions)
        self.labels = nn.Linear(max(numbers, 1), dim)
        self.solid = nn.Linear(len(SOLID) + 2, dim) if "solids" in conditions else None
        self.track = nn.Linear(CODE, dim, bias=False) if "tracks" in conditions else None

    def forward(self, layout: Layout) -> Tensor:
        """Layout [...] with N slots -> tokens [..., N + 1, dim]; [..., 1, dim] without boxes."""
        nothing = layout.night.new_zeros(*layout.night.shape, 0 if self.conditions else 1)
        said = torch.cat([nothing, *(condition.say(layout) for condition in self.conditions)], -1)
        labels = self.labels(said)[..., None, :]
        return torch.cat([self._boxes(layout), labels], -2) if self.boxes else labels

    def _boxes(self, layout: Layout) -> Tensor:
        scales = math.pi * 2.0 ** torch.arange(self.FREQUENCIES, device=layout.boxes.device)
        angles = (layout.boxes[..., None] * scales).flatten(-2)
        given = (layout.classes != NO_BOX) & layout.known[..., None]
        box = self.box(torch.cat([angles.sin(), angles.cos()], -1)) * given[..., None]
        tokens = box + self.classes(torch.where(given, layout.classes, len(CLASSES)))
        if self.solid is not None:
            tokens = tokens + self.solid(solid_numbers(layout)) * (given & solid_known(layout))[..., None]
        if self.track is not None:
            tokens = tokens + self.track(codes(layout.tracks)) * given[..., None]
        return tokens


def solid_numbers(layout: Layout) -> Tensor:
    """What a token says of a box in space, [..., N, 7]: log of the depth, closeness, log of length, width, height,
    sine and cosine of the yaw; finite also where unknown."""
    solids = layout.solids.nan_to_num(1.0)
    depth, *size, yaw = solids.unbind(-1)
    logs = [metres.clamp_min(0.1).log() for metres in (depth, *size)]
    return torch.stack([logs[0], closeness(depth), *logs[1:], yaw.sin(), yaw.cos()], -1)


def drop(layout: Layout, rates: Mapping[str, float], generator: Generator) -> Layout:
    """Forget conditions of whole clips at random, each by itself: what is dropped in training can be left out, or
    guided, in sampling. Tracks that are told get other numbers, the same over a clip, so that none means anything.

    layout  leading dimensions [B, T];  rates  probability by name of the condition
    """

    def draw() -> Tensor:
        return rand((layout.night.shape[0], 1), generator).to(layout.night.device)

    # Boxes last, as before there were others: an experiment of then draws what it drew.
    for name in sorted(rates, key=lambda name: name == "boxes"):
        layout = CONDITIONS[name].forget(layout, draw() < rates[name])
    if "tracks" in rates:
        layout = renumbered(layout, *((draw() * (TRACK_NUMBERS - 1)).long() + 1 for _ in range(2)))
    return layout


def renumbered(layout: Layout, factor: Tensor, offset: Tensor) -> Layout:
    """Other numbers for the tracks, different ones for different tracks. factor, offset [B, 1], 1..TRACK_NUMBERS - 1"""
    tracks = (layout.tracks * factor[..., None] + offset[..., None]) % TRACK_NUMBERS
    return replace(layout, tracks=torch.where(layout.tracks == NO_BOX, NO_BOX, tracks))
