"""A latent upscaler from a folder: equal to diffusers' own pipeline, and whatever is wrong with the folder is told."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionUpscalePipeline
from torch.testing import assert_close

from drivesim.diffusion.tiles import Tiles
from drivesim.diffusion.upsample import Latents, Upsample
from drivesim.errors import UserError
from drivesim.generation import samplers
from drivesim.generation.samplers import SamplerConfig, sample_upsampled, upsampling_noise
from drivesim.machine import Machine
from drivesim.models.upscaler import UpsamplerConfig, Upscaler, encode_prompts, load_upscaler, read_schedules

PROMPTS = ["a street", "blurred"]


@pytest.fixture(autouse=True)
def fp32(monkeypatch) -> None:
    """Rounding to bf16 would hide what is compared here."""
    monkeypatch.setattr(samplers, "probe", lambda: Machine("cpu", False, 1, ""))


@pytest.fixture(scope="module")
def theirs(upscaler_folder) -> StableDiffusionUpscalePipeline:
    pipe = StableDiffusionUpscalePipeline.from_pretrained(upscaler_folder)
    pipe.set_progress_bar_config(disable=True)
    # The steps that all samplers here take: from the noisiest on, the last one to no noise at all.
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    return pipe


@pytest.fixture(scope="module")
def ours(upscaler_folder) -> Upscaler:
    return load_upscaler(
        UpsamplerConfig(pretrained=str(upscaler_folder), prompt=PROMPTS[0], negative_prompt=PROMPTS[1])
    )


@pytest.fixture(scope="module")
def task(upscaler_folder) -> Upsample:
    _, augmentation, highest = read_schedules(upscaler_folder)
    return Upsample(patch=4, max_level=highest, augmentation=augmentation, filters=False)


def upsampled(ours: Upscaler, task: Upsample, folder: Path, low: torch.Tensor, noise, level: int, guidance: float):
    config = SamplerConfig(upsample_steps=4, upsample_level=level, upsample_guidance=guidance)
    with torch.no_grad():
        return sample_upsampled(ours, read_schedules(folder)[0], task, low, *noise, config)


@pytest.mark.parametrize(("level", "guidance"), [(20, 1.0), (0, 1.0), (350, 1.0), (20, 4.0)])
@pytest.mark.parametrize("inflated", [False, True])
def test_one_frame_is_what_diffusers_own_pipeline_makes_of_it(
    upscaler_folder, theirs, ours, task, level, guidance, inflated
):
    if inflated:
        ours = load_upscaler(ours.config, ours.prompts).inflate(0).eval()
        for name, weight in ours.temporal.named_parameters():  # the layers say something, and alpha = 1 ignores it
            torch.nn.init.constant_(weight, torch.inf) if name.endswith("merge.logit") else torch.nn.init.normal_(
                weight
            )
    low = torch.rand(1, 1, 3, 8, 12, generator=torch.Generator().manual_seed(5)) * 2 - 1
    latents, _ = upsampling_noise(ours, task, tuple(low.shape), 0, 0)
    drawn = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(9))  # as the pipeline draws it
    made = upsampled(ours, task, upscaler_folder, low, (latents, drawn[None]), level, guidance)
    expected = theirs(
        prompt_embeds=ours.prompts[:1],
        negative_prompt_embeds=ours.prompts[1:],
        image=low[0],
        num_inference_steps=4,
        guidance_scale=guidance,
        noise_level=level,
        generator=torch.Generator().manual_seed(9),
        latents=latents[0],
        output_type="pt",
    ).images
    assert made.shape == (1, 1, 3, 32, 48)
    assert expected.std() > 0.01
    assert_close(made[0] / 2 + 0.5, expected, atol=2e-6, rtol=2e-5)


def test_prompts_are_embedded_as_diffusers_embeds_them(upscaler_folder, theirs, ours):
    expected = theirs.encode_prompt(PROMPTS[0], "cpu", 1, True, PROMPTS[1])
    assert_close(encode_prompts(upscaler_folder, PROMPTS), torch.cat(expected))
    assert torch.equal(ours.prompted(torch.tensor([False, True]), 3)[1, 2], ours.prompts[1])


def test_its_codec_is_the_vae_of_the_folder_frame_by_frame(theirs, ours):
    high = torch.rand(1, 3, 3, 16, 24) * 2 - 1
    space = Latents(ours.codec)
    latents = space.encode(high, high)
    expected = theirs.vae.encode(high[0]).latent_dist.mode() * 0.08333
    assert_close(latents[0], expected)
    assert_close(space.decode(latents, high[..., ::4, ::4], Tiles(4, 6))[0], theirs.vae.decode(expected / 0.08333)[0])


def test_it_is_trained_on_the_latents_of_the_full_resolution_at_levels_it_knows(ours, task):
    from drivesim.clip import Layout
    from drivesim.data.windows import Batch

    high = torch.rand(6, 2, 3, 16, 16) * 2 - 1
    problem = task.pose(Batch(high, Layout.unknown(6, 2), torch.zeros(6)), ours, torch.Generator().manual_seed(1))
    assert_close(problem.x, Latents(ours.codec).encode(high, high))
    assert problem.planes.shape == (6, 2, 3, 4, 4)
    assert problem.level.max() <= 350
    assert problem.tokens.shape == (6, 2, 16, 24)
    assert (
        replace(task, drop_prompt=1.0)
        .pose(Batch(high, Layout.unknown(6, 2), torch.zeros(6)), ours, torch.Generator())
        .tokens.eq(ours.prompts[1])
        .all()
    )


@pytest.fixture
def copy(upscaler_folder, tmp_path) -> Path:
    """A folder that a test may spoil."""
    return Path(shutil.copytree(upscaler_folder, tmp_path / "pipe"))


def test_a_vae_without_a_scale_gets_that_of_diffusers_pipeline(copy):
    path = copy / "vae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "scaling_factor"}))
    expected = StableDiffusionUpscalePipeline.from_pretrained(copy).vae.config.scaling_factor
    assert load_upscaler(UpsamplerConfig(pretrained=str(copy))).codec.scale == expected


def change(folder: Path, file: str, **values) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:  # noqa: PT012, as a stage reads it
        read_schedules(folder)
        load_upscaler(UpsamplerConfig(pretrained=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "holds a StableDiffusionPipeline, expected a"),
        ("unet/config.json", {"in_channels": 4}, "takes 4 channels and gives 4, expected 7"),
        ("unet/config.json", {"out_channels": 3}, "takes 7 channels and gives 3, expected 7"),
        ("vae/config.json", {"latent_channels": 8}, "expected 11"),
        ("unet/config.json", {"num_class_embeds": None}, "is told no noise level"),
        ("unet/config.json", {"block_out_channels": [16, 48]}, "unet does not load|weights do not fit"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "predicts epsilon, expected v_prediction"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "schedule of 500 timesteps"),
    ],
)
def test_a_folder_of_another_kind_is_told(copy, file, values, told):
    change(copy, file, **values)
    refused(copy, told)


def test_no_folder_is_told(tmp_path):
    refused(tmp_path / "nowhere", r"scheduler_config\.json is missing; give the folder of a StableDiffusionUpscale")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_a_folder_that_cannot_embed_a_prompt_is_told_but_takes_embeddings(copy, ours, part):
    shutil.rmtree(copy / part)
    refused(copy, f"has no {part}, which embeds the prompt")
    made = load_upscaler(UpsamplerConfig(pretrained=str(copy)), ours.prompts)
    assert torch.equal(made.prompts, ours.prompts)


def test_embeddings_of_another_width_are_told(upscaler_folder):
    with pytest.raises(UserError, match=r"prompts of \[2, 5, 8\], its U-Net attends to \[2, 5, 24\]"):
        load_upscaler(UpsamplerConfig(pretrained=str(upscaler_folder)), torch.zeros(2, 5, 8))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pickle_is_never_loaded(copy, tmp_path, part):
    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return open, (str(trace), "w")

    for path in (copy / part).glob("*.safetensors"):
        path.unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    (copy / part / name).write_bytes(pickle.dumps(Evil()))
    refused(copy, f"{part} has {name}, expected safetensors; pickles are never loaded")
    assert not trace.exists()


def test_weights_cut_off_are_told(copy):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(copy, "unet does not load")
