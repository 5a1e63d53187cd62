"""Our sample loop, parameterisations and guidance against diffusers' StableDiffusionPipeline: the same tiny U-Net,
noise, prompts, steps and scales give the same latents."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch.testing import assert_close

from drivesim.diffusion.guidance import Term, guided
from drivesim.diffusion.sampler import sample, window_noise
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig

# Stable Diffusion's own schedule; theirs are built from the arguments that a user of diffusers gives them.
BETAS = dict(num_train_timesteps=1000, beta_start=8.5e-4, beta_end=1.2e-2, beta_schedule="scaled_linear")
EPSILON = ScheduleConfig("scaled_linear", zero_snr=False, weighting="epsilon", prediction="epsilon")
THEIRS = {
    "ddim": lambda **o: DDIMScheduler(clip_sample=False, **o),
    "ddpm": lambda **o: DDPMScheduler(clip_sample=False, **o),
    "dpm++": lambda **o: DPMSolverMultistepScheduler(**o),
    "dpm++_sde": lambda **o: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **o),
    "unipc": lambda **o: UniPCMultistepScheduler(**o),
    "euler": lambda **o: EulerDiscreteScheduler(**o),
    "euler_a": lambda **o: EulerAncestralDiscreteScheduler(**o),
    "heun": lambda **o: HeunDiscreteScheduler(**o),
}
STEPS, SCALE = 10, 4.0


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of two prompts and of two negative ones, [2, 5, 16] each."""
    return window_noise((2, 5, 16), 1), window_noise((2, 5, 16), 2)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(2)]


def theirs(unet, prompts, scheduler, **options) -> torch.Tensor:
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    pipeline = StableDiffusionPipeline(vae, None, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt_embeds=prompts[0], negative_prompt_embeds=prompts[1], latents=window_noise((2, 4, 8, 8), 3),
        height=16, width=16, num_inference_steps=STEPS, guidance_scale=SCALE, generator=generators(),
        output_type="latent", **options,
    )  # fmt: skip
    return made.images


@torch.no_grad()
def ours(unet, prompts, config: ScheduleConfig, name: str, rescale: float = 0.0, **options) -> torch.Tensor:
    diffusion = Diffusion(config)

    def answer(z: torch.Tensor, timestep: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        output = unet(z, timestep, told).sample
        return diffusion.velocity_of(output, z, timestep) if config.prediction == "epsilon" else output

    denoise = guided(answer, prompts[0], [Term(SCALE, prompts[1])], rescale=rescale)
    noise = window_noise((2, 4, 8, 8), 3)
    return sample(denoise, noise, config, STEPS, name, generators=generators(), **options)


def test_the_network_makes_a_difference(unet, prompts):
    """What the equalities below would not show if every answer were nought."""
    made = ours(unet, prompts, EPSILON, "ddim")
    assert not torch.allclose(made, ours(unet, prompts[::-1], EPSILON, "ddim"), atol=0.05)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("name", THEIRS)
def test_latents_are_those_of_the_pipeline_of_diffusers(unet, prompts, name, spacing):
    offset = 1 if spacing == "leading" else 0
    # Leading is Stable Diffusion's own, whose scheduler ends at the first timestep.
    ends = {"set_alpha_to_one": False} if (name, spacing) == ("ddim", "leading") else {}
    scheduler = THEIRS[name](timestep_spacing=spacing, steps_offset=offset, **BETAS, **ends)
    assert_close(
        ours(unet, prompts, EPSILON, name, spacing=spacing), theirs(unet, prompts, scheduler), atol=2e-4, rtol=2e-4
    )


def test_ddim_with_eta_draws_what_the_pipeline_draws(unet, prompts):
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **BETAS)
    made = ours(unet, prompts, EPSILON, "ddim", eta=0.6)
    assert_close(made, theirs(unet, prompts, scheduler, eta=0.6), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_velocity_from_zero_terminal_noise_with_rescaled_guidance_is_that_of_the_pipeline(unet, prompts, rescale):
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction",
                              rescale_betas_zero_snr=True, **BETAS)  # fmt: skip
    made = ours(unet, prompts, ScheduleConfig("scaled_linear", zero_snr=True), "ddim", rescale)
    assert_close(made, theirs(unet, prompts, scheduler, guidance_rescale=rescale), atol=2e-5, rtol=2e-5)
