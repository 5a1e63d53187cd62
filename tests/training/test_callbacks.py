"""The time budget, the learning rate, the averaged weights, and checkpoints that are whole."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drivesim.training.callbacks import AveragedWeights, Budget, WholeCheckpoints


def rates(steps: int, warmup: int, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    budget, made = Budget(None, steps, warmup, "x"), []
    strategy = SimpleNamespace(broadcast=lambda value: value)
    for step in range(steps):
        budget.on_train_batch_start(SimpleNamespace(global_step=step, optimizers=[optimizer], strategy=strategy))
        made.append(optimizer.param_groups[0]["lr"])
    return made


def test_the_learning_rate_warms_up_and_then_follows_half_a_cosine():
    made = rates(100, 10, lr=2.0)
    expected = [2 * min((i + 1) / 10, 1) * (0.02 + 0.98 * (1 + math.cos(math.pi * i / 100)) / 2) for i in range(100)]
    assert_close(torch.tensor(made), torch.tensor(expected))
    assert made[0] < 0.21
    assert max(made) <= 2.0
    assert made[-1] < 0.05


def test_progress_is_the_larger_share_of_steps_and_time(monkeypatch):
    budget = Budget(60, 100, 0, "x")
    monkeypatch.setattr(budget, "time_elapsed", lambda: 30.0)
    assert budget.progress(10) == 0.5
    assert budget.progress(80) == 0.8
    assert budget.progress(1000) == 1


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_averaged_weights_follow_their_recursion(decay):
    callback, model, trainer = AveragedWeights(decay), nn.Linear(1, 1), SimpleNamespace(global_step=0)
    callback.on_train_start(trainer, model)
    expected = 0.0
    for step in range(30):
        nn.init.constant_(model.weight, step)
        trainer.global_step = step + 1
        callback.on_train_batch_end(trainer, model)
        callback.on_train_batch_end(trainer, model)  # a batch that is no step counts for nothing
        horizon = min(decay, (1 + step) / (10 + step)) if step else 0.0
        expected = horizon * expected + (1 - horizon) * step
    assert_close(callback.average["weight"].item(), expected)
    callback.on_fit_end(trainer, model)
    assert_close(model.weight.item(), expected)


def test_averages_are_of_trained_weights_alone_and_outlive_a_checkpoint():
    callback, model, trainer = AveragedWeights(0.5), nn.Linear(2, 1), SimpleNamespace(global_step=1)
    model.bias.requires_grad_(False)
    callback.on_train_start(trainer, model)
    callback.on_train_batch_end(trainer, model)
    saved = callback.state_dict()
    assert list(saved["average"]) == ["weight"]
    resumed, other = AveragedWeights(0.5), nn.Linear(2, 1)
    resumed.load_state_dict(saved)
    resumed.on_fit_end(trainer, other)  # a run saved at its very end
    assert torch.equal(other.weight, model.weight)


def test_swapping_twice_changes_nothing():
    callback, model = AveragedWeights(0.5), nn.Linear(2, 1)
    callback.on_train_start(SimpleNamespace(global_step=0), model)
    nn.init.ones_(model.weight)
    callback.swap(model)
    assert not torch.equal(model.weight, torch.ones(1, 2))
    callback.swap(model)
    assert torch.equal(model.weight, torch.ones(1, 2))


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    plugin, path = WholeCheckpoints({}), tmp_path / "last.ckpt"
    plugin.save_checkpoint({"step": 1}, path)

    def broken(checkpoint, file):
        file.write_bytes(b"half")
        raise RuntimeError("power cut")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError):
        plugin.save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1, "configuration": {}}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / ".last.12345.partial.ckpt").write_bytes(b"half")
    WholeCheckpoints({}).save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
