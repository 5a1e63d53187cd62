"""kind=kl and kind=dc: the autoencoders of diffusers, trained here or loaded, as latents of about unit size."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.models.attention_processor import Attention, SanaMultiscaleLinearAttention
from diffusers.models.autoencoders.autoencoder_dc import EfficientViTBlock, ResBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from drivesim.diffusion.draws import Generator
from drivesim.errors import UserError
from drivesim.models import vae_folder
from drivesim.models.autoencoder import Autoencoder, AutoencoderConfig
from drivesim.models.cpu import faster_norms
from drivesim.models.inflation import Site

# What a temporal layer follows, and its kind: in AutoencoderKL, in AutoencoderDC.
FOLLOWED = {
    ResnetBlock2D: "conv",
    Attention: "attention",
    ResBlock: "conv",
    EfficientViTBlock: "conv",
    SanaMultiscaleLinearAttention: "attention",
}
OVERLAP = 4  # a tile overlaps the next by one of so many parts


class DiffusersAutoencoder(Autoencoder):
    """What kl and dc share: diffusers' network in diffusers' format, and latents (z - shift) / spread · scale.

    scale is Stable Diffusion's scaling_factor, or what `normalise` finds; shift and spread are those of networks that
    bring their own (shift_factor, latents_mean, latents_std), else 0 and 1.
    """

    network_class: type
    shift: Tensor
    spread: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        if config.pretrained and not config.network:
            config = replace(config, network=vae_folder.read_network(config.pretrained, self.network_class))
        super().__init__(config)
        layout = config.network or self.layout(config)
        self.vae = self.network_class.from_config(layout).to(memory_format=torch.channels_last)
        faster_norms(self.vae)
        self._check_layout()
        told = self.vae.config
        self.register_buffer("scale", torch.tensor(float(told.scaling_factor) if config.network else 1.0))
        mean = told.get("latents_mean") or [told.get("shift_factor") or 0.0]
        for name, values in (("shift", mean), ("spread", told.get("latents_std") or [1.0])):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def _check_layout(self) -> None:
        told, config = self.vae.config, self.config
        levels = told.get("block_out_channels") or told.get("encoder_block_out_channels")
        for name, found in (("channels", told.latent_channels), ("factor", 2 ** (len(levels) - 1))):
            if found != getattr(config, name):
                raise UserError(
                    f"autoencoder.{name} is {getattr(config, name)} but {config.pretrained or 'autoencoder.network'} "
                    f"has {found}; set autoencoder.{name}={found}"
                )
        if (told.in_channels, told.get("out_channels", 3)) != (3, 3):
            raise UserError(f"{config.pretrained or 'autoencoder.network'} is not for pictures of three colours")

    @staticmethod
    def layout(config: AutoencoderConfig) -> dict[str, Any]:
        """diffusers' config of the default layout of width and blocks."""
        raise NotImplementedError

    def load_pretrained(self) -> None:
        vae_folder.load_weights(self.config.pretrained, self.vae)

    def code(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> the network's own latents."""
        raise NotImplementedError

    def scaled(self, z: Tensor) -> Tensor:
        """The network's own latents -> ours."""
        return (z - self.shift) / self.spread * self.scale

    def _encode(self, x: Tensor) -> Tensor:
        return self.scaled(self.code(x.contiguous(memory_format=torch.channels_last)))

    def _decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z / self.scale * self.spread + self.shift, return_dict=False)[0]

    @torch.no_grad()
    def normalise(self, images: Tensor) -> None:
        if not self.config.network:  # what was trained elsewhere keeps the size that others know it by
            self.scale.div_(self._encode(images).square().mean().sqrt())

    def decoder_blocks(self) -> list[str]:
        """Names of the decoder's blocks in the order they are run in."""
        raise NotImplementedError

    def decoder_sites(self) -> list[Site]:
        """Convolutions over time after the blocks of convolutions, attention over time after their attention."""
        return [
            (f"vae.decoder.{block}.{name}", module, _channels(module), FOLLOWED[type(module)])
            for block in self.decoder_blocks()
            for name, module in self.vae.decoder.get_submodule(block).named_modules()
            if type(module) in FOLLOWED
        ]

    def enable_tiling(self, size: int = 512) -> None:
        step = self.config.factor * OVERLAP
        if size < 2 * step or size % step:
            raise UserError(f"tiles of {size} pixels; expected a multiple of {step}, {2 * step} or more")
        self._tile(size)

    def _tile(self, size: int) -> None:
        raise NotImplementedError


class KLAutoencoder(DiffusersAutoencoder):
    """diffusers' AutoencoderKL, the autoencoder of latent diffusion and of the paper."""

    network_class = AutoencoderKL

    @staticmethod
    def layout(config: AutoencoderConfig) -> dict[str, Any]:
        levels = config.factor.bit_length()  # f = 8: four levels, three times halved
        return {
            "block_out_channels": [config.width * m for m in (1, 2, 4, 4, 4, 4)[:levels]],
            "layers_per_block": config.blocks,
            "latent_channels": config.channels,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "norm_num_groups": min(32, config.width),
        }

    def moments(self, x: Tensor):
        """The diagonal Gaussian of the encoder."""
        return self.vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist

    def code(self, x: Tensor) -> Tensor:
        return self.moments(x).mode()

    def training_latents(self, x: Tensor, generator: Generator, kl: float) -> tuple[Tensor, Tensor]:
        """Sampled; the penalty is the divergence a pixel value, as latent diffusion weighs it against the error."""
        posterior = self.moments(x)
        return self.scaled(posterior.sample(generator)), kl * posterior.kl().mean() / x[0].numel()

    def image_weight(self) -> nn.Parameter:
        return self.vae.decoder.conv_out.weight

    def enable_checkpointing(self) -> None:
        self.vae.enable_gradient_checkpointing(self.temporal.inside.recompute if self.temporal else None)

    def decoder_blocks(self) -> list[str]:
        return ["mid_block", *(f"up_blocks.{i}" for i in range(len(self.vae.decoder.up_blocks)))]

    def _tile(self, size: int) -> None:
        self.vae.enable_tiling()
        self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = size, size // self.config.factor
        self.vae.tile_overlap_factor = 1 / OVERLAP


class DCAutoencoder(DiffusersAutoencoder):
    """diffusers' AutoencoderDC (Chen et al. 2024, "Deep Compression Autoencoder"): f = 32 and more, no divergence.

    width 128 and 2 blocks at f = 32 and 32 channels are the layout published as dc-ae-f32c32-sana-1.0.
    """

    network_class = AutoencoderDC

    @staticmethod
    def layout(config: AutoencoderConfig) -> dict[str, Any]:
        levels = config.factor.bit_length()
        if levels < 4:
            raise ValueError(f"factor={config.factor}, expected 8 or more for kind=dc")
        plain, mixing = min(3, levels - 1), max(levels - 3, 1)  # levels of convolutions, of linear attention
        widths = [config.width * m for m in (1, 2, 4, 4, 8, 8, 16)[:levels]]
        types = ["ResBlock"] * plain + ["EfficientViTBlock"] * mixing
        scales: list[list[int]] = [[]] * plain + [[5]] * mixing
        return {
            "latent_channels": config.channels,
            "attention_head_dim": min(32, config.width),
            "encoder_block_types": types,
            "decoder_block_types": types,
            "encoder_block_out_channels": widths,
            "decoder_block_out_channels": widths,
            "encoder_layers_per_block": [config.blocks] * plain + [config.blocks + 1] * mixing,
            "decoder_layers_per_block": [config.blocks + 1] * levels,
            "encoder_qkv_multiscales": scales,
            "decoder_qkv_multiscales": scales,
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
        }

    def code(self, x: Tensor) -> Tensor:
        return self.vae.encode(x, return_dict=False)[0]

    def training_latents(self, x: Tensor, generator: Generator, kl: float) -> tuple[Tensor, Tensor]:
        return self._encode(x), x.new_zeros(())

    def image_weight(self) -> nn.Parameter:
        last = self.vae.decoder.conv_out
        return (last if isinstance(last, nn.Conv2d) else last.conv).weight

    def decoder_blocks(self) -> list[str]:
        return [f"up_blocks.{i}" for i in reversed(range(len(self.vae.decoder.up_blocks)))]

    def _tile(self, size: int) -> None:
        stride = size - size // OVERLAP
        self.vae.enable_tiling(size, size, stride, stride)


def _channels(module: nn.Module) -> int:
    """Channels that one of these makes."""
    match module:
        case ResnetBlock2D() | ResBlock():
            return module.conv2.out_channels
        case EfficientViTBlock():
            return module.conv_out.conv_point.out_channels
        case Attention():
            return module.to_out[0].out_features
        case _:
            return module.to_out.out_features
