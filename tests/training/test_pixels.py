"""The error that autoencoder and decoder are trained on."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drivesim.training.pixels import reconstruction_error

X = torch.rand(2, 4, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_of_frames_by_themselves_it_is_the_mean_squared_error():
    wrong = X[:, :1] + 0.1 * torch.randn(2, 1, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    assert_close(reconstruction_error(wrong, X[:, :1]), F.mse_loss(wrong, X[:, :1]))


def test_an_error_that_flashes_costs_more_than_one_that_stays():
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None, None]
    assert reconstruction_error(X + 0.1 * sign, X) > 3 * reconstruction_error(X + 0.1, X)


def test_errors_without_structure_count_alike_at_every_size():
    noise = 0.1 * torch.randn(1, 2, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    at = torch.zeros_like(noise)
    expected = noise.square().mean() + noise.diff(dim=1).square().mean()
    assert_close(reconstruction_error(at + noise, at), expected, rtol=0.05, atol=0)
