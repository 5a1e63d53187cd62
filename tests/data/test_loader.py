"""Batches of windows: each sample once, also when a run is killed and goes on, on other processes perhaps."""

from itertools import islice
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from drivesim.data.augment import AugmentConfig
from drivesim.data.loader import WindowModule
from drivesim.data.windows import WindowDataset, WindowSpec
from drivesim.errors import UserError

COARSE, FULL = WindowSpec(5, 7.5), WindowSpec(5, 30)


class Starts:
    """A reader whose pictures are the numbers of the frames."""

    def window(self, clip, start, count, stride, rng) -> torch.Tensor:
        return (start + stride * torch.arange(count)).float()


def module(store, size: int = 2, workers: int = 0, world: int = 1, rank: int = 0, **kwargs) -> WindowModule:
    """A module whose trainer runs `world` processes, of which this is number `rank`."""
    made = WindowModule(WindowDataset(store, Starts(), "train", **{"specs": [FULL], "seed": 0} | kwargs), size, workers)
    made.trainer = SimpleNamespace(world_size=world, global_rank=rank)
    return made


def batches(made: WindowModule, count: int) -> list[torch.Tensor]:
    return [batch.x for batch in islice(made.train_dataloader(), count)]


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_module_goes_on_after_the_samples_that_its_state_counts(small_store, workers):
    whole = batches(module(small_store), 6)
    for done in (1, 4):
        killed, resumed = module(small_store, workers=workers), module(small_store, workers=workers)
        assert equal(batches(killed, done), whole[:done])
        resumed.load_state_dict(killed.state_dict())
        assert equal(batches(resumed, 6 - done), whole[done:])
        assert resumed.state_dict()["samples"] == 12


def test_a_second_loader_of_a_module_goes_on_after_the_first(small_store):
    one = module(small_store)
    assert equal([*batches(one, 2), *batches(one, 2)], batches(module(small_store), 4))


def test_a_run_goes_on_with_the_next_sample_on_other_processes_and_batches(small_store):
    killed = module(small_store, size=2, world=2)
    batches(killed, 3)  # twelve samples of both processes
    resumed = module(small_store, size=3)
    resumed.load_state_dict(killed.state_dict())
    assert torch.equal(batches(resumed, 1)[0], torch.stack([resumed.dataset[i][0] for i in (12, 13, 14)]))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"balance": "night"}, "balance was '', now 'night'"),
        ({"specs": [COARSE]}, "windows was"),
        ({"augment": AugmentConfig(flip=0.5)}, "augment was"),
    ],
)
def test_a_state_of_other_windows_is_refused(small_store, changed, told):
    with pytest.raises(UserError, match=rf"begun on other training windows \({told}.*overwrite=true"):
        module(small_store, **changed).load_state_dict(module(small_store).state_dict())


def test_a_state_of_other_clips_is_refused(small_store):
    with pytest.raises(UserError, match="where was '', now 'frames > 40'; clips was"):
        module(small_store.select("frames > 40")).load_state_dict(module(small_store).state_dict())


class Watcher(pl.LightningModule):
    """Notes what it is shown, and saves the run after four batches."""

    def __init__(self, path) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.path, self.seen = path, []

    def training_step(self, batch, _) -> torch.Tensor:
        self.seen.append(batch.x)
        return self.weight.sum()

    def on_train_batch_end(self, *_) -> None:
        if self.trainer.global_step == 4:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("error:.*dataloader is not resumable")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_lightning_run_saved_within_its_epoch_goes_on_with_the_next_sample(small_store, tmp_path, workers):
    def fit(ckpt_path=None) -> list[torch.Tensor]:
        watcher = Watcher(tmp_path / "last.ckpt")
        off = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
        trainer = pl.Trainer(accelerator="cpu", max_steps=6, max_epochs=1, use_distributed_sampler=False, **off)
        trainer.fit(
            watcher,
            WindowModule(WindowDataset(small_store, Starts(), "train", [FULL], 0), 2, workers),
            ckpt_path=ckpt_path,
            weights_only=False,
        )
        return watcher.seen

    whole = fit()
    assert len(whole) == 6
    assert equal(fit(tmp_path / "last.ckpt"), whole[4:])


def test_ranks_share_the_samples_of_a_step_and_none_comes_twice(small_store):
    windows = WindowDataset(small_store, Starts(), "train", [FULL], 0)
    for step in range(3):
        shards = [batches(module(small_store, world=2, rank=rank), 3)[step] for rank in (0, 1)]
        together = torch.stack(shards, 1).flatten(0, 1)
        expected = torch.stack([windows[4 * step + i][0] for i in range(4)])
        assert torch.equal(together, expected)
