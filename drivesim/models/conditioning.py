"""How a layout steers the image network: as planes laid beside the latents and as tokens for cross-attention."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from drivesim.clip import CLASSES, NO_BOX, VEHICLES, Layout
from drivesim.diffusion.draws import Generator, rand

PLANES = 8
POSITIONS = 4
CROWD_SCALE = 10.0  # vehicles in view that count as 1


def rasterise(layout: Layout, height: int, width: int) -> Tensor:
    """Draw a layout [...] as planes [..., PLANES, height, width].

    vehicles, persons   share of the cell covered by a box, 0..1
    vehicle size        height of the largest covering box, a cue for its distance
    boxes known, night (-1 day, 1 night), night known, crowdedness, crowdedness known    constant over the picture
    """

    def cover(low: Tensor, high: Tensor, cells: int) -> Tensor:  # [..., N] -> [..., N, cells]
        edge = torch.arange(cells, device=low.device) / cells
        return ((torch.minimum(high[..., None], edge + 1 / cells) - torch.maximum(low[..., None], edge)) * cells).clamp(
            0, 1
        )

    x1, y1, x2, y2 = layout.boxes.unbind(-1)
    area = cover(y1, y2, height)[..., :, None] * cover(x1, x2, width)[..., None, :]  # [..., N, h, w]
    given = (layout.classes != NO_BOX) & layout.known[..., None]
    vehicle = given & (layout.classes < len(VEHICLES))
    person = given & ~vehicle
    vehicles = area * vehicle[..., None, None]
    drawn = [
        vehicles.amax(-3),
        (area * person[..., None, None]).amax(-3),
        (vehicles * (y2 - y1)[..., None, None]).amax(-3),
    ]
    flat = [layout.known.float(), *_known(layout.night * 2 - 1), *_known(layout.crowdedness / CROWD_SCALE)]
    ones = torch.ones_like(drawn[0])
    return torch.stack([*drawn, *(value[..., None, None] * ones for value in flat)], -3)


def label_features(planes: Tensor) -> Tensor:
    """What the planes [B, T, P, h, w] of a layout say of the whole picture, for a mean that is linear in it: 1; night,
    its square, whether it is known; crowdedness, whether it is known. [B, T, 6]"""
    night, night_known, crowd, crowd_known = planes[:, :, PLANES - 4 : PLANES, 0, 0].unbind(-1)
    return torch.stack([torch.ones_like(night), night, night**2, night_known, crowd, crowd_known], -1)


def positions(height: int, width: int) -> Tensor:
    """Where a cell lies: y, x, y², x² of its middle, each axis from -1 to 1, [POSITIONS, height, width].

    A road is below and a sky above, in every picture. A convolution can only infer where it is from its padding, and
    where all is noise the place is the best guess there is.
    """
    y, x = ((torch.arange(cells) + 0.5) / cells * 2 - 1 for cells in (height, width))
    y, x = y[:, None].expand(height, width), x[None].expand(height, width)
    return torch.stack([y, x, y**2, x**2])


def _known(value: Tensor) -> tuple[Tensor, Tensor]:
    """NaN becomes (0, 0), a number (number, 1)."""
    return value.nan_to_num(0.0), (~value.isnan()).float()


class LayoutTokens(nn.Module):
    """Boxes and labels as tokens for cross-attention: Fourier features of the corners plus a class embedding."""

    FREQUENCIES = 6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(len(CLASSES) + 1, dim)  # the last is "no box"
        self.box = nn.Sequential(nn.Linear(4 * 2 * self.FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.labels = nn.Linear(5, dim)

    def forward(self, layout: Layout) -> Tensor:
        """Layout [...] with N slots -> tokens [..., N + 1, dim]."""
        scales = math.pi * 2.0 ** torch.arange(self.FREQUENCIES, device=layout.boxes.device)
        angles = (layout.boxes[..., None] * scales).flatten(-2)
        given = (layout.classes != NO_BOX) & layout.known[..., None]
        box = self.box(torch.cat([angles.sin(), angles.cos()], -1)) * given[..., None]
        tokens = box + self.classes(torch.where(given, layout.classes, len(CLASSES)))
        labels = [layout.known.float(), *_known(layout.night * 2 - 1), *_known(layout.crowdedness / CROWD_SCALE)]
        return torch.cat([tokens, self.labels(torch.stack(labels, -1))[..., None, :]], -2)


def drop(layout: Layout, boxes: float, labels: float, generator: Generator) -> Layout:
    """Forget the boxes, the night flag and the crowdedness of whole clips at random, each by itself: what is dropped
    in training can be left out, or guided, in sampling.

    layout  leading dimensions [B, T];  boxes, labels  probabilities
    """

    def keep(probability: float) -> Tensor:
        draw = rand((layout.night.shape[0], 1), generator).to(layout.night.device)
        return draw >= probability

    nan = torch.full_like(layout.night, float("nan"))
    return replace(
        layout,
        night=torch.where(keep(labels), layout.night, nan),
        crowdedness=torch.where(keep(labels), layout.crowdedness, nan),
        known=layout.known & keep(boxes),
    )
