"""Temporal layers that align an image model into a video model (paper, section 3.1).

They are put in after the spatial layers of an unchanged network by forward hooks, so that the image network keeps its
class, its weights and the names of its weights: any checkpoint of that network is a backbone, and the temporal layers
are a file of their own. Frames travel folded into the batch, [B·T, C, H, W], in channels_last memory.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drivesim.models.cpu import GroupNorm, attend
from drivesim.models.motion import SceneFlow


@dataclass
class Run:
    """What the temporal layers need to know of the forward pass under way.

    frames    T, the number of frames folded into the batch
    features  context features by picture size (H, W) -> [B·T, K, H, W]; empty without context
    hint      [B·T, C, H, W] what the answer would be if unknown frames were the carried ones; None without context
    """

    frames: int
    features: dict[tuple[int, int], Tensor]
    hint: Tensor | None = None


def unfold_time(x: Tensor, frames: int) -> Tensor:
    """[B·T, C, H, W] -> [B, C, T, H·W], a view (no copy) when `x` is channels_last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).permute(0, 3, 1, 2)


def fold_time(x: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `unfold_time`."""
    b, c, t, _ = x.shape
    return x.permute(0, 2, 3, 1).reshape(b * t, height, width, c).permute(0, 3, 1, 2)


def sinusoidal(positions: Tensor, dim: int, period: float = 100.0) -> Tensor:
    """Sinusoidal embedding of positions [T] -> [T, dim]."""
    half = dim // 2
    frequencies = torch.exp(-math.log(period) * torch.arange(half, device=positions.device) / max(half - 1, 1))
    angles = positions[:, None].float() * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, dim - 2 * half))


class Merge(nn.Module):
    """alpha * z + (1 - alpha) * z', alpha in [0, 1] learned; at alpha = 1 the image network remains, bit for bit.

    Every temporal layer is a residual block, z' = z + change, so this is z + (1 - alpha) * change: one pass over memory
    where the terms one by one take four.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.logit(torch.tensor(alpha)))

    @property
    def alpha(self) -> Tensor:
        return torch.sigmoid(self.logit)

    def forward(self, spatial: Tensor, change: Tensor) -> Tensor:
        return torch.addcmul(spatial, change.to(spatial.dtype), (1 - self.alpha).to(spatial.dtype))


class TemporalConv(nn.Module):
    """Residual block of two 3D convolutions with kernel (3, 1, 1), conditioned on the known frames.

    A (3, 1, 1) convolution over [B, C, T, H, W] is a (3, 1) convolution over [B, C, T, H·W], which CPU and GPU kernels
    run several times faster (1.7 against 5.6 ms measured for two of them on one CPU), with no copy of the frames.
    """

    def __init__(self, channels: int, context_channels: int = 0, groups: int = 16) -> None:
        super().__init__()
        self.norm = GroupNorm(math.gcd(groups, channels), channels)
        self.conv_in = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv_out = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.context = nn.Conv2d(context_channels, channels, 1) if context_channels else None
        self.merge = Merge()
        nn.init.zeros_(self.conv_out.weight)  # the video network starts as the image network
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, z: Tensor, run: Run) -> Tensor:
        """z [B·T, C, H, W] -> same shape."""
        height, width = z.shape[-2:]
        if torch.is_grad_enabled() and not z.requires_grad:
            # Below a frozen network the first layer's input needs no gradient, and torch 2.13's channels_last group
            # norm on a CPU crashes in its backward pass when it has to leave that gradient out.
            z = z.detach().requires_grad_()
        x = unfold_time(z, run.frames)
        hidden = self.conv_in(F.silu(self.norm(x)))
        if self.context is not None and (height, width) in run.features:
            hidden = hidden + unfold_time(self.context(run.features[height, width]), run.frames)
        return self.merge(z, fold_time(self.conv_out(F.silu(hidden)), height, width))


class TemporalAttention(nn.Module):
    """Self-attention over time at every pixel, with sinusoidal positions."""

    def __init__(self, channels: int, head_dim: int = 32) -> None:
        super().__init__()
        # the most heads of at least `head_dim` channels that divide the width
        self.heads = next(n for n in range(max(channels // head_dim, 1), 0, -1) if channels % n == 0)
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.merge = Merge()
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, z: Tensor, run: Run) -> Tensor:
        """z [B·T, C, H, W] -> same shape."""
        n, c, h, w = z.shape
        t = run.frames
        x = z.permute(0, 2, 3, 1).reshape(n // t, t, h * w, c)
        positions = sinusoidal(torch.arange(t, device=z.device), c).to(z.dtype)
        qkv = self.to_qkv(self.norm(x) + positions[:, None])
        # [B, T, HW, 3, heads, d] -> 3 x [B·HW, heads, T, d]: time becomes the sequence, pixels the batch. One batch
        # axis, since torch has no fast kernel for two.
        q, k, v = qkv.view(n // t, t, h * w, 3, self.heads, c // self.heads).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        mixed = attend(q, k, v).unflatten(0, (n // t, h * w))
        out = self.to_out(mixed.permute(0, 3, 1, 2, 4).reshape(n // t, t, h * w, c))
        return self.merge(z, out.reshape(n, h, w, c).permute(0, 3, 1, 2))


class TemporalHead(nn.Module):
    """The last temporal layer, after the output convolution: it sees the features, the image model's answer and the
    known frames at full resolution, so what is known can reach the answer without passing the U-Net's bottleneck. The
    hint spares it the arithmetic from latents to velocity: where known frames were carried right, it is the answer,
    and a gate says, channel by channel, how far to trust it."""

    def __init__(self, features: int, channels: int, context_channels: int, groups: int = 16) -> None:
        super().__init__()
        hint = channels if context_channels else 0
        self.conv_in = nn.Conv2d(features + channels + context_channels + hint, features, 3, padding=1)
        self.time = TemporalConv(features, 0, groups)
        self.conv_out = nn.Conv2d(features, channels + hint, 3, padding=1)
        self.merge = Merge()
        self.context_channels = context_channels
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, z: Tensor, features: Tensor, run: Run) -> Tensor:
        """z [B·T, C, H, W] the image model's answer, features [B·T, F, H, W] what it was made from -> shape of z."""
        if not self.context_channels:
            return self.merge(z, self._hidden([features, z], run))
        size = z.shape[-2], z.shape[-1]
        context = run.features.get(size)
        if context is None:
            context = z.new_zeros(z.shape[0], self.context_channels, *size)
        hint = torch.zeros_like(z) if run.hint is None else run.hint.to(z.dtype)
        change, gate = self._hidden([features, z, context, hint], run).chunk(2, 1)
        return self.merge(z, change if run.hint is None else change + gate * (hint - z))

    def _hidden(self, parts: list[Tensor], run: Run) -> Tensor:
        hidden = F.silu(self.conv_in(torch.cat(parts, 1)))
        return self.conv_out(F.silu(self.time(hidden, run)))


class ContextEncoder(nn.Module):
    """The learned down-sampling that brings the known frames and their mask to every resolution (paper, section 3.2).

    The paper gives c_S = (m o z, m). Here the unknown frames are filled with the known ones carried there by the mean
    flow of driving (models/motion.py), and the mask still tells which are real: a temporal layer then finds the known
    content at the pixel of its own frame where it belongs instead of having to carry it through time and space.
    """

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(levels - 1))

    def forward(self, context: Tensor) -> dict[tuple[int, int], Tensor]:
        """[B·T, channels, H, W] -> features by size, halved from level to level."""
        x = F.silu(self.stem(context))
        features = {(x.shape[-2], x.shape[-1]): x}
        for conv in self.down:
            x = F.silu(conv(x))
            features[x.shape[-2], x.shape[-1]] = x
        return features


class TemporalLayers(nn.Module):
    """All temporal layers of one network, by the dotted name of the spatial layer they follow.

    sites    (name, module, channels, kind) with kind "conv", "attention" or "head"
    context  input channels of the context encoder, 0 for none
    levels   number of resolutions of the network
    """

    def __init__(
        self,
        sites: Iterable[tuple[str, nn.Module, int, str]],
        context: int,
        context_width: int,
        levels: int,
        groups: int = 16,
    ) -> None:
        super().__init__()
        width = context_width if context else 0
        self.context = ContextEncoder(context, context_width, levels) if context else None
        self.flow = SceneFlow() if context else None
        self.layers = nn.ModuleDict()
        self._run: Run | None = None
        for name, module, channels, kind in sites:
            key = name.replace(".", "_")
            if kind == "conv":
                self.layers[key] = TemporalConv(channels, width, groups)
            elif kind == "attention":
                self.layers[key] = TemporalAttention(channels)
            else:
                features = module.in_channels
                self.layers[key] = TemporalHead(features, channels, width, groups)  # type: ignore[arg-type]
            module.register_forward_hook(self._hook(key))

    def _hook(self, key: str):
        def after(module: nn.Module, inputs: tuple, output):
            if self._run is None:
                return None  # the image network by itself
            layer = self.layers[key]
            if isinstance(layer, TemporalHead):
                return layer(output, inputs[0], self._run)
            if isinstance(output, tuple):  # diffusers' transformers with return_dict=False
                return (layer(output[0], self._run), *output[1:])
            return layer(output, self._run)

        return after

    def encode(self, context: Tensor) -> dict[tuple[int, int], Tensor]:
        """Context features of known frames [B·T, channels, H, W]; they do not depend on the noise: once a window."""
        assert self.context is not None
        return self.context(context)

    def running(
        self, frames: int, features: dict[tuple[int, int], Tensor] | None = None, hint: Tensor | None = None
    ) -> "_Running":
        """A context manager: inside it the hooks are active, outside the network is the image network."""
        return _Running(self, Run(frames, features or {}, hint))

    def alphas(self) -> dict[str, float]:
        """The learned merge factor of every layer."""
        return {name: float(layer.merge.alpha) for name, layer in self.layers.items()}  # type: ignore[union-attr]


class _Running:
    def __init__(self, layers: TemporalLayers, run: Run) -> None:
        self.layers, self.run = layers, run

    def __enter__(self) -> None:
        self.layers._run = self.run

    def __exit__(self, *exception) -> None:
        self.layers._run = None
