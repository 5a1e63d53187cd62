"""Patch discriminators, of video for the temporally tuned decoder (paper, section 3.1.1) and of pictures for the
autoencoder, and the losses of both."""

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


class PictureDiscriminator(nn.Sequential):
    """[N, 3, H, W] -> logits [N, 1, H/8 - 2, W/8 - 2], one for every patch of 70x70 pixels.

    The PatchGAN of Isola et al. 2017 with its initial weights, which latent diffusion has at width 64.
    """

    def __init__(self, width: int = 64) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        widths = [width, 2 * width, 4 * width, 8 * width]
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i < 2 else 1
            layers += [nn.Conv2d(a, b, 4, stride, padding=1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)


class Critics(nn.Module):
    """What judges reconstructions [B, T, 3, H, W]: as video, each frame as a picture, or both.

    video, picture  how much each counts, 0 to do without
    """

    def __init__(self, video: float, picture: float, width: int) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in (("video", video), ("picture", picture)) if weight}
        build = {"video": VideoDiscriminator, "picture": PictureDiscriminator}
        self.networks = nn.ModuleDict({name: build[name](width) for name in self.weights})

    def _judge(self, name: str, x: Tensor) -> Tensor:
        return self.networks[name](x.transpose(1, 2) if name == "video" else x.flatten(0, 1))

    def realism(self, made: Tensor, error: Tensor, last: nn.Parameter) -> Tensor:
        """Loss of whoever made `made`, balanced against its `error` at the last weight before the pixels."""
        total = error.new_zeros(())
        for name, weight in self.weights.items():
            loss = generator_loss(self._judge(name, made))
            total = total + weight * adaptive_weight(error, loss, last) * loss
        return total

    def loss(self, real: Tensor, made: Tensor) -> Tensor:
        """Of the discriminators themselves."""
        made = made.detach()
        return torch.stack(
            [discriminator_loss(self._judge(name, real), self._judge(name, made)) for name in self.weights]
        ).sum()


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
