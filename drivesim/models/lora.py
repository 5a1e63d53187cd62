"""Weights of a LoRA file (Hu et al. 2021) added to a backbone, by diffusers and peft, in their names or kohya's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from drivesim.errors import UserError

ADAPTER = "added"


def merge_lora(path: Path | str, unet: nn.Module, scale: float = 1.0) -> None:
    """Add `scale` times a LoRA file to a U-Net's weights, in place; its layers stay what they are.

    raises  UserError for a file that is no LoRA for it
    """
    from diffusers import StableDiffusionPipeline

    file = _read(path, unet.config)
    if not (count := _layers(file.state, "unet.")):
        raise UserError(f"{path} changes nothing in a U-Net; expected the LoRA of a Stable Diffusion model")
    with _fitting(path):
        StableDiffusionPipeline.load_lora_into_unet(
            file.state, file.alphas, unet, adapter_name=ADAPTER, metadata=file.metadata
        )
    _merge(path, unet, scale, count)


def merge_lora_into_text(path: Path | str, text_encoder: nn.Module, scale: float = 1.0) -> None:
    """The same for a text encoder, of which most LoRA files change nothing.

    By peft itself: what transformers 5.24 has for it wants a peft that is not released yet.
    """
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, get_peft_kwargs
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    file = _read(path, None)
    if not (count := _layers(file.state, "text_encoder.")):
        return
    with _fitting(path):
        state = convert_state_dict_to_peft(convert_state_dict_to_diffusers(_below(file.state, "text_encoder.")))
        # Older files know the network by what it was part of then.
        state = {name.removeprefix("text_model."): value for name, value in state.items()}
        ranks = {name: value.shape[1] for name, value in state.items() if "lora_B." in name}
        told = _below(file.metadata or {}, "text_encoder.")
        alphas = {
            name.removeprefix("text_model."): value
            for name, value in _below(file.alphas or {}, "text_encoder.").items()
        }
        config = LoraConfig(**(told or get_peft_kwargs(ranks, alphas, state, is_unet=False)))
        inject_adapter_in_model(config, text_encoder, ADAPTER)
        set_peft_model_state_dict(text_encoder, state, ADAPTER)
    _merge(path, text_encoder, scale, count)


def check_lora(path: Path | str) -> Path:
    """raises UserError unless this is a safetensors file"""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"lora={path} is no safetensors file; pickles are never read, save it again with safe_serialization=True"
        )
    return path


@dataclass(frozen=True)
class _File:
    """What is in a LoRA file: matrices under diffusers' names, and what they are multiplied by, told either way."""

    state: dict[str, Any]
    alphas: dict[str, float] | None
    metadata: dict[str, Any] | None


def _read(path: Path | str, unet_config: Any) -> _File:
    from diffusers import StableDiffusionPipeline

    path = check_lora(path)
    with _fitting(path):
        return _File(
            *StableDiffusionPipeline.lora_state_dict(
                str(path.parent),
                weight_name=path.name,
                unet_config=unet_config,
                use_safetensors=True,
                local_files_only=True,
                return_lora_metadata=True,
            )
        )


def _below(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _layers(state: dict[str, Any], prefix: str) -> int:
    """How many layers a file changes below a prefix: each has one matrix that brings it back to its width."""
    return sum(name.startswith(prefix) and ("lora_B." in name or name.endswith(".up.weight")) for name in state)


def _merge(path: Path | str, model: nn.Module, scale: float, expected: int) -> None:
    """Add what was loaded to the weights and put the plain layers back."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if len(layers) != expected:
        raise UserError(
            f"{path} changes {expected} layers, {len(layers)} of which are in this backbone; it is of another model"
        )
    for layer in layers:
        layer.scale_layer(scale)
        layer.merge()
    recurse_remove_peft_layers(model)


@contextmanager
def _fitting(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"lora={path} does not fit this backbone or is damaged ({reason})") from error
