"""Changes of training windows that leave them drives: mirrored, a part enlarged, other colours.

What is drawn is drawn once a window, so all its frames change alike.
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from drivesim.clip import Layout
from drivesim.config import option
from drivesim.errors import UserError

HUE_TURNS = 0.25  # hue moves by this much of a turn where brightness changes by all of it, as is customary


@dataclass
class AugmentConfig:
    """All off by default: mirrored, cars drive on the other side of the road and no letter can be read, and a part
    enlarged is less sharp than what the camera saw."""

    flip: float = option(0.0, "share of the windows that are mirrored left to right")
    crop: float = option(1.0, "smallest part of height and width that is enlarged to the whole; 1: none; pixels only")
    jitter: float = option(0.0, "most that brightness, contrast, saturation change, hue a quarter of it; pixels only")

    def check(self, name: str, pixels: bool) -> None:
        """raises UserError for values that cannot work; `name` is where they are given, `pixels` false for latents"""
        found = f"{name}.flip={self.flip}, crop={self.crop}, jitter={self.jitter}"
        if not (0 <= self.flip <= 1 and 0 < self.crop <= 1 and 0 <= self.jitter <= 1):
            raise UserError(f"{found}; expected 0 <= flip <= 1, 0 < crop <= 1, 0 <= jitter <= 1")
        if not pixels and (self.crop < 1 or self.jitter > 0):
            raise UserError(
                f"{found}; this stage trains on latents, which can be mirrored only: expected crop=1, jitter=0"
            )


def change_pixels(config: AugmentConfig, x: Tensor, layout: Layout, rng: np.random.Generator) -> tuple[Tensor, Layout]:
    """Crop and colours of a window. x [T, 3, H, W] in [-1, 1], layout [T]; the same `rng` gives the same change."""
    if config.crop < 1:
        x, layout = crop(x, layout, float(rng.uniform(config.crop, 1)), *rng.random(2).tolist())
    if config.jitter:
        brightness, contrast, saturation = (1 + config.jitter * rng.uniform(-1, 1, 3)).tolist()
        x = recolour(x, brightness, contrast, saturation, HUE_TURNS * config.jitter * rng.uniform(-1, 1))
    return x, layout


def crop(x: Tensor, layout: Layout, size: float, down: float, right: float) -> tuple[Tensor, Layout]:
    """A part of every frame, enlarged to the whole; boxes follow.

    size         part of height and width that is kept, 0..1, so the aspect stays
    down, right  where it lies within what is left over, 0..1
    """
    height, width = x.shape[-2:]
    h, w = max(round(size * height), 1), max(round(size * width), 1)
    top, left = round(down * (height - h)), round(right * (width - w))
    part = x[..., top : top + h, left : left + w]
    enlarged = F.interpolate(part, (height, width), mode="bicubic", align_corners=False).clamp(-1, 1)
    return enlarged, layout.cropped(left / width, top / height, w / width, h / height)


def recolour(x: Tensor, brightness: float, contrast: float, saturation: float, hue_turns: float) -> Tensor:
    """x [T, 3, H, W] in [-1, 1] with its colours changed as torchvision's ColorJitter does, in this order.

    Factors, 1 leaves as it is; contrast is about the mean of all frames, else it would flicker. hue_turns: -0.5..0.5
    """
    from kornia import enhance  # a second, and nobody else needs it

    frames = len(x)
    tall = ((x + 1) / 2).transpose(0, 1).flatten(1, 2)[None]  # [1, 3, T H, W]: one picture has one mean
    tall = enhance.adjust_brightness_accumulative(tall, brightness)
    tall = enhance.adjust_contrast_with_mean_subtraction(tall, contrast)
    tall = enhance.adjust_saturation_with_gray_subtraction(tall, saturation)
    tall = enhance.adjust_hue(tall, 2 * np.pi * hue_turns)
    return tall[0].unflatten(1, (frames, -1)).transpose(0, 1).contiguous() * 2 - 1
