"""kind=patch: principal components of pixel patches as a closed-form start, with learned convolutional residuals."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drivesim.diffusion.draws import Generator
from drivesim.models.autoencoder import Autoencoder, AutoencoderConfig
from drivesim.models.inflation import Site


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

    def _encode(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, self.config.factor) - self.mean[:, None, None]
        return self.analysis(patches) + self.encoder(patches.contiguous(memory_format=torch.channels_last))

    def _decode(self, z: Tensor) -> Tensor:
        linear = F.pixel_shuffle(self.synthesis(z) + self.mean[:, None, None], self.config.factor)
        x = self.levels[0](self.decoder_in(z))
        for conv, level in zip(self.up, list(self.levels)[1:], strict=True):
            x = level(F.pixel_shuffle(conv(x), 2).contiguous(memory_format=torch.channels_last))
        return linear + F.pixel_shuffle(self.decoder_out(F.silu(x)), self.config.factor // 4)

    def training_latents(self, x: Tensor, generator: Generator, kl: float) -> tuple[Tensor, Tensor]:
        latents = self._encode(x)
        return latents, 1e-2 * (latents.square().mean() - 1).square()  # unit size, which diffusion counts on

    def image_weight(self) -> nn.Parameter:
        return self.decoder_out.weight

    def decoder_sites(self) -> list[Site]:
        # Convolutions over time see neighbours at the same place only: in minutes they learned nothing.
        return []
