"""How far a video has come, beside it in one file, so that the same command goes on after a kill at any moment.

OUT.partial.mp4 holds the finished segments, OUT.partial.safetensors the state of the cascade after the last of them and
what the video follows from. Another seed, bundle or start would go on with another video, so that is refused.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drivesim import __version__
from drivesim.bundle import Bundle
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.generation.costs import Cost
from drivesim.generation.stage import Rollout
from drivesim.generation.writer import Written, hash_written, partial_path
from drivesim.machine import probe

UNBOUND = ("out", "overwrite", "contact_sheet", "bundle")  # options that no frame depends on; a bundle may be moved
LIBRARIES = ("torch", "diffusers", "av")  # of which another version may round, or encode, otherwise
SHOWN = 12  # letters of a hash that are told


@dataclass(frozen=True)
class Checkpoint:
    """made_of  what the video follows from, by name: options, hashes, versions
    machine   precision and threads it is computed with, which decide how sums are rounded (`machine.settle`)
    written   what is in the partial video
    state     of the rollout after that (`Rollout.state`)
    sheet     frames of the contact sheet so far, uint8 [h, w, 3] by their number
    write_s   seconds that writing took
    complete  no frame is missing; what comes beside the video may have been written
    """

    made_of: dict[str, Any]
    machine: dict[str, Any]
    written: Written = Written()
    state: dict[str, Tensor] = field(default_factory=dict)
    sheet: dict[int, np.ndarray] = field(default_factory=dict)
    write_s: float = 0.0
    complete: bool = False

    def save(self, out: Path | str) -> None:
        """Write it beside the video `out`, in place of the one before. raises UserError when the disk is full"""
        told = asdict(replace(self, state={}, sheet={}))
        tensors = {f"state.{name}": value for name, value in self.state.items()}
        tensors |= {f"sheet.{number}": torch.from_numpy(picture) for number, picture in self.sheet.items()}
        content = safetensors.torch.save(tensors, {"checkpoint": json.dumps(told)})
        with atomic_path(checkpoint_path(out)) as temporary:
            temporary.write_bytes(content)

    @staticmethod
    def read(out: Path | str) -> "Checkpoint | None":
        """That of the video `out`, if there is one. raises UserError if it is damaged"""
        path = checkpoint_path(out)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                told = json.loads(file.metadata()["checkpoint"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
            sheet = {int(k.removeprefix("sheet.")): v.numpy() for k, v in tensors.items() if k.startswith("sheet.")}
            told["written"] = Written(**told["written"])
            return Checkpoint(**{**told, "state": state, "sheet": dict(sorted(sheet.items()))})
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); add overwrite=true to begin {out} anew") from error


def checkpoint_path(out: Path | str) -> Path:
    """`out.mp4` -> `out.partial.safetensors`."""
    return partial_path(out).with_suffix(".safetensors")


def going_on(out: Path | str, made_of: Mapping[str, Any], overwrite: bool) -> Checkpoint | None:
    """What there is of the video `out` to go on from; None to begin.

    made_of    what is asked for now, all of it or a part
    overwrite  begin anew where one could not go on
    raises     UserError, naming what differs, if the video was begun from something else, or it was changed since
    """
    try:
        found = Checkpoint.read(out)
        if found is not None:
            _refuse_other(out, found, json.loads(json.dumps(dict(made_of))))
        return found
    except UserError:
        if overwrite:
            return None
        raise


def is_whole(out: Path | str, found: Checkpoint) -> bool:
    """Whether nothing is left to do but to remove the checkpoint: the partial video goes last but one."""
    return found.complete and Path(out).exists() and not partial_path(out).exists()


def _refuse_other(out: Path | str, found: Checkpoint, made_of: dict[str, Any]) -> None:
    differs = [name for name, value in made_of.items() if value != found.made_of.get(name)]
    if differs:
        told = ", ".join(f"{name}={made_of[name]} instead of {found.made_of.get(name)}" for name in differs)
        raise UserError(
            f"{out} was begun with something else: {told}; give the command it was begun with to go on, or add "
            "overwrite=true to begin anew"
        )
    if is_whole(out, found):
        return
    if not partial_path(out).exists():
        raise UserError(f"{partial_path(out)} is missing; add overwrite=true to begin {out} anew")
    hash_written(partial_path(out), found.written)


class Keeper:
    """Keeps how far a rollout has come, so that it can go on, and what it took.

    video    goes on from where there is something of `out` to go on from, which is `begun`
    made_of  what it follows from; see `going_on` for it, `overwrite` and what is raised
    """

    def __init__(self, out: Path | str, video: Rollout, made_of: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.video = out, video
        machine = {"bf16": probe().bf16, "threads": probe().threads}
        self.begun = going_on(out, made_of, overwrite) or Checkpoint(dict(made_of), machine)
        if self.begun.state:
            video.restore(self.begun.state, probe().device)
        self._clock, self._computed = time.perf_counter(), self._computing()

    def save(self, written: Written, sheet: dict[int, np.ndarray], complete: bool = False) -> None:
        """Of a rollout whose frames are all `written`. raises UserError when the disk is full"""
        machine, state = self.begun.machine, self.video.state()
        Checkpoint(self.begun.made_of, machine, written, state, sheet, self._write_s, complete).save(self.out)

    @property
    def costs(self) -> dict[str, Cost]:
        """Of every stage, in all processes that have worked on the video together."""
        return {**self.video.costs(), "write": Cost(self._write_s)}

    @property
    def _write_s(self) -> float:
        """Seconds that were not spent on making frames."""
        passed = time.perf_counter() - self._clock
        return self.begun.write_s + passed - (self._computing() - self._computed)

    def _computing(self) -> float:
        return sum(cost.seconds for cost in self.video.costs().values())


def settings(options: Mapping[str, Any], bundle: Bundle) -> dict[str, Any]:
    """What a video follows from beside the contents of its start and layout: options, weights, software, machine."""
    index = bundle.index
    stages = {f"bundle.{name}": entry["sha256"][:SHOWN] for name, entry in index.get("stages", {}).items()}
    told = [json.dumps({key: value for key, value in index.items() if key != "stages"}, sort_keys=True)]
    told += [
        path.read_text() for name in index.get("stages", {}) if (path := bundle.root / name / "config.json").exists()
    ]
    software = {"drivesim": __version__, **{name: version(name) for name in LIBRARIES}}
    return {
        **{name: value for name, value in options.items() if name not in UNBOUND},
        **stages,
        "bundle.settings": hashlib.sha256("\n".join(told).encode()).hexdigest()[:SHOWN],
        **{f"version of {name}": value for name, value in software.items()},
        "computing on": _device(),
    }


def content(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors, their names and shapes."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:SHOWN]


def _device() -> str:
    """Another kind of processor sums in another order."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU with {torch.backends.cpu.get_cpu_capability()}"
