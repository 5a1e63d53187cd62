"""Least-squares filters for what a bicubic enlargement misses, one set for every kind of edge.

After Romano, Isidoro and Milanfar 2017, "RAISR": pixels are sorted by the direction, strength and coherence of the
brightness gradient around them, and each class gets the linear filters that best tell the full resolution from the low
one. Here they are sorted by their side of the edge too: how far a pixel is from dark to bright tells where in it the
edge runs, which no linear filter can use, and gives a further decibel. The filters are known in closed form within
seconds, and in them the upsampler is told how to undo the area average; diffusion starts from what is left.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIRECTIONS = 16  # classes of the direction, of half a turn
# Quantiles that part the other classes; of coherence and side, those of the pixels above the first strength.
STRENGTHS, COHERENCES, SIDES = (0.5, 0.8), (0.5,), (0.1, 0.3, 0.5, 0.7, 0.9)
NOISE = 0.01  # of pixels in [-1, 1]: the standard deviation of the noise that the ridge stands for
# Pull towards the filters of all classes together, in summed squares of neighbourhoods: what little was seen of a class
# does not overrule them. Fitted to 8 pictures instead of 64, the town gains 0.1 dB over a pull of 1.
RARE = 5.0


class EdgeFilters(nn.Module):
    """Filters from `size` x `size` low-resolution pixels, less the middle one, to `factor` x `factor` full ones."""

    strengths: Tensor
    coherences: Tensor
    sides: Tensor
    weight: Tensor

    def __init__(self, factor: int, size: int = 5) -> None:
        super().__init__()
        self.factor, self.size = factor, size
        classes = DIRECTIONS
        for name, shares in (("strengths", STRENGTHS), ("coherences", COHERENCES), ("sides", SIDES)):
            self.register_buffer(name, torch.zeros(len(shares)))
            classes *= len(shares) + 1
        self.register_buffer("weight", torch.zeros(classes, 3 * size**2, 3 * factor**2))

    @torch.no_grad()
    def forward(self, low: Tensor) -> Tensor:
        """low [N, 3, h, w] in [-1, 1] -> what is to be added to its bicubic enlargement, [N, 3, h·f, w·f]; before
        `fit` nothing."""
        if low.is_meta:  # shapes alone
            return low.new_empty(*low.shape[:2], *(self.factor * cells for cells in low.shape[2:]))
        with torch.autocast(low.device.type, enabled=False):  # differences of neighbours, and cheap as it is
            folded = torch.stack([self._filter(frame) for frame in low.float()])
        return F.pixel_shuffle(folded, self.factor)

    def _filter(self, frame: Tensor) -> Tensor:
        """[3, h, w] -> [3·f², h, w]; frame by frame, which bounds the memory of the neighbourhoods."""
        seen, order, counts = self._sorted(frame[None])
        made = [x @ self.weight[i] for i, x in enumerate(seen[order].split(counts)) if len(x)]
        return torch.cat(made)[order.argsort()].T.unflatten(1, frame.shape[1:])

    @torch.no_grad()
    def fit(self, low: Tensor, missing: Iterable[Tensor]) -> None:
        """Set the filters to the best ones for low [N, 3, h, w] in [-1, 1] and what the enlargement of each misses,
        N times [3, h·f, w·f]: ridge regression towards the best filters of all classes together."""
        self._fit_classes(low)
        inputs, outputs = self.weight.shape[1:]
        square = self.weight.new_zeros(len(self.weight), inputs, inputs, dtype=torch.float64)
        product = self.weight.new_zeros(len(self.weight), inputs, outputs, dtype=torch.float64)
        count = self.weight.new_zeros(len(self.weight), dtype=torch.float64)
        for frame, rest in zip(low, missing, strict=True):
            seen, order, counts = self._sorted(frame[None])
            wanted = F.pixel_unshuffle(rest, self.factor).flatten(1).T
            parts = zip(seen[order].split(counts), wanted[order].split(counts), strict=True)
            for i, (x, y) in enumerate(parts):
                square[i] += x.T @ x
                product[i] += x.T @ y
                count[i] += len(x)
        eye = torch.eye(inputs, dtype=torch.float64, device=square.device)
        shared = torch.linalg.solve(square.sum(0) + (count.sum() * NOISE**2 + RARE) * eye, product.sum(0))
        ridge = (count * NOISE**2 + RARE)[:, None, None]
        self.weight.copy_(torch.linalg.solve(square + ridge * eye, product + ridge * shared))

    def _fit_classes(self, low: Tensor) -> None:
        """Borders between the classes, of about equal shares of the pixels."""
        _, strength, coherence, side = gradients(low)
        self.strengths.copy_(_quantiles(strength, STRENGTHS))
        edge = strength > self.strengths[0]
        self.coherences.copy_(_quantiles(coherence[edge], COHERENCES))
        self.sides.copy_(_quantiles(side[edge], SIDES))

    def _sorted(self, low: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Neighbourhoods [n, 3·size²] of all pixels of low [N, 3, h, w], the order [n] that sorts them by class, and
        how many each class has."""
        near = F.pad(low, [self.size // 2] * 4, mode="replicate").unfold(2, self.size, 1).unfold(3, self.size, 1)
        seen = (near - low[..., None, None]).permute(0, 2, 3, 1, 4, 5).reshape(-1, self.weight.shape[1])
        kind = self.classes(low).flatten()
        return seen, kind.argsort(stable=True), kind.bincount(minlength=len(self.weight)).tolist()

    def classes(self, low: Tensor) -> Tensor:
        """Class [N, h, w] of every pixel of low [N, 3, h, w]."""
        direction, *others = gradients(low)
        kind = (direction * DIRECTIONS).round().long() % DIRECTIONS
        for values, borders in zip(others, (self.strengths, self.coherences, self.sides), strict=True):
            kind = kind * (len(borders) + 1) + torch.bucketize(values.contiguous(), borders)
        return kind


def gradients(low: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The brightness gradient over 3x3 pixels of low [N, 3, h, w], from the structure tensor's eigenvalues a >= b:

    direction  [N, h, w] in half turns, 0 to 1
    strength   sqrt(a + b)
    coherence  (a - b) / (a + b), 0 to 1
    side       how much brighter than its surroundings a pixel is, in gradients; its sign turned over where brightness
               falls along the direction, so that a picture and its negative are of the same classes
    """
    grey = low.mean(1, keepdim=True)
    near = F.pad(grey, [1] * 4, mode="replicate")
    x, y = (near[..., 1:-1, 2:] - near[..., 1:-1, :-2]) / 2, (near[..., 2:, 1:-1] - near[..., :-2, 1:-1]) / 2
    tensor = F.avg_pool2d(torch.cat([x * x, y * y, x * y], 1), 3, 1, 1, count_include_pad=False)
    xx, yy, xy = tensor.unbind(1)
    angle = (torch.atan2(2 * xy, xx - yy) / 2) % torch.pi
    strength = (xx + yy).sqrt()
    coherence = ((xx - yy) ** 2 + 4 * xy**2).sqrt() / (xx + yy + 1e-8)
    rising = torch.sign(x[:, 0] * angle.cos() + y[:, 0] * angle.sin())
    side = rising * (grey - F.avg_pool2d(near, 3, 1))[:, 0] / (strength + 1e-3)
    return angle / torch.pi, strength, coherence, side


def _quantiles(values: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Of at most a million evenly picked values, which is what torch's quantile can sort."""
    values = values.flatten()
    values = values[:: len(values) // 1_000_000 + 1]
    return torch.quantile(values, torch.tensor(shares, device=values.device))
