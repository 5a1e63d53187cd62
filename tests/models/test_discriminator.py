"""The discriminators and their losses, against closed forms and published sizes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drivesim.models.discriminator import (
    Critics,
    PictureDiscriminator,
    VideoDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)


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


def test_a_logit_for_pictures_judges_a_patch_of_70_pixels():
    torch.manual_seed(0)
    picture = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = PictureDiscriminator(width=4).eval()(picture)
    assert logits.shape == (1, 1, 14, 14)  # 128 / 8 - 2
    logits[0, 0, 7, 7].backward()
    rows = picture.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_the_discriminator_of_pictures_is_four_convolutions_of_64_to_512_channels_and_the_one_that_answers():
    weights = 4 * 4 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    others = 64 + 1 + 2 * (128 + 256 + 512)  # biases of the first and the last, norms of those between
    assert sum(p.numel() for p in PictureDiscriminator(64).parameters()) == weights + others


def judged(video: float, picture: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What critics of the same weights say: the generator's loss, its gradient at the last weight, their own loss."""
    critics = Critics(1.0, 1.0, 4).eval()
    torch.manual_seed(0)
    for parameter in critics.parameters():
        nn.init.normal_(parameter, std=0.1)
    wanted = {"video": video, "picture": picture}
    critics.weights = {name: weight for name, weight in wanted.items() if weight}
    real = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    last = nn.Parameter(torch.tensor(0.5))
    made = last * real
    loss = critics.realism(made, (made - real).square().mean(), last)
    return loss.detach(), torch.autograd.grad(loss, last)[0], critics.loss(real, made)


def test_two_critics_count_as_the_sum_of_each():
    both, video, picture = judged(0.7, 0.2), judged(0.7, 0), judged(0, 0.2)
    for together, one, other in zip(both, video, picture, strict=True):
        assert_close(together, one + other)


def test_the_pull_of_a_critic_is_its_weight_times_that_of_the_error_at_the_last_layer():
    real = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    last = nn.Parameter(torch.tensor(0.5))
    pull = torch.autograd.grad((last * real - real).square().mean(), last)[0].abs()
    assert_close(judged(0.7, 0)[1].abs(), 0.7 * pull, rtol=1e-3, atol=0)
