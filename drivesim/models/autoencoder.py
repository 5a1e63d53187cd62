"""The autoencoder between pixels and latents, and the temporal layers of its decoder (paper, section 3.1.1)."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from drivesim.models.alignment import AlignedNeighbours
from drivesim.models.inflation import TemporalLayers


@dataclass
class AutoencoderConfig:
    """kind=patch: principal components of pixel patches with learned convolutional residuals, ready within minutes.
    kind=kl: diffusers' AutoencoderKL, the paper's, for long training on GPUs.
    """

    kind: str = "patch"
    channels: int = 12  # of a latent
    factor: int = 8  # pixels per latent, each way
    width: int = 128  # patch: feature channels at latent resolution; kl: channels of the first level
    blocks: int = 2  # residual blocks per level
    whitening: float = 0.5  # patch: 0 keeps the spread of the principal components, 1 makes every channel as wide

    def build(self) -> "Autoencoder":
        kinds = {"patch": PatchAutoencoder, "kl": KLAutoencoder}
        if self.kind not in kinds:
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(kinds)}")
        return kinds[self.kind](self)


class Autoencoder(nn.Module):
    """Interface of both kinds. Latents have a mean square of about 1 over the training data."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.temporal: VideoLayers | None = None

    def encode(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> latents [N, C, H/f, W/f]."""
        raise NotImplementedError

    def _decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def image_weight(self) -> nn.Parameter:
        """Weight of the last layer of the image decoder."""
        raise NotImplementedError

    def decoder_sites(self) -> list[tuple[str, nn.Module, int, str]]:
        """Where temporal layers go within the video decoder."""
        raise NotImplementedError

    def last_weight(self) -> nn.Parameter:
        """The last trained weight before the pixels, where the adversarial loss is balanced."""
        if self.temporal is None:
            return self.image_weight()
        return self.temporal.after.conv_out.weight

    def normalise(self, images: Tensor) -> None:
        """Give the latents of images [N, 3, H, W] a mean square of 1, where training does not see to it."""

    def decode(self, z: Tensor, frames: int = 1) -> Tensor:
        """Latents [N, C, h, w] -> pixels [N, 3, H, W]; `frames` consecutive ones belong together (N = B · frames)."""
        z = z.contiguous(memory_format=torch.channels_last)
        if self.temporal is None or frames == 1:
            return self._decode(z)
        with self.temporal.inside.running(frames):
            return self.temporal.after(self._decode(z).float(), frames)

    def inflate_decoder(self) -> "Autoencoder":
        """Put temporal layers into the decoder; the encoder is frozen, so latents stay what they were."""
        self.requires_grad_(False)
        self.temporal = VideoLayers(self.decoder_sites(), self.config.factor).to(memory_format=torch.channels_last)
        return self


class VideoLayers(nn.Module):
    """What makes the image decoder a video decoder: temporal layers inside it, and its frames correcting each other
    after it."""

    def __init__(self, sites: list[tuple[str, nn.Module, int, str]], factor: int) -> None:
        super().__init__()
        self.inside = TemporalLayers(sites, 0, 0, 1)
        self.after = AlignedNeighbours(factor)


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))): no normalisation, so that flat areas stay flat; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PatchAutoencoder(Autoencoder):
    """Encoder and decoder are a linear projection of f x f patches plus a convolutional residual.

    `fit_patches` sets the linear part to the principal components of training patches: the best linear code, known in
    closed form within a second. Training then only has to learn what a linear code misses.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        f, c, w = config.factor, config.channels, config.width
        self.register_buffer("mean", torch.zeros(3 * f * f))
        self.analysis = nn.Conv2d(3 * f * f, c, 1, bias=False)
        self.synthesis = nn.Conv2d(c, 3 * f * f, 1, bias=False)
        self.encoder = nn.Sequential(
            nn.Conv2d(3 * f * f, w, 1), *(ResBlock(w) for _ in range(config.blocks)), nn.Conv2d(w, c, 1)
        )
        # Decoder features go up two levels by pixel shuffle, so that edges are drawn at half the picture's resolution.
        widths = [w, w // 2, w // 4]
        self.decoder_in = nn.Conv2d(c, w, 3, padding=1)
        self.levels = nn.ModuleList(nn.Sequential(*(ResBlock(n) for _ in range(config.blocks))) for n in widths)
        self.up = nn.ModuleList(nn.Conv2d(a, 4 * b, 1) for a, b in itertools.pairwise(widths))
        self.decoder_out = nn.Conv2d(widths[-1], 3 * (f // 4) ** 2, 3, padding=1)
        for layer in (self.encoder[-1], self.decoder_out):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def fit_patches(self, images: Tensor) -> None:
        """Closed-form start from images [N, 3, H, W] in [-1, 1]."""
        f, c = self.config.factor, self.config.channels
        patches = F.pixel_unshuffle(images.double(), f).permute(0, 2, 3, 1).flatten(0, 2)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        values, vectors = values[-c:].flip(0), vectors[:, -c:].flip(1)
        spread = values.clamp_min(1e-8).sqrt()
        scale = spread**self.config.whitening
        scale = scale * ((spread / scale) ** 2).mean().sqrt()  # mean square of all latents becomes 1
        self.mean.copy_(mean)
        self.analysis.weight.copy_((vectors / scale).T[..., None, None])
        self.synthesis.weight.copy_((vectors * scale)[..., None, None])

    def encode(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, self.config.factor) - self.mean[:, None, None]
        return self.analysis(patches) + self.encoder(patches.contiguous(memory_format=torch.channels_last))

    def _decode(self, z: Tensor) -> Tensor:
        linear = F.pixel_shuffle(self.synthesis(z) + self.mean[:, None, None], self.config.factor)
        x = self.levels[0](self.decoder_in(z))
        for conv, level in zip(self.up, list(self.levels)[1:], strict=True):
            x = level(F.pixel_shuffle(conv(x), 2).contiguous(memory_format=torch.channels_last))
        return linear + F.pixel_shuffle(self.decoder_out(F.silu(x)), self.config.factor // 4)

    def image_weight(self) -> nn.Parameter:
        return self.decoder_out.weight

    def decoder_sites(self) -> list[tuple[str, nn.Module, int, str]]:
        # Convolutions over time see neighbours at the same place only: in minutes they learned nothing.
        return []


class KLAutoencoder(Autoencoder):
    """diffusers' AutoencoderKL, weights in its own format; latents scaled by `scale`, as Stable Diffusion does."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        levels = config.factor.bit_length()  # f = 8: four levels, three times halved
        widths = tuple(config.width * m for m in (1, 2, 4, 4, 4, 4)[:levels])
        self.vae = AutoencoderKL(
            block_out_channels=widths,
            layers_per_block=config.blocks,
            latent_channels=config.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            norm_num_groups=min(32, config.width),
        ).to(memory_format=torch.channels_last)
        self.register_buffer("scale", torch.ones(()))

    def moments(self, x: Tensor):
        """The diagonal Gaussian of the encoder, for the KL term."""
        return self.vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist

    def encode(self, x: Tensor) -> Tensor:
        return self.moments(x).mode() * self.scale

    def _decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z / self.scale, return_dict=False)[0]

    def image_weight(self) -> nn.Parameter:
        return self.vae.decoder.conv_out.weight

    @torch.no_grad()
    def normalise(self, images: Tensor) -> None:
        self.scale.div_(self.encode(images).square().mean().sqrt())

    def decoder_sites(self) -> list[tuple[str, nn.Module, int, str]]:
        return [
            (f"vae.decoder.{name}", module, module.conv2.out_channels, "conv")
            for name, module in self.vae.decoder.named_modules()
            if name.split(".")[-2:-1] == ["resnets"]
        ]
