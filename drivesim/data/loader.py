"""Batches of training windows, each sample once, whoever stops and goes on, on however many processes.

torchdata's StatefulDataLoader does as much for any dataset, by keeping the states of samplers and workers. Here a
sample is a function of its number, so the number of the next one is all there is to keep.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Sampler

from drivesim.data.windows import Batch, WindowDataset, collate
from drivesim.errors import UserError


class Order(Sampler[int]):
    """What rank r of w takes: every w-th sample from `done` + r on, `done` being those that all ranks took before. So
    which samples a step sees does not depend on the number of processes."""

    def __init__(self, length: int, world: int, rank: int, done: int = 0) -> None:
        self.length, self.world, self.rank, self.done = length, world, rank, done

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.done + self.rank, self.length, self.world))

    def __len__(self) -> int:
        return len(range(self.done + self.rank, self.length, self.world))


class WindowLoader(DataLoader):
    """Batches of a dataset, each sample once: iterated again it goes on after what it handed out.

    `state_dict` and `load_state_dict` are those of torchdata's StatefulDataLoader, and Lightning keeps them in
    checkpoints. The state counts samples of all ranks, not batches that workers have made ahead, and so holds for
    other batches, ranks and workers.
    """

    def __init__(
        self, dataset: WindowDataset, batch_size: int, workers: int = 0, world: int = 1, rank: int = 0
    ) -> None:
        self.order = Order(len(dataset), world, rank)
        super().__init__(
            dataset,
            batch_size,
            sampler=self.order,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            self.order.done += len(batch.level) * self.order.world
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.order.done, "identity": self.dataset.identity}  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after a state. raises UserError if it is one of other windows"""
        then, now = state_dict["identity"], self.dataset.identity  # type: ignore[attr-defined]
        if changed := [name for name in now if then.get(name) != now[name]]:
            told = "; ".join(f"{name} was {then.get(name)!r}, now {now[name]!r}" for name in changed)
            raise UserError(
                f"this run was begun on other training windows ({told}); give the options it was begun with, "
                "another out=, or overwrite=true"
            )
        self.order.done = state_dict["samples"]


class WindowModule(pl.LightningDataModule):
    """Training windows, shared out to as many processes as the trainer runs. Its state is its loader's."""

    def __init__(self, dataset: WindowDataset, batch_size: int, workers: int = 0) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers

    @cached_property
    def loader(self) -> WindowLoader:
        """Made when first used: only then it is known how many processes train."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return WindowLoader(self.dataset, self.batch_size, self.workers, world, rank)

    def train_dataloader(self) -> WindowLoader:
        return self.loader

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loader.load_state_dict(state_dict)
