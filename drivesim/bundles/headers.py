"""A bundle of which nothing is read but configurations and the heads of weight files: shapes, no numbers."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drivesim.bundle import Bundle
from drivesim.bundles.checksums import sha256
from drivesim.errors import UserError

META = torch.device("meta")


@dataclass
class Headers(Bundle):
    """Builds networks as `Bundle` does, by the same code and with the same verdicts, within the `META` device: in no
    memory, and of files of any size within moments. `check_weights` is for who also wants to know that files are those
    of the index; each file is read once for it, and `tell` is told of its bytes.
    """

    tell: Callable[[int], object] = lambda read: None
    _digests: dict[Path, str] = field(default_factory=dict)

    def digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = sha256(path, self.tell)
        return self._digests[path]

    def read(self, stage: str) -> dict[str, Tensor]:
        """Tensors that have shapes alone. raises UserError if the file is missing, or no safetensors"""
        path = self.weights(stage)
        if not path.exists():
            raise UserError(f"{path} is missing; copy the bundle again or run `drivesim train stage={stage}`")
        return {name: torch.empty(shape, device=META) for name, shape in Header.of(path).shapes.items()}


@dataclass(frozen=True)
class Header:
    """What the head of a safetensors file says: shape and type of every tensor, by name."""

    shapes: dict[str, list[int]]
    dtypes: dict[str, str]

    @classmethod
    def of(cls, path: Path) -> "Header":
        """raises UserError if it is no safetensors file, or ends too early"""
        try:
            with safe_open(path, "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no mapping
                return cls(
                    {name: part.get_shape() for name, part in slices.items()},
                    {name: part.get_dtype() for name, part in slices.items()},
                )
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is no safetensors file, or not a whole one ({error}); copy it again") from error

    @property
    def parameters(self) -> int:
        """Numbers in the file, trained ones and others."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def dtype(self) -> str:
        """What most of the numbers are stored as: fp32, bf16, fp16, or the format's own word."""
        counts: dict[str, int] = {}
        for name, kind in self.dtypes.items():
            counts[kind] = counts.get(kind, 0) + prod(self.shapes[name])
        most = max(counts, key=lambda kind: counts[kind], default="none")
        return {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}.get(most, most)
