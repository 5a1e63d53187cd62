"""A trained autoencoder in a folder as diffusers saves it, such as Stable Diffusion's vae/."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from drivesim.errors import UserError

WEIGHTS = "diffusion_pytorch_model"
KINDS = {"AutoencoderKL": "kl", "AutoencoderDC": "dc"}


def read_network(folder: str, network_class: type) -> dict[str, Any]:
    """config.json of a folder that holds a network of `network_class`, without diffusers' private entries.

    raises  UserError for a folder that is none, holds another network, or its weights as a pickle alone
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"autoencoder.pretrained={folder} is no folder; expected one with config.json and {WEIGHTS}.safetensors"
        )
    if not (path / "config.json").is_file():
        inside = f"; did you mean {path / 'vae'}?" if (path / "vae" / "config.json").is_file() else ""
        raise UserError(f"{path} has no config.json, so it is no autoencoder that diffusers saved{inside}")
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} is not readable ({error}); copy the folder again") from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found not in KINDS:
        raise UserError(f"{path} holds {found or 'no network'}, expected {' or '.join(KINDS)}")
    if found != network_class.__name__:
        raise UserError(
            f"autoencoder.kind is {KINDS[network_class.__name__]!r} but {path} holds {found}; "
            f"set autoencoder.kind={KINDS[found]}"
        )
    weight_variant(path)
    return {name: value for name, value in config.items() if not name.startswith("_")}


def load_weights(folder: str, network: nn.Module) -> None:
    """Load a folder's weights into `network`, a fresh one of its config.

    raises  UserError for weights that are missing, too many, damaged or no finite numbers
    """
    path = Path(folder)
    try:
        # Through diffusers: shards, half precision, and the names that attention had when Stable Diffusion came out.
        loaded, report = type(network).from_pretrained(
            path,
            variant=weight_variant(path),
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{path}: the weights do not fit config.json or are damaged ({_line(error)})") from error
    if wrong := [*report["missing_keys"], *report["unexpected_keys"]]:
        raise UserError(f"{path}: {len(wrong)} weights are missing or unknown, the first is {wrong[0]}")
    if bad := [name for name, weight in loaded.state_dict().items() if not bool(weight.isfinite().all())]:
        raise UserError(f"{path}: {bad[0]} holds numbers that are not finite; copy the folder again")
    network.load_state_dict(loaded.state_dict())


def weight_variant(path: Path, stem: str = WEIGHTS) -> str | None:
    """None for weights under their plain name, else the variant that is there: fp16 or bf16.

    stem    name of the file without its suffix: diffusers' by default
    raises  UserError where there is none but a pickle, or none at all
    """
    for variant, mark in ((None, ""), ("fp16", ".fp16"), ("bf16", ".bf16")):
        names = f"{stem}{mark}.safetensors", f"{stem}.safetensors.index{mark}.json"  # whole, or in shards
        if any((path / name).is_file() for name in names):
            return variant
    if pickles := sorted(file for kind in ("bin", "pt", "ckpt") for file in path.glob(f"*.{kind}")):
        raise UserError(
            f"{path} has its weights in {pickles[0].name} alone, a pickle, which may run anything and is not read; "
            f"save it again with save_pretrained(..., safe_serialization=True), which writes {stem}.safetensors"
        )
    raise UserError(f"{path} has no {stem}.safetensors; copy the folder again")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
