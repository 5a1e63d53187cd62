"""The autoencoders: the closed-form start against an SVD, latents of unit size, published sizes, bad pictures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drivesim.errors import UserError
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.video_decoder import VideoDecoderConfig

KINDS = {
    "patch": AutoencoderConfig("patch", channels=6, factor=8, width=16, blocks=1),
    "kl": AutoencoderConfig("kl", channels=4, factor=8, width=8, blocks=1),
    "dc": AutoencoderConfig("dc", channels=8, factor=32, width=8, blocks=1),
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


@pytest.mark.parametrize("kind", ["kl", "dc"])
@torch.no_grad()
def test_normalising_gives_latents_of_unit_size_and_the_same_pictures(kind):
    torch.manual_seed(0)
    model, images = KINDS[kind].build(), pictures(8)
    before = model.decode(model.encode(images))
    model.normalise(images)
    assert_close(model.encode(images).square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert_close(model.decode(model.encode(images)), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_latents_are_smaller_by_the_factor_and_decode_to_the_size_of_the_picture(kind):
    model = KINDS[kind].build()
    latents = model.encode(pictures(2))
    assert latents.shape == (2, KINDS[kind].channels, 32 // KINDS[kind].factor, 64 // KINDS[kind].factor)
    assert model.decode(latents).shape == (2, 3, 32, 64)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_inflated_decoder_starts_as_the_image_decoder_and_leaves_the_encoder(kind):
    torch.manual_seed(0)
    # Frozen, as from a bundle: torch multiplies by weights that need a gradient in another order.
    model = KINDS[kind].build().requires_grad_(False)
    images = pictures(4)
    if kind == "patch":
        torch.nn.init.normal_(model.decoder_out.weight, std=0.1)  # as if trained: it starts at zero
    latents = model.encode(images)
    image = model.decode(latents)
    model.inflate_decoder(VideoDecoderConfig())
    assert torch.equal(model.decode(latents, 4), image)
    for parameter in model.temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.allclose(model.decode(latents, 4), image)
    assert torch.equal(model.decode(latents), image)  # frame by frame there is nothing temporal
    assert torch.equal(model.encode(images), latents)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_decoders_temporal_layers_are_trained_after_inflation(kind):
    model = KINDS[kind].build().inflate_decoder(VideoDecoderConfig())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("temporal.") for name in trained)
    model.decode(model.encode(pictures(2)), 2).square().mean().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("temporal."))


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_weight_is_the_one_that_draws_the_pixels(kind):
    model = KINDS[kind].build()
    expected = model.decoder_out.weight if kind == "patch" else model.vae.decoder.conv_out.weight
    assert model.last_weight() is expected
    inflated = model.inflate_decoder(VideoDecoderConfig())
    assert any(inflated.last_weight() is p for p in inflated.temporal.parameters())


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        # Stable Diffusion's autoencoder, which is that of latent diffusion at f = 8 (kl-f8), has 83,653,863 parameters;
        # dc-ae-f32c32-sana-1.0 has 312,250,275.
        (AutoencoderConfig("kl", channels=4, factor=8, width=128, blocks=2), 83.653863),
        (AutoencoderConfig("dc", channels=32, factor=32, width=128, blocks=2), 312.250275),
    ],
)
def test_the_default_layouts_at_full_width_are_the_published_ones(config, millions):
    with torch.device("meta"):
        model = config.build()
        assert sum(p.numel() for p in model.parameters()) == round(1e6 * millions)
        latents = model.encode(torch.empty(1, 3, 512, 1024))
        assert latents.shape == (1, config.channels, 512 // config.factor, 1024 // config.factor)
        assert model.decode(latents).shape == (1, 3, 512, 1024)


def test_the_published_layout_of_another_dc_autoencoder_is_a_matter_of_configuration():
    network = {  # dc-ae-f32c32-in-1.0
        "latent_channels": 32,
        "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "encoder_layers_per_block": [0, 4, 8, 2, 2, 2],
        "decoder_layers_per_block": [0, 5, 10, 2, 2, 2],
        "encoder_qkv_multiscales": [[]] * 6,
        "decoder_qkv_multiscales": [[]] * 6,
        "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3,
        "decoder_act_fns": ["relu"] * 3 + ["silu"] * 3,
    }
    with torch.device("meta"):
        model = AutoencoderConfig("dc", channels=32, factor=32, network=network).build()
        assert model.decode(model.encode(torch.empty(1, 3, 64, 64))).shape == (1, 3, 64, 64)
        model.inflate_decoder(VideoDecoderConfig(align=False))
        assert model.decode(torch.empty(4, 32, 2, 2), 4).shape == (4, 3, 64, 64)


def test_the_penalty_of_a_kl_autoencoder_is_the_divergence_weighed_against_the_summed_error_of_pixels():
    torch.manual_seed(0)
    model, images = KINDS["kl"].build(), pictures(3)
    _, penalty = model.training_latents(images, torch.Generator().manual_seed(0), kl=1e-3)
    mean, logvar = model.vae.encode(images).latent_dist.parameters.chunk(2, 1)
    posterior = torch.distributions.Normal(mean.double(), (logvar.double() / 2).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum() / 3
    # latent diffusion adds 1e-3 * divergence to an error that is a sum over a picture's values; ours is their mean
    assert_close(penalty.double(), 1e-3 * divergence / (3 * 32 * 64), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("height", "width"), [(33, 64), (32, 60)])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_do_not_split_into_latents_are_refused(kind, height, width):
    model, factor = KINDS[kind].build(), KINDS[kind].factor
    with pytest.raises(UserError, match=rf"a picture of {height}x{width} pixels: .* multiples of {factor}; resize"):
        model.encode(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_with_pixels_that_are_no_numbers_are_refused(kind, value):
    picture = pictures(1)
    picture[0, 1, 3, 5] = value
    with pytest.raises(UserError, match="no finite numbers"):
        KINDS[kind].build().encode(picture)


def test_a_patch_autoencoder_cannot_be_a_pretrained_one():
    with pytest.raises(UserError, match="pretrained is for kind=kl or kind=dc"):
        AutoencoderConfig("patch", pretrained="vae").build()
