"""Patch discriminator of 3D convolutions for the temporally tuned decoder (paper, section 3.1.1)."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VideoDiscriminator(nn.Module):
    """[B, 3, T, H, W] -> logits [B, 1, T', H/8, W/8], one for every space-time patch; time is never strided, so short
    windows suffice."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        self.layers = nn.ModuleList(
            nn.Conv3d(a, b, (3, 4, 4), stride=(1, 2, 2), padding=1) for a, b in itertools.pairwise(widths)
        )
        self.out = nn.Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        for layer in self.layers:
            video = F.leaky_relu(layer(video), 0.2)
        return self.out(video)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of logits (Lim & Ye 2017)."""
    return (
        (F.relu(1 - real) + F.relu(1 + fake)).mean() / 2
        if real.shape == fake.shape
        else (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    )


def generator_loss(fake: Tensor) -> Tensor:
    """The generator raises the discriminator's logits."""
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: nn.Parameter, limit: float = 1e4) -> Tensor:
    """Balance of the two losses by their gradients at the decoder's last layer (Esser et al. 2021, eq. 7)."""
    with torch.enable_grad():
        a = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].norm()
        b = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
    return (a / (b + 1e-6)).clamp(0, limit).detach()
