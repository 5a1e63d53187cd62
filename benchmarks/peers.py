"""The published video U-Nets that ours is compared with, at any size.

diffusers' UNetSpatioTemporalConditionModel (Stable Video Diffusion: spatial and temporal residual blocks, attention),
UNetMotionModel (AnimateDiff: temporal attention alone) and UNet3DConditionModel (ModelScope: temporal convolutions,
attention). They keep their published layout: 4 levels, 2 layers a block, the size of their heads; widths are scaled to
a number of parameters, and attention is on all levels but the lowest, as published, or where ours has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from diffusers import (
    MotionAdapter,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn

from drivesim.errors import UserError

RATIO = (1, 2, 4, 4)  # published widths 320, 640, 1280, 1280
HEAD_DIM = 64  # of Stable Video Diffusion: 5, 10, 20, 20 heads
MATCH = 0.10  # parameters may differ by this share
PROBED = (64, 128, 256, 256)  # widths that tell how parameters grow
PUBLISHED = (True, True, True, False)  # attention by level, the highest resolution first
Widths = tuple[int, ...]


@dataclass(frozen=True)
class Ports:
    """What a network is connected to.

    channels   of the latents
    beside     channels laid beside the latents: layout, known frames
    token_dim  of the tokens for cross-attention
    frames     a clip may have
    attention  which of the four levels have attention
    """

    channels: int
    beside: int
    token_dim: int
    frames: int
    attention: tuple[bool, ...] = PUBLISHED

    def blocks(self, kind: str) -> dict[str, tuple[str, ...]]:
        """diffusers' names of the blocks: kind is what they end in."""
        return {
            "down_block_types": tuple(f"{'CrossAttn' * a}DownBlock{kind}" for a in self.attention),
            "up_block_types": tuple(f"{'CrossAttn' * a}UpBlock{kind}" for a in reversed(self.attention)),
        }

    def shared(self, kind: str, widths: Widths) -> dict:
        """The arguments that all of diffusers' U-Nets take alike."""
        return dict(in_channels=self.channels + self.beside, out_channels=self.channels, block_out_channels=widths,
                    cross_attention_dim=self.token_dim, **self.blocks(kind))  # fmt: skip


class Architecture:
    """One of the published networks, and how it is asked for the velocity of noisy latents.

    multiple  its widths are multiples of this, since group norms must divide them
    temporal  what the names of its temporal weights hold
    """

    name: str
    multiple: int
    temporal: tuple[str, ...]

    def build(self, ports: Ports, widths: Widths) -> nn.Module:
        raise NotImplementedError

    def call(self, module: nn.Module, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """x [B, T, channels + beside, h, w], timestep [B], tokens [B, T, N, D] -> [B, T, channels, h, w]."""
        raise NotImplementedError

    def image(self, ports: Ports, widths: Widths) -> nn.Module:
        """What is trained on single frames first. Here the video network itself, on clips of one frame."""
        return self.build(ports, widths)

    def video(self, image: nn.Module, ports: Ports, widths: Widths) -> nn.Module:
        """The video network that starts from a trained `image`."""
        return image

    def is_temporal(self, name: str) -> bool:
        return any(part in name for part in self.temporal)


class StableVideoDiffusion(Architecture):
    """Its group norms are fixed at 32 groups. Takes one set of tokens a clip: those of the first frame."""

    name, multiple, temporal = "svd", 32, ("temporal_", "time_mixer", "time_pos_embed")

    def build(self, ports: Ports, widths: Widths) -> nn.Module:
        return UNetSpatioTemporalConditionModel(  # type: ignore[return-value]
            **ports.shared("SpatioTemporal", widths), num_attention_heads=heads(widths), num_frames=ports.frames
        )

    def call(self, module: nn.Module, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        ids = x.new_zeros(len(x), 3)  # frame rate, motion and augmentation level
        return module(x, timestep, tokens[:, 0], ids, return_dict=False)[0]


class AnimateDiff(Architecture):
    """Temporal attention after every block, no temporal convolution; starts from an image U-Net."""

    name, multiple, temporal = "animatediff", 8, ("motion_modules",)

    def build(self, ports: Ports, widths: Widths) -> nn.Module:
        return UNetMotionModel(  # type: ignore[return-value]
            **ports.shared("Motion", widths), norm_num_groups=8, num_attention_heads=heads(widths),
            motion_num_attention_heads=heads(widths), motion_max_seq_length=max(32, ports.frames),
        )  # fmt: skip

    def call(self, module: nn.Module, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        if isinstance(module, UNet2DConditionModel):
            out = module(x.flatten(0, 1), timestep.repeat_interleave(x.shape[1]), tokens.flatten(0, 1)).sample
            return out.unflatten(0, x.shape[:2])
        return module(x.transpose(1, 2), timestep, tokens.flatten(0, 1), return_dict=False)[0].transpose(1, 2)

    def image(self, ports: Ports, widths: Widths) -> nn.Module:
        return UNet2DConditionModel(  # type: ignore[return-value]
            **ports.shared("2D", widths), norm_num_groups=8, attention_head_dim=heads(widths)
        )

    def video(self, image: nn.Module, ports: Ports, widths: Widths) -> nn.Module:
        adapter = MotionAdapter(
            block_out_channels=widths, motion_num_attention_heads=heads(widths),
            motion_norm_num_groups=8, motion_max_seq_length=max(32, ports.frames),
        )  # fmt: skip
        module = UNetMotionModel.from_unet2d(image, adapter)
        for name, parameter in module.named_parameters():
            if "motion_modules" in name and ".proj_out." in name:
                nn.init.zeros_(parameter)  # as published: the video network starts as the image network
        return module


class ModelScope(Architecture):
    """Four temporal convolutions after every residual block, temporal attention after every spatial one. Takes one set
    of tokens a clip."""

    name, multiple, temporal = "modelscope", 8, ("temp_convs", "temp_attentions", "transformer_in")

    def build(self, ports: Ports, widths: Widths) -> nn.Module:
        head = min(HEAD_DIM, widths[0])
        module: Any = UNet3DConditionModel(
            **ports.shared("3D", widths), norm_num_groups=8, attention_head_dim=head  # one head size for all levels
        )  # fmt: skip
        # diffusers fixes 8 heads at the input whatever the width, which at 320 channels are 1.6 times as many channels.
        count = max(round(1.6 * widths[0] / head), 1)
        entry = TransformerTemporalModel(count, head, in_channels=widths[0], num_layers=1, norm_num_groups=8)
        module.transformer_in = entry
        return module

    def call(self, module: nn.Module, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        return module(x.transpose(1, 2), timestep, tokens[:, 0], return_dict=False)[0].transpose(1, 2)


PEERS: tuple[Architecture, ...] = (StableVideoDiffusion(), AnimateDiff(), ModelScope())


def attention_like(ours: Sequence[bool]) -> tuple[bool, ...]:
    """Attention at the resolutions where a network of ours has it, for the four levels of a peer."""
    return tuple([*ours, *(False,) * len(RATIO)][: len(RATIO)])


@cache
def match(architecture: Architecture, ports: Ports, parameters: int) -> Widths:
    """Widths nearest to RATIO among those that give the number of parameters within MATCH. The number of frames a clip
    changes no parameter.

    raises  UserError when there are none
    """
    # Parameters grow with the square of the width: one network tells where to look.
    centre = PROBED[3] * (parameters / size(architecture, ports, PROBED)) ** 0.5

    def off(widths: Widths) -> tuple[float, float]:
        ratio = sum(abs(w / widths[3] - r / RATIO[3]) for w, r in zip(widths, RATIO, strict=True))
        return round(ratio, 3), abs(widths[3] - centre)

    for widths in sorted(candidates(centre, architecture.multiple), key=off):
        if abs(size(architecture, ports, widths) / parameters - 1) <= MATCH:
            return widths
    raise UserError(
        f"no widths of a peer give {parameters / 1e6:.1f} M parameters within {MATCH:.0%}; "
        "change config.denoiser.block_out_channels"
    )


def size(architecture: Architecture, ports: Ports, widths: Widths) -> int:
    """Number of parameters, counted without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in architecture.build(ports, widths).parameters())


def candidates(centre: float, multiple: int) -> set[Widths]:
    """Ascending widths around RATIO, the widest within 40 % of `centre`."""

    def around(value: float) -> list[int]:
        return [w for w in (round_to(value, multiple) + shift for shift in (-multiple, 0, multiple)) if w > 0]

    tops = range(max(round_to(0.6 * centre, multiple), multiple), round_to(1.4 * centre, multiple) + 1, multiple)
    found = (w for top in tops for w in product(around(top / 4), around(top / 2), around(top), [top]))
    return {w for w in found if list(w) == sorted(w)}


def round_to(value: float, multiple: int) -> int:
    return int(value / multiple + 0.5) * multiple


def heads(widths: Widths) -> tuple[int, ...]:
    """The most heads of at least HEAD_DIM channels that divide each width: the published head size, kept."""
    return tuple(next(n for n in range(max(w // HEAD_DIM, 1), 0, -1) if w % n == 0) for w in widths)


def guard(module: nn.Module) -> nn.Module:
    """Have torch 2.13's channels_last group norm on a CPU compute the gradient of its input even where nobody wants it,
    below a frozen network: leaving it out crashes."""

    def wanted(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and norm.weight.requires_grad and not inputs[0].requires_grad:
            return (inputs[0].detach().requires_grad_(), *inputs[1:])
        return inputs

    for norm in module.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.register_forward_pre_hook(wanted)
    return module
