"""Image networks that are told words, for plans of text-to-video (paper, section 4.2): Stable Diffusion's by their
published configurations, or those of a folder; shapes alone, no weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from drivesim.errors import UserError
from drivesim.models.backbone import Backbone, describe_unet
from drivesim.models.denoiser import DenoiserConfig

WORDS = 77  # tokens of a caption


@dataclass(frozen=True)
class Published:
    """unet, text: where the published config.json of a part leaves diffusers' and transformers' defaults. reported:
    parameters that are reported of the paper's video model on it, 10⁶, by the names of a plan's parts."""

    unet: dict[str, Any]
    text: dict[str, Any]
    reported: dict[str, float]


PUBLISHED = {
    "sd14": Published(
        unet=dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        text=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
        reported={"temporal layers": 649, "image U-Net and temporal layers": 1509},
    ),
    "sd21": Published(
        unet=dict(
            sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        ),
        text=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16),
        reported={"autoencoder": 84, "image U-Net": 865, "temporal layers": 656, "text encoder": 354},
    ),
}


@dataclass(frozen=True)
class Words:
    """An image network that reads: its configuration, and that of its text encoder."""

    denoiser: DenoiserConfig
    text: dict[str, Any]

    @classmethod
    def of(cls, config: DenoiserConfig, name: str = "") -> "Words | None":
        """By the name of a published one, or by the folder that the experiment names; None if it names none.

        raises  UserError for an unknown name, or a folder that is none
        """
        if name:
            if name not in PUBLISHED:
                raise UserError(f"unknown backbone {name!r}; one of {', '.join(PUBLISHED)}")
            with torch.device("meta"):
                unet = dict(UNet2DConditionModel(**PUBLISHED[name].unet).config)  # type: ignore[attr-defined]
            return cls(describe_unet(unet, config), PUBLISHED[name].text)
        if config.pretrained:
            folder = Backbone(Path(config.pretrained))
            return cls(folder.describe(config), folder.part("text_encoder"))
        return None

    def read(self, texts: Sequence[str]) -> Tensor:
        """What the text encoder makes of B texts, [B, WORDS, D]."""
        return torch.empty(len(texts), WORDS, self.denoiser.token_dim, device="meta")

    def text_parameters(self) -> int:
        known = {name: value for name, value in self.text.items() if not name.startswith("_")}
        with torch.device("meta"):
            return sum(weight.numel() for weight in CLIPTextModel(CLIPTextConfig(**known)).parameters())
