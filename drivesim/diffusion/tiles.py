"""Pictures in tiles and videos in portions that overlap and share one noise.

At every step of sampling their predictions are averaged where they overlap, so that no border is left to see (after
Bar-Tal et al. 2023, "MultiDiffusion"). The activations of a network, many times larger than a picture, are those of one
tile of one portion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drivesim.diffusion.sampler import Denoise
from drivesim.errors import UserError


@dataclass(frozen=True)
class Crop:
    """Rows top to bottom and columns left to right of a picture of height x width. Of anything that shows the same in
    more cells, latents or the full resolution, it is the same part."""

    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int

    def of(self, x: Tensor) -> Tensor:
        """The part of x [..., H, W], a view."""
        height, width = x.shape[-2:]
        rows = slice(self.top * height // self.height, self.bottom * height // self.height)
        columns = slice(self.left * width // self.width, self.right * width // self.width)
        return x[..., rows, columns]


class Tiles:
    """Overlapping crops that cover a picture of height x width, with smooth windows that add up to 1 everywhere.

    tile     rows and columns of a crop at most (the last may be up to `align` longer); 0: the whole picture
    overlap  neighbours share this or more, rounded to `align`
    align    crops begin at multiples of it, so that a network that halves its grid halves that of every crop alike
    raises   UserError for a tile that is not larger than the overlap, or no multiple of `align`
    """

    def __init__(self, height: int, width: int, tile: int = 0, overlap: int = 0, align: int = 1) -> None:
        if tile and (tile % align or tile < 0):
            raise UserError(f"upsample_tile={tile}, expected a multiple of {align}, the steps of the upsampler's grid")
        if tile and not 0 <= overlap < tile:
            raise UserError(f"upsample_overlap={overlap}, expected 0 to less than upsample_tile={tile}")
        self.height, self.width = height, width
        self.rows = intervals(height, tile or height, overlap, align)
        self.columns = intervals(width, tile or width, overlap, align)

    def blend(self, predict: Callable[[Crop], Tensor]) -> Tensor:
        """The weighted average [..., H, W] of what `predict` says of every crop. A picture of one crop is what is said
        of it, bit for bit."""
        crops = [Crop(*y, *x, self.height, self.width) for y in self.rows for x in self.columns]
        part = predict(crops[0])
        if len(crops) == 1:
            return part
        scale = part.shape[-1] / (crops[0].right - crops[0].left)
        down, across = windows(self.rows, self.height, scale), windows(self.columns, self.width, scale)
        weights = [y[:, None] * x for y in down for x in across]
        whole = part.new_zeros(*part.shape[:-2], round(self.height * scale), round(self.width * scale))
        for crop, weight in zip(crops, weights, strict=True):
            part = predict(crop) if crop is not crops[0] else part
            crop.of(whole).add_(part * weight.to(part))
        return whole


def intervals(size: int, tile: int, overlap: int, align: int) -> list[tuple[int, int]]:
    """Intervals of `tile`, evenly spread over 0..size, that begin at multiples of `align`."""
    if tile >= size:
        return [(0, size)]
    count = math.ceil((size - overlap) / (tile - overlap))
    starts = sorted({i * (size - tile) // (count - 1) // align * align for i in range(count)})
    return [(start, start + tile) for start in starts[:-1]] + [(starts[-1], size)]


def windows(parts: list[tuple[int, int]], size: int, scale: float) -> list[Tensor]:
    """For each interval of 0..size its weights [length · scale]: 1 where it is alone, sin² from 0 to 1 across what it
    shares with the one before, and the rest of 1 there for that one."""
    places = (torch.arange(round(size * scale)) + 0.5) / scale
    raised = torch.zeros(len(parts), len(places))
    for i, (start, end) in enumerate(parts):
        inside = (places > start) & (places < end)
        raised[i, inside] = 1.0
        if i and (shared := parts[i - 1][1] - start) > 0:
            raised[i] *= torch.sin(math.pi / 2 * ((places - start) / shared).clamp(0, 1)) ** 2
        if i + 1 < len(parts) and (shared := end - parts[i + 1][0]) > 0:
            raised[i] *= torch.sin(math.pi / 2 * ((end - places) / shared).clamp(0, 1)) ** 2
    raised /= raised.sum(0)
    return [raised[i, round(start * scale) : round(end * scale)] for i, (start, end) in enumerate(parts)]


class Stitch:
    """Portions of a video, `portion` frames each, that overlap by `overlap` frames, sampled one after the other.

    The predictions for the frames at the end of a portion are kept, one a step, and averaged into those of the next
    portion for the same frames, whose noise is the same. A deterministic sampler is linear in them: what comes out is
    the cross-fade of both portions, and the frames after it were made beside it. Kept are `overlap` frames a step.

    raises  UserError for a portion that is not longer than the overlap
    """

    def __init__(self, portion: int, overlap: int) -> None:
        if not 0 <= overlap < portion:
            raise UserError(f"upsample_portion_overlap={overlap}, expected 0 to less than upsample_portion={portion}")
        self.overlap = overlap
        self.before: list[Tensor] = []  # [B, overlap, C, h, w] a step, of the portion before

    def join(self, denoise: Denoise) -> Denoise:
        """`denoise` for the next portion; its calls must come in the order of those for the portion before."""
        if not self.overlap:
            return denoise
        before, self.before = iter(self.before), []
        fade = (torch.arange(self.overlap) + 1) / (self.overlap + 1)  # from the portion before to this one

        def joined(x: Tensor, timestep: Tensor) -> Tensor:
            made = denoise(x, timestep)
            if (old := next(before, None)) is not None:
                weight = fade.to(made)[:, None, None, None]
                made = torch.cat([torch.lerp(old, made[:, : self.overlap], weight), made[:, self.overlap :]], 1)
            self.before.append(made[:, -self.overlap :].clone())
            return made

        return joined
