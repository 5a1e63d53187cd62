"""Numbers that are not finite, memory that runs out, foreign checkpoints: one line ends the run and says what to do."""

import json
import math
import shutil

import pytest
import torch

from drivesim import cli
from drivesim.data.windows import WindowDataset
from drivesim.errors import UserError
from drivesim.machine import is_out_of_memory
from drivesim.training import train
from drivesim.training.callbacks import Checkpoints
from drivesim.training.experiment import StageConfig
from drivesim.training.failures import is_lost_process, out_of_memory, require_finite_weights, require_same
from drivesim.training.latent import LatentVideoDiffusion


@pytest.fixture
def run(trained, run_in, tmp_path, monkeypatch):
    """A run that has an autoencoder alone, and is saved after every step."""
    made = run_in(tmp_path / "out")
    shutil.copytree(trained.bundle / "autoencoder", made.bundle / "autoencoder")
    index = json.loads((trained.bundle / "model_index.json").read_text())
    index["stages"] = {"autoencoder": index["stages"]["autoencoder"]}
    (made.bundle / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(train, "Checkpoints", lambda path, seconds: Checkpoints(path, 0))
    return made


def fails(run, capsys, *words: str) -> str:
    """The one line that ends the training of the image stage."""
    with pytest.raises(SystemExit) as stop:
        cli.main(run.words("stage=image", "config.stages.image.batch_size=2", *words))
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def saved(run) -> dict:
    return torch.load(run.out / "image" / "last.ckpt", weights_only=False)


def test_a_window_that_holds_nan_is_named_and_the_checkpoint_before_it_is_kept(run, capsys, monkeypatch):
    real = WindowDataset.__getitem__
    spoilt = []

    def item(self, i):
        x, *rest = real(self, i)
        if i == 3 and "training" in spoilt:
            spoilt.append(self.place(i))
            x = x * float("nan")
        return (x, *rest)

    started = LatentVideoDiffusion.on_train_start
    monkeypatch.setattr(LatentVideoDiffusion, "on_train_start", lambda s: (spoilt.append("training"), started(s))[1])
    monkeypatch.setattr(WindowDataset, "__getitem__", item)
    told = fails(run, capsys)
    assert f"image: a window is not finite (nan) at step 1 ({spoilt[-1]}); leave these out by config.data.where" in told
    assert spoilt[-1].startswith("clip c")
    assert " from frame " in spoilt[-1]
    assert "last.ckpt is good" in told
    assert saved(run)["global_step"] == 1


def test_a_run_that_blows_up_keeps_finite_weights_and_goes_on_at_a_lower_rate(run, capsys):
    told = fails(run, capsys, "config.stages.image.lr=1e30", "config.stages.image.warmup_steps=3")
    assert "lower config.stages.image.lr" in told
    assert told.count("clip c") == 2  # the windows of the step
    kept = saved(run)
    assert all(torch.isfinite(w).all() for w in kept["state_dict"].values() if w.is_floating_point())


def test_a_learning_rate_may_change_when_a_run_goes_on(run, capsys, monkeypatch):
    real, rates, stops = LatentVideoDiffusion.training_step, [], [True]

    def step(self, batch, batch_idx):
        if stops and self.global_step == 2:
            raise MemoryError
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return real(self, batch, batch_idx)

    monkeypatch.setattr(LatentVideoDiffusion, "training_step", step)
    fails(run, capsys, "config.stages.image.warmup_steps=0")
    stops.clear()
    run.train("stage=image", "config.stages.image.lr=1e-5", "config.stages.image.warmup_steps=0")
    expected = [0.02 + 0.98 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    assert rates == pytest.approx([1e-3 * expected[0], 1e-3 * expected[1], 1e-5 * expected[2]])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to "),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 137438953472 bytes."),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_ends_in_the_options_that_save_it(run, capsys, monkeypatch, error):
    def step(*_):
        raise error

    monkeypatch.setattr(LatentVideoDiffusion, "training_step", step)
    told = fails(run, capsys)
    for way in ("checkpointing=true", "image.batch_size=1 config.stages.image.accumulate=2", "strategy=fsdp devices=2"):
        assert way in told
    assert "out of memory" in told


def test_another_runtime_error_is_taken_for_neither_memory_nor_a_lost_process():
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_lost_process(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize(
    ("name", "stage", "strategy", "ways"),
    [
        ("keyframes", StageConfig(batch_size=1, checkpointing=True), "fsdp", ["a smaller network"]),
        ("keyframes", StageConfig(batch_size=1, checkpointing=True), "ddp", ["strategy=fsdp"]),
        ("decoder", StageConfig(batch_size=4), "ddp", ["config.stages.decoder.batch_size=2"]),
    ],
)
def test_only_options_that_are_still_open_are_named(name, stage, strategy, ways):
    told = str(out_of_memory(name, stage, MemoryError(), 2, strategy))
    known = ("a smaller network", "strategy=fsdp", "checkpointing=true", "accumulate", "batch_size")
    named = [way for way in known if way in told]
    assert len(named) == len(ways)
    assert all(way in told for way in ways)


def test_weights_that_are_not_finite_are_never_saved():
    layer = torch.nn.Linear(2, 2)
    require_finite_weights(layer, "image")
    layer.bias.data[1] = float("inf")
    with pytest.raises(UserError, match=r"bias is not finite; lower config\.stages\.image\.lr"):
        require_finite_weights(layer, "image")


def test_a_checkpoint_names_the_settings_in_which_it_differs():
    then = {"config.denoiser.width": 8, "config.schedule.beta": "linear", "gone": 1}
    require_same("last.ckpt", then, then | {"config.new": 0})  # a setting that it could not know is no difference
    with pytest.raises(UserError, match=r"\(config\.schedule\.beta was linear, now cosine\); give the configuration"):
        require_same("last.ckpt", then, then | {"config.schedule.beta": "cosine"})


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("config.denoiser.block_out_channels=[16,48]", "config.denoiser.block_out_channels was [16, 32], now [16, 48]"),
        ("config.schedule.zero_snr=false", "config.schedule.zero_snr was True, now False"),
        ("config.image.drop_boxes=0.3", "config.image.drop_boxes was 0.1, now 0.3"),
        ("config.stages.image.adversarial=0.1", "config.stages.image.adversarial was 0.0, now 0.1"),
    ],
)
def test_a_run_does_not_go_on_from_a_checkpoint_of_another_configuration(run, capsys, monkeypatch, word, told):
    monkeypatch.setattr(train, "export", stopped)  # a run that is killed at its very end
    with pytest.raises(InterruptedError):
        run.train("stage=image", steps=1)
    assert told in fails(run, capsys, word)


def stopped(*_):
    raise InterruptedError
