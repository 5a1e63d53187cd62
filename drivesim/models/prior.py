"""What a frame looks like before anything is learned: a Gaussian over the latents of a camera that looks ahead.

Mean, principal components and what they leave of training frames give the best linear denoiser in closed form, within
seconds. On held-out frames of the procedural town its error equals that of an image network after five minutes on two
CPU cores, so the network starts where those minutes would end, and learns what is not linear.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drivesim.models.conditioning import feature_count, label_features
from drivesim.models.conditions import USUAL, chosen

RIDGE = 1e-4  # of the number of frames; decides only where a label never varies
FEATURES = feature_count()


class GaussianPrior(nn.Module):
    """Latents x = mean(labels) + components · N(0, variances) + N(0, rest), each frame by itself.

    mean        [F, C, h, w], linear in `conditioning.label_features` of the conditions; F is FEATURES of the usual ones
    components  [C·h·w, K] orthonormal, variances [K], rest [C, h, w]
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(
        self, channels: int, height: int, width: int, components: int, conditions: Sequence[str] = USUAL
    ) -> None:
        super().__init__()
        self.conditions = list(conditions)
        shape = (channels, height, width)
        self.register_buffer("mean", torch.zeros(feature_count(conditions), *shape))
        self.register_buffer("components", torch.zeros(channels * height * width, components))
        self.register_buffer("variances", torch.zeros(components))
        self.register_buffer("rest", torch.ones(shape))

    @torch.no_grad()
    def fit(self, latents: Tensor, features: Tensor) -> "GaussianPrior":
        """latents [n, C, h, w] of training frames, clip after clip, features [n, F] of their labels.

        Labels are also forgotten, each by itself and together, so that the mean without them is the mean over them.
        """
        x, count = latents.double().flatten(1), len(latents)
        told = features.double() * self._forgotten().to(x)[:, None]  # [ways to forget, n, F]
        gram = told.flatten(0, 1).T @ told.flatten(0, 1) + RIDGE * count * torch.eye(told.shape[-1], dtype=x.dtype)
        self.mean.copy_(torch.linalg.solve(gram, told.sum(0).T @ x).view_as(self.mean))

        x = x - x.mean(0)
        basis, variances = principal(x, self.components.shape[1])
        self.components[:, : len(variances)], self.variances[: len(variances)] = basis.float(), variances.float()
        # What components leave of the frames they come from is too little for others: each half judges the other's.
        halves = x.tensor_split(2)
        kept = [principal(half, len(variances))[0] for half in halves]
        left = torch.cat([half - (half @ b) @ b.T for half, b in zip(halves, kept[::-1], strict=True)])
        self.rest.copy_(left.square().mean(0).view_as(self.rest).clamp_min(1e-6))
        return self

    def _forgotten(self) -> Tensor:
        """Every way to know some labels and not others, as what features are multiplied by: [2^labels, F] of 0 and 1"""
        sizes = [condition.features for condition in chosen(self.conditions) if condition.features]
        ways = itertools.product((0.0, 1.0), repeat=len(sizes))
        return torch.tensor([[1.0, *(k for k, n in zip(way, sizes, strict=True) for _ in range(n))] for way in ways])

    def posterior(self, z: Tensor, planes: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Mean of x [B, T, C, h, w] given z = alpha·x + sigma·noise and the layout's planes.

        alpha, sigma  [B, 1, 1, 1, 1]. What the components leave counts as noise of its mean size when their weights
        are estimated: exact where it is the same everywhere, and a K x K system a frame cheaper.
        """
        with torch.autocast(z.device.type, enabled=False):
            z, a, s = z.float(), alpha.flatten(1)[..., None], sigma.flatten(1)[..., None]
            mean = torch.einsum("btf,fchw->btchw", label_features(planes, self.conditions), self.mean)
            off = (z - alpha * mean).flatten(2)
            rest = self.rest.flatten()
            noise = s**2 + a**2 * (rest @ self.components.square())
            total = (a**2 * self.variances + noise).clamp_min(1e-12)  # both may be nought: no noise, no such component
            linear = F.linear(a * self.variances / total * (off @ self.components), self.components)
            return mean + (linear + a * rest / (a**2 * rest + s**2) * (off - a * linear)).view_as(z)


def principal(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Principal components of rows [n, d] of mean 0: [d, k] orthonormal and their variances [k], the largest last; k is
    `most`, or a quarter of the rows if these are few, since components of few rows are those of no others."""
    kept = max(min(most, len(x) // 4), 1)
    values, vectors = torch.linalg.eigh(x @ x.T)  # of the rows, which are fewer than the numbers in one
    values, vectors = values[-kept:].clamp_min(1e-9), vectors[:, -kept:]
    return x.T @ vectors / values.sqrt(), values / len(x)
