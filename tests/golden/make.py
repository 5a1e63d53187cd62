"""Golden bundles: tiny ones as earlier versions saved them, which every later version has to read.

    python tests/golden/make.py make tests/golden/format_1 FOLDER     the bundle that a description is of
    python tests/golden/make.py describe BUNDLE tests/golden/format_2  a description, for a format to come

A description is what the version of its time wrote: model_index.json without hashes, config.json and training.json of
every stage, and tensors.json, the names and shapes in its weight file. Weights are made here, the same on any machine.
Nothing of drivesim is imported, whose later versions are what is tested.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

SPREAD = 0.02  # of weights: signals stay finite through any number of layers
POSITIVE = ("variances", "rest", "_std", "running_var")  # buffers that are spreads


def weight(name: str, shape: list[int]) -> np.ndarray:
    """float32 of `shape`, by name alone: around 1 where a norm scales or a buffer is a spread, else around 0."""
    around = 1.0 if name.endswith(POSITIVE) or (len(shape) == 1 and name.endswith("weight")) else 0.0
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    # Uniform from the raw bits: of a generator numpy promises those alone for all its versions to come.
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return (around + SPREAD * (bits / 2.0**63 - 1.0)).astype(np.float32).reshape(shape)


def make(description: Path, out: Path) -> Path:
    """Write the bundle that is described to `out`, and return it."""
    index = json.loads((description / "model_index.json").read_text())
    for stage, entry in index["stages"].items():
        folder = out / stage
        folder.mkdir(parents=True)
        tensors = json.loads((description / stage / "tensors.json").read_text())
        (path,) = (folder / name for name in tensors)
        save_file({name: weight(name, shape) for name, shape in tensors[path.name].items()}, path)
        for name in ("config.json", "training.json"):
            (folder / name).write_bytes((description / stage / name).read_bytes())
        hashes = {name: other["sha256"] for name, other in index["stages"].items() if "sha256" in other}
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["built_on"] = {name: hashes[name] for name in entry["built_on"]}
    (out / "model_index.json").write_text(json.dumps(index, indent=2))
    return out


def describe(bundle: Path, out: Path) -> None:
    """Write the description of a bundle; its stages are in the order they were trained in."""
    index = json.loads((bundle / "model_index.json").read_text())
    for stage, entry in index["stages"].items():
        folder = out / stage
        folder.mkdir(parents=True)
        (path,) = (bundle / stage).glob("*.safetensors")
        with safe_open(path, "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, no mapping
        (folder / "tensors.json").write_text(json.dumps({path.name: shapes}, separators=(",", ":")) + "\n")
        for name in ("config.json", "training.json"):
            (folder / name).write_bytes((bundle / stage / name).read_bytes())
        entry["built_on"] = list(entry["built_on"])
        del entry["sha256"]
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    word, source, target = sys.argv[1:]
    {"make": make, "describe": describe}[word](Path(source), Path(target))
