"""The closed-form prior against Gaussian conditioning written out."""

import math

import numpy as np
import torch
from torch.testing import assert_close

from drivesim.clip import Layout
from drivesim.models.conditioning import label_features, rasterise
from drivesim.models.prior import FEATURES, GaussianPrior

C, H, W, K = 2, 3, 4, 5
SIZE = C * H * W


def planes(night: float, crowdedness: float, clips: int = 1, frames: int = 1) -> torch.Tensor:
    layout = Layout.unknown(clips, frames)
    layout.night[:], layout.crowdedness[:] = night, crowdedness
    return rasterise(layout, H, W)


def frames(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [n, C, H, W] that depend on night and on three hidden causes, and the features of their labels."""
    rng = np.random.default_rng(0)
    night, crowd = rng.integers(0, 2, count).astype(float), rng.uniform(0, 10, count)
    causes, noise = rng.normal(size=(count, 3)) * [3, 2, 1], 0.1 * rng.normal(size=(count, SIZE))
    x = 1 + night[:, None] * rng.normal(size=SIZE) + causes @ np.linalg.qr(rng.normal(size=(SIZE, 3)))[0].T + noise
    told = torch.cat([label_features(planes(a, b))[0] for a, b in zip(night, crowd, strict=True)])
    return torch.from_numpy(x).float().view(count, C, H, W), told


def test_the_guess_is_gaussian_conditioning():
    prior = GaussianPrior(C, H, W, K).double()
    torch.manual_seed(0)
    prior.mean[0] = torch.randn(C, H, W)
    prior.components.copy_(torch.linalg.qr(torch.randn(SIZE, K).double())[0])
    prior.variances.copy_(torch.tensor([4.0, 3, 2, 1, 0.5]))
    prior.rest.fill_(0.3)  # the same everywhere: then the guess is exact
    a, s = 0.8, 0.6
    z = torch.randn(2, 3, C, H, W).double()
    alpha, sigma = torch.full((2, 1, 1, 1, 1), a).double(), torch.full((2, 1, 1, 1, 1), s).double()
    guess = prior.float().posterior(z.float(), planes(0, 0, 2, 3), alpha.float(), sigma.float())

    prior.double()
    covariance = prior.components @ prior.variances.diag() @ prior.components.T + 0.3 * torch.eye(SIZE).double()
    gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(SIZE).double())
    mean = prior.mean[0].flatten()
    exact = mean + (z.flatten(2) - a * mean) @ gain.T
    assert_close(guess.double().flatten(2), exact, atol=1e-5, rtol=1e-5)


def test_fitting_finds_the_principal_components_and_what_they_leave():
    x, told = frames()
    prior = GaussianPrior(C, H, W, K).fit(x, told)
    flat = x.flatten(1).double().numpy()
    flat = flat - flat.mean(0)
    _, values, axes = np.linalg.svd(flat, full_matrices=False)
    assert np.allclose(prior.variances.numpy(), values[K - 1 :: -1] ** 2 / len(x), rtol=1e-3)
    agreement = np.abs((prior.components.double().numpy() * axes[K - 1 :: -1].T).sum(0))
    assert np.allclose(agreement[-3:], 1, atol=1e-3)


def test_what_components_leave_is_told_by_frames_they_do_not_come_from():
    every, told = frames(400)
    x, held_out = every[:60], every[60:]
    prior = GaussianPrior(C, H, W, K).fit(x, told[:60])
    basis = prior.components[:, prior.variances > 0]
    off = (held_out - x.mean(0)).flatten(1)
    left = (off - (off @ basis) @ basis.T).square().mean(0)
    assert 0.5 < float(prior.rest.mean() / left.mean()) < 2


def test_components_are_no_more_than_a_quarter_of_the_frames():
    x, told = frames(9)
    prior = GaussianPrior(C, H, W, K).fit(x, told)
    assert (prior.variances > 0).sum() == 2
    guess = prior.posterior(x[None], planes(0, 0, 1, 9), torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))
    assert_close(guess[0], x, atol=1e-3, rtol=1e-3)


def test_the_mean_follows_the_labels_and_is_that_of_all_frames_without_them():
    x, told = frames()
    prior = GaussianPrior(C, H, W, K).fit(x, told)

    def mean(night: float, crowdedness: float) -> torch.Tensor:
        return torch.einsum("f,fchw->chw", label_features(planes(night, crowdedness))[0, 0], prior.mean)

    is_night = told[:, 1] > 0
    assert_close(mean(math.nan, math.nan), x.mean(0), atol=0.1, rtol=0.1)
    assert_close(mean(1, math.nan), x[is_night].mean(0), atol=0.1, rtol=0.1)
    assert_close(mean(0, math.nan), x[~is_night].mean(0), atol=0.1, rtol=0.1)
    assert (mean(1, 5) - mean(0, 5)).abs().max() > 0.5


def test_videos_without_labels_have_a_prior_too():
    x, told = frames(50)
    unknown = torch.zeros(50, FEATURES)
    unknown[:, 0] = 1
    prior = GaussianPrior(C, H, W, K).fit(x, unknown)
    assert_close(prior.mean[0], x.mean(0), atol=1e-3, rtol=1e-3)
    assert torch.isfinite(prior.mean).all()
    assert told.shape == unknown.shape


def test_all_noise_leaves_the_mean_and_no_noise_the_latents_themselves():
    x, told = frames()
    prior, one, none = GaussianPrior(C, H, W, K).fit(x, told), torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)
    unknown = planes(math.nan, math.nan)
    assert_close(prior.posterior(torch.randn(1, 1, C, H, W), unknown, none, one)[0, 0], prior.mean[0])
    guess = prior.posterior(x[:1, None], unknown, one, none)
    assert_close(guess[0, 0], x[0], atol=1e-3, rtol=1e-3)
