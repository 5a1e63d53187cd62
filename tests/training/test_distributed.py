"""Two processes train as one does on the same samples, and either goes on with what the other began."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drivesim import cli
from drivesim.training import train
from drivesim.training.callbacks import Budget, Checkpoints

STEPS, STOP = 4, 2  # the run is stopped after two steps of four
BATCH = 4  # windows a step, of all processes together
# Stops a run when it has done so many steps, with a checkpoint after each, in all of its processes; spoils a window; or
# fails in one process alone.
DRIVER = """
import os, sys, time
from drivesim import cli
from drivesim.data import loader
from drivesim.training import train
from drivesim.training.callbacks import Budget, Checkpoints
from drivesim.training.latent import LatentVideoDiffusion

real, stop = Budget.on_train_batch_start, int(os.environ["STOP"])
spoilt, alone = int(os.environ.get("SPOILT", -1)), int(os.environ.get("ALONE", -1))
collate, step = loader.collate, LatentVideoDiffusion.training_step

def spoil(items):
    batch = collate(items)
    if spoilt in batch.numbers:
        batch.x[batch.numbers.index(spoilt)] = float("nan")
    return batch

def fail(self, batch, batch_idx):
    if self.global_rank == alone:
        raise MemoryError
    return step(self, batch, batch_idx)

loader.collate, LatentVideoDiffusion.training_step = spoil, fail

def start(self, trainer, *args):
    if trainer.global_step == stop:
        time.sleep(trainer.global_rank)  # the first process, whose code is told, must not find the other gone
        sys.exit(3)
    real(self, trainer, *args)

Budget.on_train_batch_start = start
train.Checkpoints = lambda path, seconds: Checkpoints(path, 0)
cli.main(sys.argv[1:])
"""


pytestmark = pytest.mark.usefixtures("alike")


class Keyframes:
    """The stage of keyframes of a small run whose image network is trained, in one process or two."""

    def __init__(self, run) -> None:
        self.run, self.losses = run, []

    def words(self, processes: int, *more: str) -> list[str]:
        size = f"config.stages.keyframes.batch_size={BATCH // processes}"
        return self.run.words("stage=keyframes", f"devices={processes}", size, *more, steps=STEPS)

    def alone(self, *more: str) -> "Keyframes":
        cli.main(self.words(1, *more))
        return self._note()

    def alone_until_stopped(self, monkeypatch) -> "Keyframes":
        real = Budget.on_train_batch_start

        def start(callback, trainer, *args):
            if trainer.global_step == STOP:
                raise InterruptedError
            real(callback, trainer, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Budget, "on_train_batch_start", start)
            patch.setattr(train, "Checkpoints", lambda path, seconds: Checkpoints(path, 0))
            with pytest.raises(InterruptedError):
                self.alone()
        return self._note()

    def together(self, stop: int, strategy: str, *more: str) -> "Keyframes":
        told = self.drive({"STOP": str(stop)}, f"strategy={strategy}", *more)
        assert told.returncode == (3 if stop < STEPS else 0), told.stderr[-3000:]
        return self._note()

    def drive(self, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess:
        driver = self.run.out.parent / "driver.py"
        driver.write_text(DRIVER)
        return subprocess.run(
            [sys.executable, driver, *self.words(2, *more)],
            env=os.environ | {"STOP": str(STEPS), "PYTHONPATH": os.pathsep.join(sys.path)} | environment,
            capture_output=True,
            text=True,
            timeout=280,
        )

    def _note(self) -> "Keyframes":
        with open(self.run.out / "keyframes" / "logs" / "metrics.csv") as file:
            self.losses += [float(row["loss"]) for row in csv.DictReader(file)]
        return self


@pytest.fixture
def begin(trained, run_in, tmp_path):
    """begin(): a run that has all stages but the keyframes."""

    def copy(name: str = "out") -> Keyframes:
        run = run_in(tmp_path / name)
        shutil.copytree(trained.bundle, run.bundle)
        shutil.rmtree(run.bundle / "keyframes")
        index = run.bundle / "model_index.json"
        stages = json.loads(index.read_text())
        del stages["stages"]["keyframes"]
        index.write_text(json.dumps(stages))
        return Keyframes(run)

    return copy


@pytest.fixture(scope="module")
def expected(trained, run_in, tmp_path_factory, measured_alike):
    """The loss curve and the weights of one uninterrupted process."""
    with pytest.MonkeyPatch.context() as patch:
        measured_alike(patch)
        folder: Path = tmp_path_factory.mktemp("alone")
        whole = begin.__wrapped__(trained, run_in, folder)().alone()
    return whole


def same(one: Keyframes, other: Keyframes) -> bool:
    """Equal but for the rounding of sums in another order, which AdamW's first steps enlarge: other noise changes the
    loss by a tenth."""
    assert len(one.losses) == STEPS
    assert one.losses == pytest.approx(other.losses, rel=1e-4)
    return apart(one, other) < 1e-4


def apart(one: Keyframes, other: Keyframes) -> float:
    """Distance of two trained networks, over the length of their weights."""
    a, b = (made.run.weights("keyframes") for made in (one, other))
    assert a.keys() == b.keys()
    x, y = (torch.cat([weights[name].flatten().double() for name in sorted(a)]) for weights in (a, b))
    return float((x - y).norm() / y.norm())


def test_accumulated_gradients_are_those_of_the_whole_batch(begin, expected):
    words = ["config.stages.keyframes.accumulate=2", f"config.stages.keyframes.batch_size={BATCH // 2}"]
    parts = begin()
    cli.main([*parts.words(1), *words])
    assert apart(parts, expected) < 1e-4


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_two_processes_began_one_finishes(begin, expected, strategy):
    assert same(begin().together(STOP, strategy).alone(), expected)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_one_process_began_two_finish(begin, expected, monkeypatch, strategy):
    half = begin().alone_until_stopped(monkeypatch)
    assert same(half.together(STEPS, strategy, "config.stages.keyframes.checkpointing=true"), expected)


@pytest.mark.parametrize(
    ("environment", "lines"),
    [
        ({"SPOILT": "5"}, [r"keyframes: a window is not finite .* at step 1 \(clip c\d from frame \d+\)"]),
        ({"ALONE": "1"}, ["keyframes: out of memory", "keyframes: another process of this run ended"]),
    ],
)
def test_what_goes_wrong_in_one_process_ends_all_and_is_told_in_its_words(begin, environment, lines):
    told = begin().drive(environment, "strategy=ddp")
    assert told.returncode == 2
    assert "Traceback" not in told.stderr
    found = re.findall(r"drivesim: (keyframes: .*)", told.stderr)
    assert len(found) == len(lines)
    assert all(any(re.match(line, one) for one in found) for line in lines), found
