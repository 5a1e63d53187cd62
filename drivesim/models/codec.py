"""The autoencoder of a latent upscaler, as Stable Diffusion's has one, frozen."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn


class Codec(nn.Module):
    """A diffusers AutoencoderKL, built from its own configuration, and its scaling of the latents.

    factor    full-resolution pixels, each way, of a latent;  channels  of the latents
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.vae: AutoencoderKL = AutoencoderKL.from_config(config).requires_grad_(False)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.channels: int = self.vae.config.latent_channels
        self.scale: float = self.vae.config.scaling_factor

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] in [-1, 1] -> latents [N, C, H/factor, W/factor], one picture after the other, since a
        full resolution fills the memory of many."""
        return torch.cat([self.vae.encode(picture).latent_dist.mode() for picture in x.split(1)]).float() * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents -> pixels, about [-1, 1]."""
        parts = (self.vae.decode(latents / self.scale, return_dict=False)[0] for latents in z.split(1))
        return torch.cat([part.float() for part in parts])
