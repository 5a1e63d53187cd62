"""A Stable Diffusion folder, as diffusers saves it, as the image network of a video model (paper, section 4.2).

folder/
  unet/                   the image network, a UNet2DConditionModel: config.json and safetensors
  text_encoder/           a CLIPTextModel: config.json and safetensors;  tokenizer/  its CLIPTokenizer
  scheduler/              scheduler_config.json: the noise schedule, and what the network predicts
  vae/                    the autoencoder, which `autoencoder.pretrained` names

Weights in half precision (`.fp16.safetensors`, bf16) are brought to fp32, which they fit into exactly.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivesim.bundle import folder_sha256
from drivesim.diffusion.schedule import BETAS, TIMESTEPS, ScheduleConfig
from drivesim.errors import UserError
from drivesim.models import vae_folder
from drivesim.models.lora import merge_lora

if TYPE_CHECKING:
    from drivesim.models.denoiser import DenoiserConfig
    from drivesim.models.text_denoiser import TextDenoiser

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
TEXT_PARTS = ("text_encoder", "tokenizer")
# What a U-Net may be told beside noise level and text, which a folder of this kind has none of.
OTHER_CONDITIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


@dataclass(frozen=True)
class Backbone:
    """The folder at `root`. raises UserError if it is no text-to-image model of this kind"""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if not self.root.is_dir():
            raise UserError(
                f"{self.root} is no folder; expected a Stable Diffusion model as diffusers saves it, given as "
                "config.denoiser.pretrained in training and as backbone in generating"
            )
        for part in ("unet", *TEXT_PARTS, "scheduler"):
            if not (self.root / part).is_dir():
                raise UserError(f"{self.root} has no {part}/; expected a Stable Diffusion model as diffusers saves it")
        self._check_unet()

    def _check_unet(self) -> None:
        unet, text = self.part("unet"), self.part("text_encoder")
        if (kind := unet.get("_class_name")) != "UNet2DConditionModel":
            raise UserError(f"{self.root}/unet is a {kind}, expected a UNet2DConditionModel")
        if unet["in_channels"] != unet["out_channels"]:
            raise UserError(
                f"{self.root}/unet takes {unet['in_channels']} channels and gives {unet['out_channels']}, expected as "
                "many: a model that inpaints, edits or upscales is no text-to-image model"
            )
        if told := [name for name in OTHER_CONDITIONS if unet.get(name)]:
            raise UserError(
                f"{self.root}/unet is told more than text ({told[0]}={unet[told[0]]}); expected Stable Diffusion 1 or 2"
            )
        if unet["cross_attention_dim"] != text["hidden_size"]:
            raise UserError(
                f"{self.root}/unet attends to {unet['cross_attention_dim']} channels, its text_encoder makes "
                f"{text['hidden_size']}; the parts are of different models"
            )

    def part(self, name: str, file: str = "config.json") -> dict[str, Any]:
        """The configuration of a part. raises UserError if it is missing or unreadable"""
        path = self.root / name / file
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not readable ({error}); copy the folder again") from error
        if not isinstance(config, dict):
            raise UserError(f"{path} holds a {type(config).__name__}, expected an object; copy the folder again")
        return config

    def describe(self, config: "DenoiserConfig") -> "DenoiserConfig":
        """`config` with everything that the folder decides: an image network alone, no layout, no closed forms."""
        return describe_unet(self.part("unet"), config)

    def schedule(self, config: ScheduleConfig) -> ScheduleConfig:
        """The process that the network was trained on. The loss is that of what it predicts, the paper's, but where
        `config` weighs it by min_snr.

        raises  UserError for a process that is not ours
        """
        found = self.part("scheduler", "scheduler_config.json")
        where, prediction = f"{self.root}/scheduler", found.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise UserError(f"{where} predicts {prediction}, expected one of {', '.join(PREDICTIONS)}")
        beta, steps = found.get("beta_schedule", "linear"), found.get("num_train_timesteps", TIMESTEPS)
        if beta not in BETAS.values() or found.get("trained_betas") or steps != TIMESTEPS:
            own = " of its own" if found.get("trained_betas") else f" {beta}"
            raise UserError(
                f"{where} has {steps} timesteps and betas{own}, expected {TIMESTEPS} and one of "
                f"{', '.join(sorted(set(BETAS.values())))}"
            )
        plain = "epsilon" if PREDICTIONS[prediction] == "epsilon" else "velocity"
        return replace(
            config,
            beta=beta,
            beta_start=found.get("beta_start", 1e-4),
            beta_end=found.get("beta_end", 0.02),
            zero_snr=found.get("rescale_betas_zero_snr", False),
            prediction=PREDICTIONS[prediction],
            weighting="min_snr" if config.weighting == "min_snr" else plain,
        ).check()

    def load(self, config: "DenoiserConfig", lora: Path | None = None, lora_scale: float = 1.0) -> "TextDenoiser":
        """The image network with the folder's weights, and those of a LoRA file added.

        raises  UserError for weights that do not fit, or are a pickle
        """
        from drivesim.models.text_denoiser import TextDenoiser  # here, since it builds on what names this module

        denoiser = TextDenoiser(self.describe(config))
        vae_folder.load_weights(str(self.root / "unet"), denoiser.unet)
        if lora is not None:
            merge_lora(lora, denoiser.unet, lora_scale)
        return denoiser

    @property
    def text_folders(self) -> list[Path]:
        """What of the folder is needed beside the image network's weights, to go into a bundle as it is."""
        return [self.root / name for name in TEXT_PARTS]

    def sha256(self) -> str:
        """One hash of the image network and the text encoder."""
        return folder_sha256(self.root, ("unet", *TEXT_PARTS))


def describe_unet(unet: dict[str, Any], config: "DenoiserConfig") -> "DenoiserConfig":
    """`config` of an image network alone, no layout, no closed forms, whose config.json is `unet`."""
    unet = {name: value for name, value in unet.items() if not name.startswith("_")}
    widths = list(unet["block_out_channels"])
    layers = unet.get("layers_per_block", 2)
    return replace(
        config,
        channels=unet["out_channels"],
        planes=0,
        block_out_channels=widths,
        layers_per_block=[layers] * len(widths) if isinstance(layers, int) else list(layers),
        attention=["CrossAttn" in name for name in unet["down_block_types"]],
        token_dim=unet["cross_attention_dim"],
        groups=unet.get("norm_num_groups", 32),
        prior=0,
        filters=0,
        unet=unet,
    )
