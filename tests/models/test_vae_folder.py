"""Autoencoders that diffusers saved, taken as they are: the same latents and pictures, and folders that are none."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from drivesim.bundle import from_dict, to_dict
from drivesim.errors import UserError
from drivesim.models.autoencoder import Autoencoder, AutoencoderConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
X = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tiny_kl(**kwargs) -> AutoencoderKL:
    torch.manual_seed(0)
    levels = dict(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    return AutoencoderKL(latent_channels=4, norm_num_groups=4, sample_size=512, **levels, **kwargs).eval()


def tiny_dc(**kwargs) -> AutoencoderDC:
    torch.manual_seed(0)
    widths = dict(encoder_block_out_channels=(8,) * 6, decoder_block_out_channels=(8,) * 6)
    scales = dict(encoder_qkv_multiscales=((),) * 6, decoder_qkv_multiscales=((),) * 6)
    return AutoencoderDC(latent_channels=8, attention_head_dim=8, **widths, **scales, **kwargs).eval()


def load(folder, **kwargs) -> Autoencoder:
    model = AutoencoderConfig(**{"kind": "kl", "channels": 4, "pretrained": str(folder), **kwargs}).build()
    model.load_pretrained()
    return model.requires_grad_(False).eval()


@pytest.fixture
def folder(tmp_path):
    """As Stable Diffusion's vae/."""
    tiny_kl().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@torch.no_grad()
def test_latents_are_those_of_diffusers_times_the_scaling_factor_and_decode_to_its_pictures(folder):
    vae, model = tiny_kl(), load(folder)
    expected = vae.encode(X).latent_dist.mode()
    assert_close(model.encode(X), expected * 0.18215, rtol=1e-4, atol=1e-6)
    assert_close(model.decode(expected * 0.18215), vae.decode(expected).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "told",
    [
        dict(scaling_factor=1.5305, shift_factor=0.0609),  # Stable Diffusion 3
        dict(
            scaling_factor=0.5, latents_mean=[-1.6, 1.1, 3.3, -0.2], latents_std=[8.4, 5.9, 6.6, 5.2]
        ),  # Playground 2.5
    ],
)
@torch.no_grad()
def test_shift_mean_and_spread_of_latents_are_respected(told, tmp_path):
    vae = tiny_kl(**told)
    vae.save_pretrained(tmp_path)
    model, own = load(tmp_path), vae.encode(X).latent_dist.mode()
    mean = torch.tensor(told.get("latents_mean", [told.get("shift_factor")])).view(-1, 1, 1)
    spread = torch.tensor(told.get("latents_std", [1.0])).view(-1, 1, 1)
    expected = (own - mean) * told["scaling_factor"] / spread
    assert_close(model.encode(X), expected, rtol=1e-4, atol=1e-5)
    assert_close(model.decode(expected), vae.decode(own).sample, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_deep_compression_autoencoder_is_taken_too(tmp_path):
    vae = tiny_dc(scaling_factor=0.41407)
    vae.save_pretrained(tmp_path)
    model = load(tmp_path, kind="dc", channels=8, factor=32)
    own = vae.encode(X).latent
    assert_close(model.encode(X), own * 0.41407, rtol=1e-4, atol=1e-6)
    assert_close(model.decode(own * 0.41407), vae.decode(own).sample, rtol=1e-4, atol=1e-5)


def test_what_a_bundle_keeps_of_it_rebuilds_it_without_the_folder(folder):
    model = load(folder)
    kept = json.loads(json.dumps(to_dict(model.config)))
    shutil.rmtree(folder)
    again = from_dict(AutoencoderConfig, kept).build().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode(X), model.encode(X))


def test_the_size_of_its_latents_is_not_changed_after_training(folder):
    model = load(folder)
    model.normalise(X)
    assert model.scale.item() == pytest.approx(0.18215)


@torch.no_grad()
def test_half_precision_alone_will_do(tmp_path):
    tiny_kl().half().save_pretrained(tmp_path, variant="fp16")
    model = load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_close(model.encode(X), tiny_kl().encode(X).latent_dist.mode() * 0.18215, rtol=0.02, atol=2e-3)


@torch.no_grad()
def test_attention_may_have_the_names_it_had_when_stable_diffusion_came_out(folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, weight in load_file(folder / WEIGHTS).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        weights[name] = weight
    assert any("proj_attn" in name for name in weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert_close(load(folder).encode(X), tiny_kl().encode(X).latent_dist.mode() * 0.18215, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (dict(channels=16), "autoencoder.channels is 16 but .*vae has 4; set autoencoder.channels=4"),
        (dict(factor=4), "autoencoder.factor is 4 but .*vae has 8; set autoencoder.factor=8"),
        (dict(kind="dc"), "autoencoder.kind is 'dc' but .*vae holds AutoencoderKL; set autoencoder.kind=kl"),
    ],
)
def test_an_autoencoder_that_is_not_what_the_configuration_says_is_refused(folder, asked, told):
    with pytest.raises(UserError, match=told):
        load(folder, **asked)


def test_a_pickle_is_refused(tmp_path):
    tiny_kl().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(
        UserError, match=r"weights in diffusion_pytorch_model.bin alone, a pickle.*safe_serialization=True"
    ):
        load(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"pretrained=.*/nowhere is no folder; expected one with config\.json"):
        load(tmp_path / "nowhere")


def test_the_folder_above_is_told_which_one_was_meant(folder):
    with pytest.raises(UserError, match=r"has no config.json.*; did you mean .*/vae\?"):
        load(folder.parent)


def test_another_network_is_refused(tmp_path):
    blocks = dict(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    UNet2DModel(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, **blocks).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds UNet2DModel, expected AutoencoderKL or AutoencoderDC"):
        load(tmp_path)


@pytest.mark.parametrize(("text", "told"), [("{", "is not readable"), ("[]", "no network"), ("{}", "no network")])
def test_a_config_that_says_nothing_is_refused(folder, text, told):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=told):
        load(folder)


def change(folder, edit) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (
            lambda w: w.pop("decoder.conv_in.bias"),
            "1 weights are missing or unknown, the first is decoder.conv_in.bias",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), "1 weights are missing or unknown, the first is extra"),
        (lambda w: w["quant_conv.bias"].fill_(float("nan")), "quant_conv.bias holds numbers that are not finite"),
        (lambda w: w.update({"quant_conv.bias": torch.zeros(3)}), "do not fit config.json or are damaged"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, edit, told):
    change(folder, edit)
    with pytest.raises(UserError, match=told):
        load(folder)


def test_a_damaged_file_is_refused(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"do not fit config\.json or are damaged"):
        load(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"has no {WEIGHTS}; copy the folder again"):
        load(folder)
