"""Stable Diffusion folders: what is made is what diffusers makes, nothing in them changes, what is none is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from drivesim.bundle import folder_sha256
from drivesim.clip import Layout
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import FLAGS
from drivesim.errors import UserError
from drivesim.generation.samplers import SamplerConfig, sample_frames
from drivesim.machine import Machine
from drivesim.models.backbone import Backbone
from drivesim.models.denoiser import DenoiserConfig
from drivesim.models.inflation import TemporalConfig
from drivesim.models.text import TextEncoder

PAPER = TemporalConfig(
    attention="transformer",
    head_dim=64,
    noise_level=True,
    positions="relative",
    max_distance=8,
    head=False,
    carry=False,
)
PROMPTS = ["a red car", "rain on a road"]


@pytest.fixture
def fp32(monkeypatch):
    """Sampling as precise as diffusers' on a CPU."""
    monkeypatch.setattr("drivesim.generation.samplers.probe", lambda: Machine("cpu", False, 1, "test"))


@pytest.fixture
def copy(backbone, tmp_path):
    """A folder that a test may spoil."""
    return shutil.copytree(backbone, tmp_path / "copy")


def change(folder, part, **values):
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **values}))


def inflated(folder, config=PAPER):
    """With temporal layers that say something, wherever they are listened to."""
    denoiser = Backbone(folder).load(DenoiserConfig()).inflate(0, config).eval()
    denoiser.read_by(TextEncoder(folder))
    generator = torch.Generator().manual_seed(3)
    for p in denoiser.temporal.parameters():
        p.data.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return denoiser


def listen(denoiser, alpha_logit: float):
    for name, p in denoiser.temporal.named_parameters():
        if name.endswith("merge.logit"):
            p.data.fill_(alpha_logit)


@pytest.mark.parametrize("version", [1, 2])
def test_with_alpha_1_every_frame_is_the_picture_that_diffusers_makes(version, make_backbone, tmp_path, fp32):
    folder = make_backbone(tmp_path / "sd", version)
    noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    config = SamplerConfig(image_steps=7, text_guidance=5.0, negative_prompt="blur", spacing="leading")
    schedule = Backbone(folder).schedule(ScheduleConfig())
    denoiser = inflated(folder)
    listen(denoiser, 40.0)
    made = sample_frames(denoiser, schedule, Layout.unknown(2, 3), noise, config, PROMPTS)

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    for t in range(3):
        expected = pipeline(
            PROMPTS, negative_prompt=["blur"] * 2, latents=noise[:, t], num_inference_steps=7, guidance_scale=5.0,
            output_type="latent", height=64, width=64,
        ).images  # fmt: skip
        assert_close(made[:, t], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made[0, 0], made[1, 0], atol=1e-2)  # the prompt counts

    listen(denoiser, 0.0)
    assert not torch.allclose(
        made, sample_frames(denoiser, schedule, Layout.unknown(2, 3), noise, config, PROMPTS), atol=1e-2
    )


def test_a_folder_stays_as_it_is_and_weights_come_as_they_are(backbone):
    before = folder_sha256(backbone)
    denoiser = Backbone(backbone).load(DenoiserConfig())
    for name, weight in load_file(backbone / "unet" / "diffusion_pytorch_model.safetensors").items():
        assert torch.equal(denoiser.unet.state_dict()[name], weight)
    assert type(denoiser.unet) is UNet2DConditionModel
    assert folder_sha256(backbone) == before


@pytest.mark.parametrize(("dtype", "variant"), [("float16", "fp16"), ("bfloat16", "bf16"), ("bfloat16", None)])
def test_half_precision_comes_as_fp32_of_the_same_numbers(dtype, variant, backbone, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(backbone, torch_dtype=getattr(torch, dtype), safety_checker=None)
    pipeline.save_pretrained(tmp_path / "half", variant=variant)
    denoiser = Backbone(tmp_path / "half").load(DenoiserConfig())
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(denoiser.unet.state_dict()[name], weight.float())
    assert TextEncoder(tmp_path / "half")(["car"]).dtype == torch.float32


def test_the_schedule_is_that_of_the_scheduler(make_backbone, backbone, tmp_path):
    second = Backbone(make_backbone(tmp_path / "sd", 2)).schedule(ScheduleConfig())
    assert (second.prediction, second.weighting) == ("v", "velocity")
    first = Backbone(backbone).schedule(ScheduleConfig())
    assert (first.prediction, first.weighting) == ("epsilon", "epsilon")
    pipeline = StableDiffusionPipeline.from_pretrained(backbone, safety_checker=None)
    assert_close(first.alphas_cumprod(), pipeline.scheduler.alphas_cumprod)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_pickle_is_refused_with_how_to_convert_it(part, copy, backbone):
    model = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}[part].from_pretrained(backbone / part)
    shutil.rmtree(copy / part)
    model.save_pretrained(copy / part)
    weights = next((copy / part).glob("*.safetensors"))
    torch.save(model.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match=r"a pickle.*safe_serialization=True"):
        Backbone(copy).load(DenoiserConfig()) if part == "unet" else TextEncoder(copy)(["car"])


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("unet", {"in_channels": 9}, "takes 9 channels and gives 4"),
        ("unet", {"addition_embed_type": "text_time"}, "told more than text"),
        ("unet", {"_class_name": "UNet2DModel"}, "expected a UNet2DConditionModel"),
        ("unet", {"cross_attention_dim": 32}, "attends to 32 channels, its text_encoder makes 16"),
        ("scheduler", {"prediction_type": "sample"}, "predicts sample, expected one of epsilon, v_prediction"),
        ("scheduler", {"trained_betas": [0.1]}, "betas of its own"),
        ("scheduler", {"num_train_timesteps": 50}, "has 50 timesteps"),
    ],
)
def test_another_kind_of_model_is_refused(part, values, words, copy):
    change(copy, part, **values)
    with pytest.raises(UserError, match=words):
        Backbone(copy).schedule(ScheduleConfig())


def test_what_is_no_such_folder_is_refused(copy, tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        Backbone(tmp_path / "nothing")
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"unet/config.json is not readable"):
        Backbone(copy)
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UserError, match="has no tokenizer/"):
        Backbone(copy)


def test_weights_of_another_shape_are_refused(copy):
    change(copy, "unet", block_out_channels=[16, 64])
    with pytest.raises(UserError, match=r"do not fit config.json"):
        Backbone(copy).load(DenoiserConfig())


STABLE_DIFFUSION = {  # published configurations
    1.4: dict(
        unet=dict(cross_attention_dim=768, attention_head_dim=8),
        text=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
    ),
    2.1: dict(
        unet=dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        text=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16),
    ),
}


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(("version", "unet", "temporal", "text"), [(1.4, 860, 649, 123), (2.1, 865, 656, 340)])
def test_at_full_size_the_parts_have_the_parameters_of_the_paper(version, unet, temporal, text):
    """In millions, whichever the positions. The interpolator's 1509 are those on 1.4. The text encoder of 354 has a
    layer that Stable Diffusion 2 leaves out."""
    parts = STABLE_DIFFUSION[version]
    with torch.device("meta"):
        unet_config = dict(UNet2DConditionModel(**parts["unet"]).config)
        width = unet_config["cross_attention_dim"]
        config = DenoiserConfig(channels=4, planes=0, token_dim=width, groups=32, context_width=64, unet=unet_config)
        keys = config.build().inflate(0, replace(PAPER, positions="sinusoidal", max_distance=0))
        between = config.build().inflate(4 + FLAGS + 1, replace(PAPER, positions="sinusoidal"))
        relative = config.build().inflate(0, PAPER)
        assert millions(keys.unet) == pytest.approx(unet, abs=1)
        assert millions(keys.temporal) == pytest.approx(temporal, abs=1)
        assert millions(relative.temporal) == pytest.approx(temporal, abs=1)
        if version == 1.4:
            assert millions(between) == pytest.approx(1509, abs=2)
        assert millions(CLIPTextModel(CLIPTextConfig(vocab_size=49408, **parts["text"]))) == pytest.approx(
            text, abs=0.5
        )
        assert millions(vae()) == pytest.approx(84, abs=0.5)
        latents, words = torch.empty(1, 8, 4, 40, 64), torch.empty(1, 8, 77, width)
        made = relative(latents, torch.zeros(1, dtype=torch.long), latents.new_empty(1, 8, 0, 40, 64), words)
        assert made.shape == latents.shape


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
