"""The video discriminator and its losses, against closed forms."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drivesim.models.discriminator import VideoDiscriminator, adaptive_weight, discriminator_loss, generator_loss


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_every_space_time_patch_gets_a_logit(frames):
    logits = VideoDiscriminator(width=4)(torch.randn(2, 3, frames, 32, 64))
    assert (logits.shape[0], logits.shape[1], *logits.shape[3:]) == (2, 1, 4, 8)
    assert logits.shape[2] == frames


def test_the_hinge_loss_in_numbers():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0])
    # real: 0, 0.5, 2; fake: 0, 0.5, 2
    assert_close(discriminator_loss(real, fake), torch.tensor((2.5 / 3 + 2.5 / 3) / 2))
    assert discriminator_loss(torch.ones(4), -torch.ones(4)) == 0
    assert_close(generator_loss(torch.tensor([1.0, -3.0])), torch.tensor(1.0))


def test_the_hinge_loss_of_different_numbers_of_patches_is_the_mean_of_both_means():
    assert_close(discriminator_loss(torch.zeros(2), torch.zeros(6)), torch.tensor(1.0))


def test_the_two_losses_are_balanced_by_their_gradients_at_the_last_layer():
    last = nn.Parameter(torch.tensor([3.0, 4.0]))
    assert_close(adaptive_weight((6 * last).sum(), (2 * last).sum(), last), torch.tensor(3.0))
    assert adaptive_weight((6 * last).sum(), (0 * last).sum(), last) == 1e4  # limited
