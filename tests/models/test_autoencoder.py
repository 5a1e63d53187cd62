"""The autoencoders: the closed-form start against an SVD, latents of unit size, the inflated decoder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drivesim.models.autoencoder import AutoencoderConfig

KINDS = {
    "patch": AutoencoderConfig("patch", channels=6, factor=8, width=16, blocks=1),
    "kl": AutoencoderConfig("kl", channels=4, factor=8, width=8, blocks=1),
}


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures [N, 3, 32, 64] in [-1, 1]."""
    coarse = torch.randn(count, 3, 6, 10, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (32, 64), mode="bicubic").mul(0.5).clamp(-1, 1)


def patches(images: torch.Tensor, f: int = 8) -> np.ndarray:
    """[patches, 3·f·f], taken out with plain indexing."""
    array = images.double().numpy()
    return np.stack(
        [
            array[n, :, y : y + f, x : x + f].ravel()
            for n in range(len(array))
            for y in range(0, array.shape[2], f)
            for x in range(0, array.shape[3], f)
        ]
    )


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_the_closed_form_start_is_the_best_linear_code_by_svd(whitening):
    images = pictures(40)
    model = AutoencoderConfig("patch", 6, 8, 16, 1, whitening).build()
    model.fit_patches(images)
    rows = patches(images)
    mean = rows.mean(0)
    _, spread, axes = np.linalg.svd(rows - mean, full_matrices=False)
    best = (rows - mean) @ axes[:6].T @ axes[:6] + mean
    made = model.decode(model.encode(images))
    assert np.abs(patches(made) - best).max() < 1e-4
    lost = (spread[6:] ** 2).sum() / rows.size  # Eckart-Young: no linear code of 6 numbers has a smaller error
    assert_close(F.mse_loss(made, images).item(), float(lost), rtol=1e-3, atol=1e-7)


@torch.no_grad()
def test_latents_of_the_closed_form_start_have_a_mean_square_of_one_and_no_mean():
    model = KINDS["patch"].build()
    model.fit_patches(pictures(40))
    latents = model.encode(pictures(40))
    assert_close(latents.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert 0.5 < model.encode(pictures(40, seed=1)).square().mean() < 2


@torch.no_grad()
def test_normalising_a_kl_autoencoder_gives_latents_of_unit_size_and_the_same_pictures():
    torch.manual_seed(0)
    model, images = KINDS["kl"].build(), pictures(8)
    before = model.decode(model.encode(images))
    model.normalise(images)
    assert_close(model.encode(images).square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert_close(model.decode(model.encode(images)), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_latents_are_smaller_by_the_factor_and_decode_to_the_size_of_the_picture(kind):
    model = KINDS[kind].build()
    latents = model.encode(pictures(2))
    assert latents.shape == (2, KINDS[kind].channels, 4, 8)
    assert model.decode(latents).shape == (2, 3, 32, 64)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_inflated_decoder_starts_as_the_image_decoder_and_leaves_the_encoder(kind):
    torch.manual_seed(0)
    model = KINDS[kind].build()
    images = pictures(4)
    if kind == "patch":
        torch.nn.init.normal_(model.decoder_out.weight, std=0.1)  # as if trained: it starts at zero
    latents = model.encode(images)
    image = model.decode(latents)
    model.inflate_decoder()
    assert torch.equal(model.decode(latents, 4), image)
    for parameter in model.temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.allclose(model.decode(latents, 4), image)
    assert torch.equal(model.decode(latents), image)  # frame by frame there is nothing temporal
    assert torch.equal(model.encode(images), latents)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_decoders_temporal_layers_are_trained_after_inflation(kind):
    model = KINDS[kind].build().inflate_decoder()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("temporal.") for name in trained)
    model.decode(model.encode(pictures(2)), 2).square().mean().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("temporal."))


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_weight_is_the_one_that_draws_the_pixels(kind):
    model = KINDS[kind].build()
    expected = {"patch": lambda: model.decoder_out.weight, "kl": lambda: model.vae.decoder.conv_out.weight}[kind]()
    assert model.last_weight() is expected
    inflated = model.inflate_decoder()
    assert any(inflated.last_weight() is p for p in inflated.temporal.parameters())
