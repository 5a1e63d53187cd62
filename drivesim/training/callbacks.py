"""What every stage shares while it trains: a time budget, averaged weights, sample grids."""

import math
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Timer, WeightAveraging
from tqdm import tqdm

from drivesim.files import atomic_path


class Budget(Timer):
    """Ends a stage after `seconds` of training, counted across resumes, or `max_steps`; anneals the learning rate over
    it (warm-up, then half a cosine), and shows progress with time left."""

    def __init__(self, seconds: float | None, max_steps: int, warmup_steps: int, label: str) -> None:
        super().__init__(duration=timedelta(seconds=seconds) if seconds else None, verbose=False)
        self.seconds, self.max_steps, self.warmup_steps, self.label = seconds, max_steps, warmup_steps, label
        self._bar: tqdm | None = None

    def progress(self, step: int) -> float:
        """Share of the budget that is used up, 0..1."""
        by_time = self.time_elapsed() / self.seconds if self.seconds else 0.0
        by_steps = step / self.max_steps if self.max_steps > 0 else 0.0
        return min(max(by_time, by_steps), 1.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("peak_lr", group["lr"])  # kept in checkpoints, so a resumed run anneals the same rate
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=100,
                desc=self.label,
                file=sys.stderr,
                mininterval=1,
                bar_format="{desc}: {percentage:3.0f}%|{bar:30}| {elapsed}<{remaining} {postfix}",
            )

    def on_train_batch_start(self, trainer: pl.Trainer, *args) -> None:
        warm = min((trainer.global_step + 1) / max(self.warmup_steps, 1), 1.0)
        factor = warm * (0.02 + 0.98 * (1 + math.cos(math.pi * self.progress(trainer.global_step))) / 2)
        factor = trainer.strategy.broadcast(factor)  # clocks of ranks differ, their weights must not
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[override]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._bar is not None:
            loss = trainer.callback_metrics.get("loss", torch.tensor(float("nan")))
            self._bar.set_postfix_str(f"step {trainer.global_step} loss {float(loss):.4f}", refresh=False)
            self._bar.update(100 * self.progress(trainer.global_step) - self._bar.n)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._bar is not None:
            self._bar.close()


class AveragedWeights(WeightAveraging):
    """Exponential moving average whose horizon grows with the number of steps up to the decay's, so that short runs
    do not average in their first guesses."""

    def __init__(self, decay: float) -> None:
        def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
            n = float(count)
            if not averaged[0].is_floating_point():  # how often a batch norm has been called
                torch._foreach_copy_(averaged, current)
                return
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(multi_avg_fn=average)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing yet: a stage resumed from a checkpoint of its very last step never gets here."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._copy_average_to_current(pl_module)


class SampleGrid(Callback):
    """Writes a picture of what the stage makes at given shares of its budget, so that one can look while it trains."""

    def __init__(
        self, folder: Path, budget: Budget, averaged: AveragedWeights, shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    ) -> None:
        self.folder, self.budget, self.averaged, self.shares = folder, budget, averaged, list(shares)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, *args) -> None:
        if self.shares[:-1] and self.budget.progress(trainer.global_step) >= self.shares[0]:
            self.shares.pop(0)
            self.averaged._swap_models(pl_module)
            self._write(trainer, pl_module)
            self.averaged._swap_models(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        from PIL import Image

        module.eval()
        with torch.no_grad():
            grid = module.sample_grid()  # type: ignore[operator]
        module.train()
        with atomic_path(self.folder / f"step_{trainer.global_step:06d}.png") as path:
            Image.fromarray(grid).save(path)


class Checkpoints(Callback):
    """Saves the run to `path` every `seconds`. Lightning's ModelCheckpoint saves by time under automatic optimisation
    only, so the stages that train a discriminator too would never be saved."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.strategy.broadcast(time.monotonic() - self._saved >= self.seconds):  # all ranks save, or none
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its name and renames it, so that a killed run leaves the one before. Lightning writes
    to the system's temporary folder first, which may be small or on another disk, where a move is a copy."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        for leftover in Path(path).parent.glob(f".{Path(path).stem}.*.partial*"):  # of a run killed while it wrote
            leftover.unlink(missing_ok=True)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
