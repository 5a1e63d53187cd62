"""Pixel space as an autoencoder that does nothing."""

import pytest
import torch
from einops import rearrange

from drivesim.errors import UserError
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.pixel_autoencoder import SCALE

PICTURES = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(factor: int, channels: int):
    return AutoencoderConfig(kind="pixels", factor=factor, channels=channels).build()


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_nothing_is_lost_and_nothing_is_trained(factor):
    model = build(factor, 3 * factor**2)
    assert torch.equal(model.decode(model.encode(PICTURES)), PICTURES)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_latents_are_pixels_folded_into_channels():
    folded = rearrange(PICTURES, "n c (h f) (w g) -> n (c f g) h w", f=4, g=4)
    assert torch.equal(build(4, 48).encode(PICTURES), SCALE * folded)
    assert torch.equal(build(1, 3).encode(PICTURES), SCALE * PICTURES)


def test_channels_that_do_not_hold_the_pixels_are_refused():
    with pytest.raises(UserError, match="folds 4x4 pixels into 48 channels"):
        build(4, 12)
    with pytest.raises(UserError, match="into no channels"):
        build(0, 0)
    with pytest.raises(UserError, match="pretrained"):
        AutoencoderConfig(kind="pixels", channels=192, pretrained="somewhere").build()
