"""A bundle of every stage, trained for a few steps through the command line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from drivesim import cli
from drivesim.bundle import Bundle
from drivesim.training.stages import STAGES

STEPS = 3


@dataclass
class Run:
    """A folder of `drivesim train`."""

    out: Path
    data: Path

    def words(self, *more: str, steps: int = STEPS) -> list[str]:
        limits = [f"config.stages.{name}.max_steps={steps}" for name in STAGES]
        return ["train", "experiment=town_tiny", f"data={self.data}", f"out={self.out}", *limits, *more]

    def train(self, *more: str, steps: int = STEPS) -> None:
        cli.main(self.words(*more, steps=steps))

    @property
    def bundle(self) -> Path:
        return self.out / "bundle"

    def weights(self, stage: str) -> dict[str, Tensor]:
        return load_file(Bundle(self.bundle).weights(stage))


@pytest.fixture(scope="session")
def run_in(small_store) -> Callable[[Path], Run]:
    """run_in(folder): training into `folder` on the small store."""
    return lambda out: Run(out, small_store.root)


@pytest.fixture(scope="session")
def trained(run_in, tmp_path_factory) -> Run:
    """Every stage, trained without interruption. Not to be changed by a test."""
    run = run_in(tmp_path_factory.mktemp("trained") / "out")
    run.train()
    return run
