"""Stable Diffusion's networks by their published configurations, for plans of text-to-video (paper, section 4.2)."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from drivesim.clip import Layout
from drivesim.errors import UserError
from drivesim.models.denoiser import Denoiser, DenoiserConfig

WORDS = 77  # tokens of a caption


@dataclass(frozen=True)
class Backbone:
    """unet, text: where the published config.json of a part leaves diffusers' and transformers' defaults. reported:
    parameters that are reported for the paper's video model on it, 10⁶, by the names of a plan's parts."""

    unet: dict[str, Any]
    text: dict[str, Any]
    reported: dict[str, float]

    def text_encoder(self) -> nn.Module:
        return CLIPTextModel(CLIPTextConfig(**self.text))

    def denoiser(self, context_width: int) -> "Worded":
        return Worded(self.unet, context_width)


BACKBONES = {
    "sd14": Backbone(
        unet=dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        text=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
        reported={"temporal layers": 649, "image U-Net and temporal layers": 1509},
    ),
    "sd21": Backbone(
        unet=dict(
            sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        ),
        text=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16),
        reported={"autoencoder": 84, "image U-Net": 865, "temporal layers": 656, "text encoder": 354},
    ),
}


def find_backbone(name: str) -> Backbone:
    """raises UserError for a backbone that is not in the table"""
    if name not in BACKBONES:
        raise UserError(f"unknown backbone {name!r}; one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


class Worded(Denoiser):
    """A denoiser told captions instead of layouts: a published U-Net, and the shape of what a text encoder says."""

    def __init__(self, published: dict[str, Any], context_width: int) -> None:
        unet: Any = UNet2DConditionModel(**published)
        found = unet.config
        config = DenoiserConfig(
            channels=found.out_channels,
            planes=0,
            block_out_channels=list(found.block_out_channels),
            layers_per_block=[found.layers_per_block] * len(found.block_out_channels),
            attention=["CrossAttn" in name for name in found.down_block_types],
            token_dim=found.cross_attention_dim,
            groups=found.norm_num_groups,
            context_width=context_width,
            conditions=[],
        )
        super().__init__(config)
        self.unet, self.tokens = unet, None

    def condition(self, layout: Layout, height: int, width: int) -> tuple[Tensor, Tensor | None]:
        leading = layout.night.shape
        empty = layout.night.new_empty(*leading, 0, height, width)
        return empty, torch.empty(*leading, WORDS, self.config.token_dim, device=empty.device)
