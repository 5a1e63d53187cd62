"""One denoiser for every generative stage: an image U-Net, and temporal layers when it has to make video."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from drivesim.clip import Layout
from drivesim.models.conditioning import PLANES, POSITIONS, LayoutTokens, positions, rasterise
from drivesim.models.conditions import USUAL
from drivesim.models.cpu import speed_up
from drivesim.models.filters import EdgeFilters
from drivesim.models.inflation import TemporalConfig, TemporalLayers, temporal_sites
from drivesim.models.motion import Carrier, SceneFlow
from drivesim.models.prior import GaussianPrior


@dataclass
class DenoiserConfig:
    """An image U-Net (diffusers' UNet2DConditionModel) and how it is conditioned.

    channels is what is denoised, planes what is laid beside it: a rasterised layout, or the low-resolution picture.
    conditions are what a layout tells, by name (models/conditions.py).
    """

    channels: int = 12
    planes: int = PLANES + POSITIONS  # set by the stage
    block_out_channels: list[int] = field(default_factory=lambda: [64, 128, 256])
    layers_per_block: list[int] = field(default_factory=lambda: [1, 1, 2])
    attention: list[bool] = field(default_factory=lambda: [False, True, True])  # spatial attention, per level
    token_dim: int = 128  # of the layout tokens; 0: none, and no attention to them
    head_dim: int = 32
    groups: int = 16
    context_width: int = 48  # channels of the context encoder of the temporal layers
    prior: int = 0  # components of the closed-form prior that the network corrects; 0: none, the paper's
    prior_size: list[int] = field(default_factory=lambda: [0, 0])  # height and width of the latents; set by the stage
    filters: int = 0  # factor of the enlargement filters that an upsampler starts from; 0: none
    conditions: list[str] = field(default_factory=lambda: list(USUAL))
    level_embedding: bool = False  # whether the network is told a noise level, embedded as its timestep is
    # Folder of a Stable Diffusion model as diffusers saves it: the image network, taken as it is into the bundle, with
    # its text encoder (models/backbone.py). It decides all of the above but context_width.
    pretrained: str = ""
    finetune: bool = False  # train a pretrained image network further, in stage `image`
    unet: dict[str, Any] = field(default_factory=dict)  # diffusers' config of a pretrained one; set by the stage

    def build(self) -> "Denoiser":
        config = self.resolved()
        if config.unet:
            from drivesim.models.text_denoiser import TextDenoiser  # here, since it builds on this module

            return TextDenoiser(config)
        return Denoiser(config)

    def resolved(self) -> "DenoiserConfig":
        """With what a pretrained folder decides. raises UserError if it is none"""
        if self.unet or not self.pretrained:
            return self
        from drivesim.models.backbone import Backbone  # here, since it builds on this module

        return Backbone(Path(self.pretrained)).describe(self)

    def build_unet(self) -> UNet2DConditionModel:
        return build_unet(self)


def build_unet(config: DenoiserConfig) -> UNet2DConditionModel:
    """The image network, an ordinary diffusers model. Without tokens there is no attention at all."""
    if config.unet:
        unet = UNet2DConditionModel.from_config(config.unet)
        speed_up(unet)
        return unet
    if config.token_dim == 0 and any(config.attention):
        raise ValueError("attention levels need token_dim > 0")
    levels = len(config.block_out_channels)
    unet = UNet2DConditionModel(
        in_channels=config.channels + config.planes + (config.channels if config.prior else 0),
        out_channels=config.channels,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=tuple(config.layers_per_block),
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
        mid_block_type="UNetMidBlock2DCrossAttn" if config.token_dim else "UNetMidBlock2D",
        cross_attention_dim=config.token_dim or 32,
        attention_head_dim=tuple(max(c // config.head_dim, 1) for c in config.block_out_channels),  # number of heads
        norm_num_groups=config.groups,
        class_embed_type="timestep" if config.level_embedding else None,
        transformer_layers_per_block=(1,) * levels,
    )
    speed_up(unet)
    return unet


@dataclass(frozen=True)
class Context:
    """The known frames of windows, encoded once: nothing here depends on the noise.

    features  by picture size (h, w) -> [B·T, K, h, w]
    held      [B, T, C, h, w] latents, unknown frames filled by `Denoiser.carry`
    given     [B] 1 where any frame is known
    """

    features: dict[tuple[int, int], Tensor]
    held: Tensor
    given: Tensor


class Denoiser(nn.Module):
    """The image network by itself, or with temporal layers after `inflate`."""

    latent_std: Tensor
    reads = False  # whether it is told captions instead of a layout

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = config.build_unet().to(memory_format=torch.channels_last)
        laid_out = config.token_dim and not config.unet
        self.tokens = LayoutTokens(config.token_dim, config.conditions) if laid_out else None
        self.filters = EdgeFilters(config.filters) if config.filters else None
        self.temporal: TemporalLayers | None = None
        # Spread of each channel over the training data; see diffusion/precondition.py.
        self.register_buffer("latent_std", torch.ones(config.channels))
        self.prior: GaussianPrior | None = None
        if config.prior:
            height, width = config.prior_size
            self.prior = GaussianPrior(config.channels, height, width, config.prior, config.conditions)
        self._carrier: list[Carrier] = []  # in a list, so that the autoencoder is no part of this network

    def inflate(self, context_channels: int, temporal: TemporalConfig | None = None, freeze: bool = True) -> "Denoiser":
        """Put temporal layers in after the spatial layers of the image network.

        context_channels  channels of the known frames with their mask and flags; 0 when a task knows no frames
        temporal          which layers; freeze  the image network is not trained any more (paper, eq. 2)
        """
        if freeze:
            self.requires_grad_(False)
        self.temporal = TemporalLayers(
            temporal_sites(self.unet),
            context_channels,
            self.config.context_width,
            len(self.unet.config.block_out_channels),
            self.config.groups,
            temporal,
            self.config.token_dim,
            self.unet.time_embedding.linear_2.out_features,
        )
        self.unet.time_embedding.register_forward_hook(self.temporal.note_embedding)
        self.temporal.to(memory_format=torch.channels_last)
        return self

    def enable_checkpointing(self) -> "Denoiser":
        """Gradient checkpointing: activations are computed again in the backward pass instead of kept."""
        if self.temporal is None:
            self.unet.enable_gradient_checkpointing()
        else:
            self.temporal.checkpointing = True
            self.unet.enable_gradient_checkpointing(self.temporal.recompute)
        return self

    @property
    def carries(self) -> bool:
        """Whether unknown frames are filled with known ones."""
        return self.temporal is not None and self.temporal.flow is not None

    def carry_by(self, autoencoder) -> "Denoiser":
        """Name the autoencoder by which known frames are carried to where driving brings them; see `carry`."""
        if self.carries:
            assert self.temporal is not None
            self._carrier = [Carrier(autoencoder, self.temporal.move)]
        return self

    @property
    def flow(self) -> SceneFlow:
        """How the picture moves with the car; there is one where temporal layers know frames."""
        assert self.temporal is not None
        assert self.temporal.flow is not None
        return self.temporal.flow

    def carry(self, latents: Tensor, mask: Tensor, layout: Layout) -> Tensor:
        """Unknown frames filled from known ones, or with nothing (`TemporalConfig.carry`), [B, T, C, h, w]; mask [B, T]
        1 for known, layout [B, T] for the ego motion, which must be known (`Layout.driven`)."""
        if not self.carries:
            return latents * mask.to(latents)[..., None, None, None]
        if not self._carrier:
            raise RuntimeError("name the autoencoder first: carry_by")
        return self._carrier[0](latents, mask, layout)

    def condition(
        self, layout: Layout, height: int, width: int, captions: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Planes [B, T, P, h, w], positions among them, and tokens [B, T, N, D] of a layout [B, T]; captions are for a
        denoiser that reads (models/text_denoiser.py)."""
        tokens = self.tokens(layout) if self.tokens is not None else None
        drawn = rasterise(layout, height, width, self.config.conditions)
        place = positions(height, width).to(drawn).expand(*drawn.shape[:-3], -1, -1, -1)
        return torch.cat([drawn, place], -3), tokens

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        planes: Tensor,
        tokens: Tensor | None = None,
        context: "Context | None" = None,
        hint: Tensor | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity of noisy latents.

        x         [B, T, C, h, w]
        timestep  [B] in 0..999
        planes    [B, T, P, h, w] laid beside the latents; P is config.planes, and config.channels more with a prior
        tokens    [B, T, N, D] for cross-attention, or None
        context   from `encode_context`, or None
        hint      [B, T, C, h, w] what the answer would be if unknown frames were the carried ones, or None
        level     [B] noise level of the planes where the network is told one, or None
        returns   [B, T, C, h, w]
        """
        b, t = x.shape[:2]
        frames = torch.cat([x, planes.to(x.dtype)], 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        steps = timestep.repeat_interleave(t)
        words = frames.new_zeros(b * t, 1, 32) if tokens is None else tokens.flatten(0, 1)
        told = None if level is None else level.repeat_interleave(t)
        if self.temporal is None:
            out = self.unet(frames, steps, words, class_labels=told, return_dict=False)[0]
        else:
            features = None if context is None else context.features
            hint = None if hint is None else hint.flatten(0, 1)
            with self.temporal.running(t, features, hint, words if self.config.token_dim else None):
                out = self.unet(frames, steps, words, class_labels=told, return_dict=False)[0]
        return out.unflatten(0, (b, t))

    def encode_context(self, context: Tensor) -> "Context":
        """Known frames as `tasks.context_planes` lays them out [B, T, C + FLAGS, h, w]."""
        assert self.temporal is not None
        channels = self.config.channels
        scale = torch.cat([self.latent_std, self.latent_std.new_ones(context.shape[2] - channels)]).to(context)
        planes = (context / scale[:, None, None]).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        given = context[:, :, channels].amax((1, 2, 3))
        return Context(self.temporal.encode(planes), context[:, :, :channels], given)
