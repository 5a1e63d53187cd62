"""Putting temporal layers into an image network (paper, section 3.1).

They come after the spatial layers of an unchanged network by forward hooks, so that the image network keeps its class,
its weights and the names of its weights: any checkpoint of that network is a backbone, and the temporal layers are a
file of their own.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from drivesim.clip import Layout
from drivesim.errors import UserError
from drivesim.models.motion import SceneFlow
from drivesim.models.temporal import Run, TemporalAttention, TemporalConv, TemporalHead, TemporalTransformer
from drivesim.models.tracks import TrackedFlow

Site = tuple[str, nn.Module, int, str]  # name, spatial layer, its channels, kind of what follows: KINDS
KINDS = ("conv", "attention", "head")
CHOICES = {
    "attention": ("none", "attention", "transformer"),
    "positions": ("sinusoidal", "relative"),
    "merge": ("scalar", "time"),
    "motion": ("mean", "tracks"),
}


@dataclass
class TemporalConfig:
    """Which temporal layers go in, and how they are merged.

    convolution   3D-convolution residual blocks after the residual blocks; without them the paper's ablation
                  "attention only"
    attention     after each spatial transformer: attention over time; transformer, Stable Video Diffusion's block, four
                  to five times the weights; or none
    positions     of frames: sinusoidal, or relative (text-to-video, of any length)
    max_distance  frames further apart do not attend to each other; 0: all do. The paper's text-to-video: 8
    noise_level   the convolution blocks are told it
    merge         scalar: one alpha a layer, or time: one for each frame
    head          one more layer after the output convolution, which sees the known frames at full resolution; ours
    carry         unknown frames of the context are the known ones, moved by the mean flow of driving, ours; false:
                  nothing, the paper's
    motion        what moves them: mean, the flow of driving alone, or tracks, which carries boxes from box to box
    """

    convolution: bool = True
    attention: str = "attention"
    head_dim: int = 32
    positions: str = "sinusoidal"
    max_distance: int = 0
    noise_level: bool = False
    merge: str = "scalar"
    head: bool = True
    carry: bool = True
    motion: str = "mean"
    frames: int = 0  # of a clip, for merge=time; set by the stage

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (found := getattr(self, name)) not in known:
                raise UserError(f"temporal.{name} is {found!r}, expected one of {', '.join(known)}")

    def wanted(self, kind: str) -> bool:
        return {"conv": self.convolution, "attention": self.attention != "none", "head": self.head}[kind]


class ContextEncoder(nn.Module):
    """The learned down-sampling that brings the known frames and their mask to every resolution (paper, section 3.2).

    The paper gives c_S = (m o z, m). With `TemporalConfig.carry` the unknown frames are filled with the known ones
    carried there by the mean flow of driving (models/motion.py), and the mask still tells which are real: a temporal
    layer then finds the known content at the pixel of its own frame where it belongs instead of having to carry it
    through time and space.
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

    sites      where they can go
    context    input channels of the context encoder, 0 for none;  levels  number of resolutions of the network
    tokens     channels of the tokens that the network attends to, 0 for none
    embedding  channels of its embedding of the noise level
    """

    def __init__(
        self,
        sites: Iterable[Site],
        context: int,
        context_width: int,
        levels: int,
        groups: int = 16,
        config: TemporalConfig | None = None,
        tokens: int = 0,
        embedding: int = 0,
    ) -> None:
        super().__init__()
        self.config = config = config or TemporalConfig()
        width = context_width if context else 0
        self.context_channels = context
        self.context = ContextEncoder(context, context_width, levels) if context else None
        self.flow = SceneFlow() if context and config.carry else None
        self.layers = nn.ModuleDict()
        self.checkpointing = False
        self._run: Run | None = None
        merged = config.frames if config.merge == "time" else 0
        attends: dict[str, Any] = dict(
            head_dim=config.head_dim,
            positions=config.positions,
            max_distance=config.max_distance,
            merge_frames=merged,
            context_channels=0 if config.convolution else width,
        )
        build = {
            "conv": lambda module, c: TemporalConv(c, width, groups, embedding if config.noise_level else 0, merged),
            "attention": lambda module, c: (
                TemporalTransformer(c, tokens, **attends)
                if config.attention == "transformer"
                else TemporalAttention(c, **attends)
            ),
            "head": lambda module, c: TemporalHead(module.in_channels, c, width, groups, merged),
        }
        self.widths: dict[str, int] = {}  # channels of every spatial layer that is followed
        for name, module, channels, kind in sites:
            if config.wanted(kind):
                key = name.replace(".", "_")
                self.widths[name] = channels
                self.layers[key] = build[kind](module, channels)
                module.register_forward_hook(self._hook(key))

    def _hook(self, key: str):
        def after(module: nn.Module, inputs: tuple, output):
            if self._run is None:
                return None  # the image network by itself
            layer = self.layers[key]
            if isinstance(layer, TemporalHead):
                return layer(output, inputs[0], self._run)
            if isinstance(output, tuple):  # diffusers' transformers with return_dict=False
                return (self._apply_layer(layer, output[0]), *output[1:])
            return layer(output, self._run)  # a residual block, which is recomputed together with what follows it

        return after

    def _apply_layer(self, layer: nn.Module, z: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, z, self._run, use_reentrant=False)
        return layer(z, self._run)

    def note_embedding(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        """A forward hook for the network's embedding of the noise level."""
        if self._run is not None:
            self._run.embedding = output

    def move(self, pictures: Tensor, source: Layout, target: Layout) -> tuple[Tensor, Tensor]:
        """Pictures of the moments `source` as they look at the moments `target`; as `SceneFlow.move`."""
        assert self.flow is not None
        by = TrackedFlow(self.flow) if self.config.motion == "tracks" else self.flow.move
        return by(pictures, source, target)

    def encode(self, context: Tensor) -> dict[tuple[int, int], Tensor]:
        """Context features of known frames [B·T, channels, H, W]; they do not depend on the noise: once a window."""
        assert self.context is not None
        return self.context(context)

    def running(
        self,
        frames: int,
        features: dict[tuple[int, int], Tensor] | None = None,
        hint: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> "_Running":
        """A context manager: inside it the hooks are active, outside the network is the image network.

        raises  UserError for more frames than there are merge factors
        """
        if self.config.merge == "time" and frames > self.config.frames:
            raise UserError(
                f"a clip of {frames} frames, but with temporal.merge=time there are merge factors for "
                f"{self.config.frames}; make shorter windows, or train with temporal.merge=scalar"
            )
        return _Running(self, Run(frames, features or {}, hint, tokens))

    def recompute(self, module: nn.Module, *inputs: Any) -> Any:
        """For diffusers' `enable_gradient_checkpointing`. What is thrown away is computed again in the backward pass,
        when `running` is long over: the hooks are given the run of now again."""
        run = self._run
        again = nullcontext() if run is None else _Running(self, run)
        return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again))

    def alphas(self) -> dict[str, float | list[float]]:
        """The learned merge factor of every layer, or those of its frames."""
        found = {name: layer.merge.alpha.tolist() for name, layer in self.layers.items()}  # type: ignore[union-attr]
        return {name: alpha if len(alpha) > 1 else alpha[0] for name, alpha in found.items()}


class _Running:
    def __init__(self, layers: TemporalLayers, run: Run) -> None:
        self.layers, self.run = layers, run

    def __enter__(self) -> None:
        self.before, self.layers._run = self.layers._run, self.run

    def __exit__(self, *exception) -> None:
        self.layers._run = self.before


def temporal_sites(unet: UNet2DConditionModel) -> list[Site]:
    """Where temporal layers go: a 3D convolution block after each residual block, temporal attention after each
    spatial transformer, and one last layer after the output convolution."""
    sites: list[Site] = []
    for name, module in unet.named_modules():
        leaf = name.split(".")
        if len(leaf) < 2 or not leaf[-1].isdigit():
            continue
        if leaf[-2] == "resnets":
            sites.append((name, module, module.conv2.out_channels, "conv"))  # type: ignore[union-attr, arg-type]
        elif leaf[-2] == "attentions":
            sites.append((name, module, module.out_channels or module.in_channels, "attention"))  # type: ignore
    sites.append(("conv_out", unet.conv_out, unet.conv_out.out_channels, "head"))
    return sites
