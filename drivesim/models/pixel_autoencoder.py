"""kind=pixels: no latents, for diffusion in pixel space."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drivesim.errors import UserError
from drivesim.models.autoencoder import Autoencoder, AutoencoderConfig
from drivesim.models.inflation import Site

SCALE = 2.0  # pixels of pictures spread by about a half: twice them have the mean square of 1 that noise is made for


class PixelAutoencoder(Autoencoder):
    """The baseline "pixel-space" of the paper's ablation: the identity, with f x f pixels folded into channels.

    Nothing is lost and nothing is trained. With f = 1 the denoiser sees pixels as they are; with more it sees all of
    them too, on a grid as coarse as that of latents, at the price of its own f x f to one in positions.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        if config.factor < 1 or config.channels != (folded := 3 * config.factor**2):
            raise UserError(
                f"autoencoder.channels is {config.channels}, but kind=pixels folds {config.factor}x{config.factor} "
                f"pixels into {folded if config.factor > 0 else 'no'} channels; set autoencoder.channels and "
                "denoiser.channels to 3 x factor x factor"
            )
        # A weight that is not trained, so that the bundle holds it and the module lies on a device.
        self.scale = nn.Parameter(torch.tensor(SCALE), requires_grad=False)

    def _encode(self, x: Tensor) -> Tensor:
        return self.scale * F.pixel_unshuffle(x, self.config.factor)

    def _decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, self.config.factor) / self.scale

    def decoder_sites(self) -> list[Site]:
        return []
