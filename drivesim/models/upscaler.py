"""A latent x4 upscaler as the image network of the upsampler: a folder that diffusers' StableDiffusionUpscalePipeline
was saved to (Rombach et al. 2022; paper, section 3.4 and its text-to-video model).

Its U-Net denoises the latents of the full resolution, four of them a low-resolution pixel, with the noise-augmented low
resolution laid beside them and the level of that noise as its class. It is inflated by temporal layers like any other.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from drivesim.config import option
from drivesim.diffusion.schedule import TIMESTEPS, ScheduleConfig
from drivesim.errors import UserError
from drivesim.models.codec import Codec
from drivesim.models.cpu import speed_up
from drivesim.models.denoiser import Denoiser, DenoiserConfig

PIPELINE = "StableDiffusionUpscalePipeline"
PIXELS = 3  # channels of the low resolution
SCALE = (
    0.08333  # of the latents where a VAE's config has none, as in diffusers' pipeline; its VAE's own default is another
)


@dataclass
class UpsamplerConfig(DenoiserConfig):
    """A U-Net on pixels, from scratch; or a latent upscaler, `unet` and `vae` in diffusers' own configurations."""

    pretrained: str = option("", "folder of a StableDiffusionUpscalePipeline; empty: a network on pixels, from scratch")
    prompt: str = option("", "what a pretrained upscaler is asked for, always the same")
    negative_prompt: str = option("", "what upsample_guidance leads away from")
    unet: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    prompt_tokens: int = 0

    def build(self) -> Denoiser:
        return Upscaler(self.resolved()) if self.pretrained else Denoiser(self)

    def build_unet(self) -> UNet2DConditionModel:
        if not self.unet:
            return super().build_unet()
        unet = UNet2DConditionModel.from_config(self.unet)
        speed_up(unet)
        return unet

    def resolved(self) -> "UpsamplerConfig":
        """With the parts that are described in the folder. raises UserError if it is no such folder"""
        return self if self.unet or not self.pretrained else _resolve(self)


class Upscaler(Denoiser):
    """A Denoiser of a codec's latents that is told the embedding of a prompt, the same for all frames."""

    codec: Codec
    prompts: Tensor

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__(config)
        self.tokens = None  # of layouts, which it knows nothing of
        self.codec = Codec(config.vae)
        self.register_buffer("prompts", torch.zeros(2, config.prompt_tokens, config.token_dim))

    def prompted(self, negative: Tensor, frames: int) -> Tensor:
        """Embeddings [B, T, L, D] of the prompt, or where negative [B] of the negative one, for T frames each."""
        return self.prompts[negative.to(self.prompts.device).long()][:, None].expand(-1, frames, -1, -1)


def load_upscaler(config: UpsamplerConfig, prompts: Tensor | None = None) -> Upscaler:
    """The upscaler of the folder `config.pretrained`, frozen.

    prompts  [2, L, D] embeddings of the prompt and the negative one; None: made by the folder's own text encoder
    raises   UserError for a folder that is missing, of another kind, or without safetensors
    """
    folder = Path(config.pretrained)
    if prompts is None:
        prompts = encode_prompts(folder, [config.prompt, config.negative_prompt])
    model = Upscaler(replace(config.resolved(), prompt_tokens=prompts.shape[1]))
    if prompts.shape != model.prompts.shape:
        raise UserError(f"{folder}: prompts of {list(prompts.shape)}, its U-Net attends to {list(model.prompts.shape)}")
    model.unet.load_state_dict(_pretrained(UNet2DConditionModel, folder / "unet").state_dict())
    model.codec.vae.load_state_dict(_pretrained(AutoencoderKL, folder / "vae").state_dict())
    model.prompts.copy_(prompts)
    return model.requires_grad_(False).eval()


def read_schedules(folder: Path) -> tuple[ScheduleConfig, ScheduleConfig, int]:
    """The schedule of the latents, that of the noise augmentation, and the augmentation's highest timestep.

    raises  UserError for a scheduler that does not predict v, or is none of ours
    """
    main, low = (_json(folder / part / "scheduler_config.json") for part in ("scheduler", "low_res_scheduler"))
    if (found := main.get("prediction_type", "epsilon")) != "v_prediction":
        raise UserError(f"{folder}: its scheduler predicts {found}, expected v_prediction; use an upscaler that does")
    highest = _json(folder / "model_index.json").get("max_noise_level", 350)
    return _schedule(main, folder), _schedule(low, folder), int(highest)


def encode_prompts(folder: Path, prompts: list[str]) -> Tensor:
    """Embeddings [N, L, D] by the text encoder of a folder. raises UserError if it has none"""
    for part in ("tokenizer", "text_encoder"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no {part}, which embeds the prompt; copy the folder whole")
    from transformers import CLIPTextModel, CLIPTokenizer  # seconds that nobody else need wait

    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    encoder = _pretrained(CLIPTextModel, folder / "text_encoder").eval()
    length = tokenizer.model_max_length
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids)[0]


def _resolve(config: UpsamplerConfig) -> UpsamplerConfig:
    folder = Path(config.pretrained)
    found = _json(folder / "model_index.json").get("_class_name")
    if found != PIPELINE:
        raise UserError(f"{folder} holds a {found}, expected a {PIPELINE} as diffusers saves it")
    unet, vae = _json(folder / "unet" / "config.json"), _json(folder / "vae" / "config.json")
    vae = {"scaling_factor": SCALE} | vae
    latent = vae.get("latent_channels", 4)
    channels = unet.get("in_channels"), unet.get("out_channels")
    if channels != (latent + PIXELS, latent):
        raise UserError(
            f"{folder}: its U-Net takes {channels[0]} channels and gives {channels[1]}, expected {latent + PIXELS} "
            f"({latent} latents and {PIXELS} of the low resolution) and {latent}; it is no upscaler of this kind"
        )
    if not unet.get("num_class_embeds") and unet.get("class_embed_type") != "timestep":
        raise UserError(
            f"{folder}: its U-Net is told no noise level (num_class_embeds); it is no upscaler of this kind"
        )
    return replace(
        config,
        channels=latent,
        planes=PIXELS,
        block_out_channels=list(unet["block_out_channels"]),
        groups=unet.get("norm_num_groups", 32),
        token_dim=unet.get("cross_attention_dim", 1280),  # of the prompt
        prior=0,
        filters=0,
        unet=unet,
        vae=vae,
    )


def _schedule(values: dict[str, Any], folder: Path) -> ScheduleConfig:
    if (steps := values.get("num_train_timesteps", TIMESTEPS)) != TIMESTEPS or values.get("trained_betas"):
        raise UserError(f"{folder}: a schedule of {steps} timesteps or betas of its own, expected {TIMESTEPS} by name")
    return ScheduleConfig(
        beta=values.get("beta_schedule", "linear"),
        beta_start=values.get("beta_start", 1e-4),
        beta_end=values.get("beta_end", 0.02),
        zero_snr=values.get("rescale_betas_zero_snr", False),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; give the folder of a {PIPELINE} as diffusers saves it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}); copy the folder again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected an object; copy the folder again")
    return values


def _pretrained(kind: Any, folder: Path) -> Any:
    """A model of diffusers or transformers in fp32. raises UserError unless its weights are whole, and safetensors"""
    plain = [p.name for p in folder.glob("*.safetensors")]
    if not plain:
        found = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no weights"
        raise UserError(f"{folder} has {found}, expected safetensors; pickles are never loaded, save it as safetensors")
    half = all(".fp16." in name for name in plain)
    try:
        model, told = kind.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            variant="fp16" if half else None,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{folder} does not load ({str(error).splitlines()[0]}); copy the folder again") from error
    if wrong := [*told["missing_keys"], *told["mismatched_keys"]]:
        raise UserError(f"{folder}: {len(wrong)} weights do not fit its config.json, the first is {wrong[0]}")
    return model
