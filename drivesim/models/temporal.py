"""Temporal layers that align an image model into a video model (paper, section 3.1); inflation.py puts them in.

Frames travel folded into the batch, [B·T, C, H, W], in channels_last memory.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import Attention, FeedForward
from torch import Tensor, nn

from drivesim.models.cpu import AttentionProcessor, GroupNorm, attend


@dataclass
class Run:
    """What the temporal layers need to know of the forward pass under way.

    frames     T, the number of frames folded into the batch
    features   context features by picture size (H, W) -> [B·T, K, H, W]; empty without context
    hint       [B·T, C, H, W] what the answer would be if unknown frames were the carried ones; None without context
    tokens     [B·T, N, D] that the image network attends to, or None
    embedding  [B·T, E] the image network's embedding of the noise level; set on the way, where a layer wants it
    """

    frames: int
    features: dict[tuple[int, int], Tensor]
    hint: Tensor | None = None
    tokens: Tensor | None = None
    embedding: Tensor | None = None


def unfold_time(x: Tensor, frames: int) -> Tensor:
    """[B·T, C, H, W] -> [B, C, T, H·W], a view (no copy) when `x` is channels_last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).permute(0, 3, 1, 2)


def fold_time(x: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `unfold_time`."""
    b, c, t, _ = x.shape
    return x.permute(0, 2, 3, 1).reshape(b * t, height, width, c).permute(0, 3, 1, 2)


def to_rows(z: Tensor, frames: int) -> Tensor:
    """[B·T, C, H, W] -> [B, T, H·W, C], a view when `z` is channels_last."""
    n, c, h, w = z.shape
    return z.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c)


def from_rows(x: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `to_rows`, for z of `shape`."""
    n, c, h, w = shape
    return x.reshape(n, h, w, c).permute(0, 3, 1, 2)


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

    frames  0: one alpha; else one for each frame of a clip of at most so many
    """

    def __init__(self, frames: int = 0, alpha: float = 0.5) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.logit(torch.full((max(frames, 1),), alpha)))

    @property
    def alpha(self) -> Tensor:
        return torch.sigmoid(self.logit)

    def forward(self, spatial: Tensor, change: Tensor, frames: int) -> Tensor:
        """Both [B·T, C, H, W] of clips of `frames` frames -> same shape."""
        share = (1 - self.alpha).to(spatial.dtype)
        if len(share) > 1:
            share = share[:frames].repeat(len(spatial) // frames).view(-1, 1, 1, 1)
        return torch.addcmul(spatial, change.to(spatial.dtype), share)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """A single alpha was a scalar once; only what has an axis can be shared out over processes."""
        if (name := f"{prefix}logit") in state_dict:
            state_dict[name] = state_dict[name].reshape(-1)
        super()._load_from_state_dict(state_dict, prefix, *args)


class TemporalConv(nn.Module):
    """Residual block of two 3D convolutions with kernel (3, 1, 1), conditioned on the known frames and, with
    `embedding` channels of it, on the noise level.

    A (3, 1, 1) convolution over [B, C, T, H, W] is a (3, 1) convolution over [B, C, T, H·W], which CPU and GPU kernels
    run several times faster (1.7 against 5.6 ms measured for two of them on one CPU), with no copy of the frames.
    """

    def __init__(
        self, channels: int, context_channels: int = 0, groups: int = 16, embedding: int = 0, merge_frames: int = 0
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(math.gcd(groups, channels), channels)
        self.conv_in = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv_out = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.context = nn.Conv2d(context_channels, channels, 1) if context_channels else None
        self.embedding = nn.Linear(embedding, channels) if embedding else None
        self.merge = Merge(merge_frames)
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
        if self.embedding is not None and run.embedding is not None:
            told = self.embedding(F.silu(run.embedding)).unflatten(0, (-1, run.frames))  # [B, T, C]
            hidden = hidden + told.transpose(1, 2)[..., None]
        return self.merge(z, fold_time(self.conv_out(F.silu(hidden)), height, width), run.frames)


class TemporalAttention(nn.Module):
    """Self-attention over time at every pixel.

    positions     sinusoidal: added to what attends; relative: sinusoidal of the distance of two frames, learned keys of
                  it added to those of the frames (paper, appendix D: text-to-video), so that a clip of any length can
                  be made
    max_distance  frames further apart do not see each other, which makes the layer a convolution in time; 0: all do
    context_channels  of the known frames' features, where no convolution brings them in; else 0
    """

    def __init__(
        self,
        channels: int,
        head_dim: int = 32,
        positions: str = "sinusoidal",
        max_distance: int = 0,
        merge_frames: int = 0,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        # the most heads of at least `head_dim` channels that divide the width
        self.heads = next(n for n in range(max(channels // head_dim, 1), 0, -1) if channels % n == 0)
        self.max_distance = max_distance
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.relative: nn.Module | None = None
        if positions == "relative":
            self.relative = nn.Linear(channels, channels, bias=False)
        self.context = nn.Linear(context_channels, channels) if context_channels else None
        self.merge = Merge(merge_frames)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, z: Tensor, run: Run) -> Tensor:
        """z [B·T, C, H, W] -> same shape."""
        x = self._told(self.norm(to_rows(z, run.frames)), z, run)
        if self.relative is None:
            x = x + sinusoidal(torch.arange(run.frames, device=z.device), x.shape[-1]).to(z.dtype)[:, None]
        return self.merge(z, from_rows(self.attention(x), z.shape), run.frames)

    def _told(self, x: Tensor, z: Tensor, run: Run) -> Tensor:
        """x, the rows of z, with what is known of the frames added."""
        size = z.shape[-2], z.shape[-1]
        if self.context is None or size not in run.features:
            return x
        return x + self.context(to_rows(run.features[size], run.frames))

    def attention(self, x: Tensor) -> Tensor:
        """Every pixel's frames attend to each other, [B, T, H·W, C] -> same shape."""
        b, t, pixels, c = x.shape
        # [B, T, HW, 3, heads, d] -> 3 x [B·HW, heads, T, d]: time becomes the sequence, pixels the batch. One batch
        # axis, since torch has no fast kernel for two.
        qkv = self.to_qkv(x).view(b, t, pixels, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        mixed = attend(q, k, v, self._bias(q)).unflatten(0, (b, pixels))
        return self.to_out(mixed.permute(0, 3, 1, 2, 4).reshape(b, t, pixels, c))

    def _bias(self, q: Tensor) -> Tensor | None:
        """What distance adds to the products of queries [N, heads, T, d] and keys: [N, heads, T, T], or [T, T]."""
        if self.relative is None and not self.max_distance:
            return None
        t, d = q.shape[-2:]
        apart = torch.arange(t, device=q.device)[:, None] - torch.arange(t, device=q.device)  # [T, T]
        bias = q.new_zeros(t, t)
        if self.relative is not None:
            keys = self.relative(sinusoidal(apart.flatten(), self.heads * d).to(q.dtype)).view(t, t, self.heads, d)
            bias = torch.einsum("nhid,ijhd->nhij", q, keys) / math.sqrt(d)
        if self.max_distance:
            bias = bias.masked_fill(apart.abs() > self.max_distance, -math.inf)
        return bias


class TemporalTransformer(TemporalAttention):
    """The block of the public models of this method (Stable Video Diffusion; with it Stable Diffusion 2.1 gets the
    paper's 656 M temporal parameters): feed-forward, attention over time, attention of every frame to its tokens,
    feed-forward, each residual; the position in time goes through a small network of its own.

    tokens  channels of the tokens; 0: no attention to them
    """

    def __init__(
        self,
        channels: int,
        tokens: int = 0,
        head_dim: int = 64,
        positions: str = "sinusoidal",
        max_distance: int = 0,
        merge_frames: int = 0,
        context_channels: int = 0,
    ) -> None:
        super().__init__(channels, head_dim, positions, max_distance, merge_frames, context_channels)
        self.norm_in, self.feed_in = nn.LayerNorm(channels), FeedForward(channels, activation_fn="geglu")
        self.norm_out, self.feed_out = nn.LayerNorm(channels), FeedForward(channels, activation_fn="geglu")
        last = [self.feed_in.net[-1], self.feed_out.net[-1]]
        self.place = self.cross = None
        position = nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, channels))
        if self.relative is None:
            self.place = position
            last.append(position[-1])
        else:
            self.relative = position
        if tokens:
            self.norm_cross = nn.LayerNorm(channels)
            self.cross = Attention(
                channels, tokens, self.heads, dim_head=channels // self.heads, processor=AttentionProcessor()
            )
            last.append(self.cross.to_out[0])
        for layer in last:  # the video network starts as the image network
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, run: Run) -> Tensor:
        """z [B·T, C, H, W] -> same shape."""
        x = y = to_rows(z, run.frames)
        if self.place is not None:
            frames = sinusoidal(torch.arange(run.frames, device=z.device), x.shape[-1]).to(z.dtype)
            y = y + self.place(frames)[:, None]
        y = y + self.feed_in(self.norm_in(y))
        y = y + self.attention(self._told(self.norm(y), z, run))
        if self.cross is not None and run.tokens is not None:
            asked = self.norm_cross(y).flatten(0, 1)  # [B·T, HW, C]
            y = y + self.cross(asked, run.tokens).view_as(y)
        y = y + self.feed_out(self.norm_out(y))
        return self.merge(z, from_rows(y - x, z.shape), run.frames)


class TemporalHead(nn.Module):
    """The last temporal layer, after the output convolution: it sees the features, the image model's answer and the
    known frames at full resolution, so what is known can reach the answer without passing the U-Net's bottleneck. The
    hint spares it the arithmetic from latents to velocity: where known frames were carried right, it is the answer,
    and a gate says, channel by channel, how far to trust it."""

    def __init__(
        self, features: int, channels: int, context_channels: int, groups: int = 16, merge_frames: int = 0
    ) -> None:
        super().__init__()
        hint = channels if context_channels else 0
        self.conv_in = nn.Conv2d(features + channels + context_channels + hint, features, 3, padding=1)
        self.time = TemporalConv(features, 0, groups, merge_frames=merge_frames)
        self.conv_out = nn.Conv2d(features, channels + hint, 3, padding=1)
        self.merge = Merge(merge_frames)
        self.context_channels = context_channels
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, z: Tensor, features: Tensor, run: Run) -> Tensor:
        """z [B·T, C, H, W] the image model's answer, features [B·T, F, H, W] what it was made from -> shape of z."""
        if not self.context_channels:
            return self.merge(z, self._hidden([features, z], run), run.frames)
        size = z.shape[-2], z.shape[-1]
        context = run.features.get(size)
        if context is None:
            context = z.new_zeros(z.shape[0], self.context_channels, *size)
        hint = torch.zeros_like(z) if run.hint is None else run.hint.to(z.dtype)
        change, gate = self._hidden([features, z, context, hint], run).chunk(2, 1)
        return self.merge(z, change if run.hint is None else change + gate * (hint - z), run.frames)

    def _hidden(self, parts: list[Tensor], run: Run) -> Tensor:
        hidden = F.silu(self.conv_in(torch.cat(parts, 1)))
        return self.conv_out(F.silu(self.time(hidden, run)))
