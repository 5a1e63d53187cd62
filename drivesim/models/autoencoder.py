"""The autoencoder between pixels and latents: its options, and what its kinds have in common."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from drivesim.diffusion.draws import Generator
from drivesim.errors import UserError
from drivesim.models.inflation import Site
from drivesim.models.video_decoder import VideoDecoderConfig, VideoLayers


@dataclass
class AutoencoderConfig:
    """kind=patch: principal components of pixel patches with learned convolutional residuals, ready within minutes.
    kind=kl: diffusers' AutoencoderKL, the paper's, for long training on GPUs, or trained already (`pretrained`).
    kind=dc: diffusers' AutoencoderDC, deep compression: 32 pixels per latent, each way, or 64.
    kind=pixels: none, the paper's baseline in pixel space: factor x factor pixels folded into 3 x factor² channels.
    """

    kind: str = "patch"
    channels: int = 12  # of a latent
    factor: int = 8  # pixels per latent, each way
    width: int = 128  # patch: feature channels at latent resolution; kl, dc: channels of the first level
    blocks: int = 2  # residual blocks per level
    whitening: float = 0.5  # patch: 0 keeps the spread of the principal components, 1 makes every channel as wide
    # kl, dc: folder of a trained one as diffusers saves it, Stable Diffusion's vae/ say: config.json and safetensors.
    # It goes into the bundle as it is, and its own layout takes the place of width and blocks.
    pretrained: str = ""
    finetune: bool = False  # train a pretrained one further
    network: dict[str, Any] = field(default_factory=dict)  # kl, dc: diffusers' own config where it is no default layout

    def build(self) -> "Autoencoder":
        # Here, since they build on this module.
        from drivesim.models.diffusers_autoencoder import DCAutoencoder, KLAutoencoder
        from drivesim.models.patch_autoencoder import PatchAutoencoder
        from drivesim.models.pixel_autoencoder import PixelAutoencoder

        kinds = {"patch": PatchAutoencoder, "kl": KLAutoencoder, "dc": DCAutoencoder, "pixels": PixelAutoencoder}
        if self.kind not in kinds:
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(kinds)}")
        if self.kind in ("patch", "pixels") and self.pretrained:
            raise UserError("autoencoder.pretrained is for kind=kl or kind=dc; set autoencoder.kind")
        return kinds[self.kind](self)


class Autoencoder(nn.Module):
    """Interface of all kinds. Latents have a mean square of about 1 over the training data."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.temporal: VideoLayers | None = None
        self._most = 0

    def encode(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> latents [N, C, H/f, W/f].

        raises  UserError if H or W is no multiple of f, or a pixel no finite number
        """
        check_pictures(x, self.config.factor)
        return self._encode(x)

    def _encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def training_latents(self, x: Tensor, generator: Generator, kl: float) -> tuple[Tensor, Tensor]:
        """What the decoder is given while the encoder is trained, and the penalty on it.

        kl  weight of the divergence from unit normal latents, where the kind has one
        """
        raise NotImplementedError

    def _decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def image_weight(self) -> nn.Parameter:
        """Weight of the last layer of the image decoder."""
        raise NotImplementedError

    def decoder_sites(self) -> list[Site]:
        """Where temporal layers go within the video decoder, in the order they are run in."""
        raise NotImplementedError

    def last_weight(self) -> nn.Parameter:
        """The last trained weight before the pixels, where the adversarial loss is balanced."""
        return self.image_weight() if self.temporal is None else self.temporal.last_weight()

    def load_pretrained(self) -> None:
        """Take the weights in `config.pretrained`."""
        raise NotImplementedError

    def normalise(self, images: Tensor) -> None:
        """Give the latents of images [N, 3, H, W] a mean square of 1, where training does not see to it."""

    def decode(self, z: Tensor, frames: int = 1) -> Tensor:
        """Latents [N, C, h, w] -> pixels [N, 3, H, W]; `frames` consecutive ones belong together (N = B · frames)."""
        z = z.contiguous(memory_format=torch.channels_last)
        if not self._most:
            return self._decode_clips(z, frames)
        clips = max(self._most // frames, 1)
        return torch.cat([self._decode_clips(part, frames) for part in z.split(clips * frames)])

    def _decode_clips(self, z: Tensor, frames: int) -> Tensor:
        if self.temporal is None or frames == 1:
            return self._decode(z)
        with self.temporal.inside.running(frames):
            return self.temporal.correct(self._decode(z), frames)

    def enable_slicing(self, most: int = 1) -> None:
        """Decode at most this many pictures at once, though never less than a clip, whose frames see each other. What
        is made stays the same. 0: all at once."""
        self._most = most

    def enable_checkpointing(self) -> None:
        """Activations are computed again in the backward pass instead of kept. raises UserError for a kind without"""
        raise UserError(f"autoencoder kind={self.config.kind} has no checkpointing; kl has")

    def enable_tiling(self, size: int = 512) -> None:
        """Encode and decode pictures that are larger than `size` pixels in overlapping tiles of that size, blended:
        memory no longer grows with the picture, and tiles do not see beyond themselves.

        raises  UserError for a kind that cannot, or a size that does not split into whole latents
        """
        raise UserError(f"autoencoder kind={self.config.kind} has no tiles; kl and dc have")

    def inflate_decoder(self, config: VideoDecoderConfig) -> "Autoencoder":
        """Put temporal layers into the decoder; the encoder is frozen, so latents stay what they were.

        raises  UserError if `config` leaves none
        """
        self.requires_grad_(False)
        layers = VideoLayers(config, self.decoder_sites(), self.config.factor)
        self.temporal = layers.to(memory_format=torch.channels_last)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "Autoencoder":
        """Beside temporal layers the image network is not trained, nor are the statistics of its norms."""
        super().train(mode and self.temporal is None)
        if self.temporal is not None:
            self.training = mode
            self.temporal.train(mode)
        return self


def check_pictures(x: Tensor, factor: int) -> None:
    """raises UserError unless x [..., H, W] is made of whole latents and finite numbers"""
    height, width = x.shape[-2:]
    if height % factor or width % factor:
        raise UserError(
            f"a picture of {height}x{width} pixels: the autoencoder takes multiples of {factor}; resize or pad it"
        )
    if not x.is_meta and not bool(x.isfinite().all()):
        raise UserError("a picture holds pixels that are no finite numbers; expected -1 to 1")
