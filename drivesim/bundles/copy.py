"""One stage from a bundle into a folder that will be published."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from drivesim.bundle import WEIGHTS, Bundle, folder_sha256
from drivesim.bundles.checksums import sha256
from drivesim.bundles.public import public
from drivesim.bundles.safety import no_pickles
from drivesim.errors import UserError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def copy_stage(bundle: Bundle, stage: str, root: Path, dtype: str | None = None) -> dict[str, Any]:
    """Write `root`/`stage` and return its entry of an index. Pickles that a folder brought are left out.

    dtype   one of DTYPES for the weights; None: as they are
    raises  UserError if the stage is damaged, or the type too small for a weight
    """
    bundle.check_weights(stage)
    source, target = bundle.weights(stage), root / stage
    target.mkdir()
    copy_weights(source, target / source.name, dtype)
    for name, value in (("config.json", bundle.config(stage)), ("training.json", bundle.record(stage))):
        (target / name).write_text(json.dumps(public(value), indent=2) + "\n")
    entry = bundle.index["stages"][stage]
    folders = {}
    for name in entry["folders"]:
        copy_folder(bundle.folder(stage, name), target / name, dtype)
        folders[name] = folder_sha256(target / name)
    path = target / source.name
    return entry | {"sha256": sha256(path), "bytes": path.stat().st_size, "folders": folders}


def copy_folder(source: Path, target: Path, dtype: str | None) -> None:
    shutil.copytree(source, target, ignore=no_pickles)
    for path in target.rglob(f"*{WEIGHTS}") if dtype else ():
        copy_weights(source / path.relative_to(target), path, dtype)


def copy_weights(source: Path, target: Path, dtype: str | None) -> None:
    """A safetensors file, in another type if one is named; vectors and single numbers, the norms and spreads of
    channels, stay as they are: hardly any of the size, and the first to be missed."""
    if dtype is None:
        shutil.copyfile(source, target)
        return
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    tensors = {name: _cast(tensor, dtype, f"{source}: {name}") for name, tensor in load_file(source).items()}
    try:
        save_file(tensors, target, metadata)
    except SafetensorError as error:  # of the system, as that the disk is full
        raise UserError(f"{target} could not be written ({error}); free some room and run again") from error
    target.chmod(0o644)  # for others to read, as every other file of the folder is


def _cast(tensor: Tensor, dtype: str, name: str) -> Tensor:
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return tensor
    cast = tensor.to(DTYPES[dtype])
    if not torch.equal(cast.isfinite(), tensor.isfinite()):
        raise UserError(f"{name} has numbers of up to {float(tensor.abs().max()):g}, too large for {dtype}; use bf16")
    return cast
