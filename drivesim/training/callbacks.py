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
from pytorch_lightning.callbacks import Callback, Timer
from tqdm import tqdm

from drivesim.files import atomic_path
from drivesim.training.failures import require_finite_weights, require_same
from drivesim.training.sharding import is_sharded, like, whole


class Budget(Timer):
    """Ends a stage after `seconds` of training, counted across resumes, or `max_steps`; anneals the learning rate over
    it (warm-up, then half a cosine), and shows progress with time left."""

    def __init__(self, seconds: float | None, max_steps: int, warmup_steps: int, label: str) -> None:
        super().__init__(duration=timedelta(seconds=seconds) if seconds else None, verbose=False)
        self.seconds, self.max_steps, self.warmup_steps, self.label = seconds, max_steps, warmup_steps, label
        self.used = 0.0  # progress when the batch began, the same on all processes
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
                # The option holds, also for a run that goes on from a checkpoint of another, as the learning rate does.
                group["weight_decay"] = optimizer.defaults["weight_decay"]
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
        self.used = self.progress(trainer.global_step)
        if self.seconds:
            self.used = trainer.strategy.broadcast(self.used)  # clocks of ranks differ, their weights must not
        factor = warm * (0.02 + 0.98 * (1 + math.cos(math.pi * self.used)) / 2)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor

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


class AveragedWeights(Callback):
    """Exponential moving average of the trained weights whose horizon grows with the number of steps up to the decay's,
    so that short runs do not average in their first guesses. When the stage ends the weights become their average.

    Lightning's WeightAveraging copies the whole module, a frozen image network too, and takes no weights that are
    shared out over processes; here the averages are shared out as the weights are.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.average: dict[str, torch.Tensor] = {}
        self._saved: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step > self.updates:  # not every batch is a step
            horizon = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
            current = [weight.detach() for weight in _trained(pl_module).values()]
            torch._foreach_lerp_(list(self.average.values()), current, 1 - horizon)
            self.updates += 1

    @torch.no_grad()
    def swap(self, pl_module: pl.LightningModule) -> None:
        """Exchange the weights and their average; the second time, back."""
        for name, weight in _trained(pl_module).items():
            current = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(current)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)  # a stage that goes on from a checkpoint of its last step never starts to train
        if self.updates:
            self.swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": {name: whole(value).cpu() for name, value in self.average.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self._saved, self.average = state_dict["updates"], state_dict["average"], {}

    @torch.no_grad()
    def _begin(self, module: pl.LightningModule) -> None:
        if not self.average:
            self.average = {name: weight.detach().clone() for name, weight in _trained(module).items()}
            for name, value in self._saved.items():
                self.average[name].copy_(like(value, self.average[name]))


def _trained(module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


class SampleGrid(Callback):
    """Writes a picture of what the stage makes at given shares of its budget, so that one can look while it trains."""

    def __init__(
        self, folder: Path, budget: Budget, averaged: AveragedWeights, shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    ) -> None:
        self.folder, self.budget, self.averaged, self.shares = folder, budget, averaged, list(shares)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, *args) -> None:
        if self.shares[:-1] and self.budget.used >= self.shares[0]:
            self.shares.pop(0)
            self.averaged.swap(pl_module)
            self._write(trainer, pl_module)
            self.averaged.swap(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not (trainer.is_global_zero or is_sharded(module)):  # who holds a share takes part
            return
        from PIL import Image

        module.eval()
        with torch.no_grad():
            grid = module.sample_grid()  # type: ignore[operator]
        module.train()
        if not trainer.is_global_zero:
            return
        with atomic_path(self.folder / f"step_{trainer.global_step:06d}.png") as path:
            Image.fromarray(grid).save(path)


class Checkpoints(Callback):
    """Saves the run to `path` every `seconds`, between two steps, so that no half-added gradient is lost, and with
    finite weights only. Lightning's ModelCheckpoint saves by time under automatic optimisation only, so the stages that
    train a discriminator too would never be saved."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        for optimizer in trainer.optimizers:
            _lay_out_alike(optimizer)
        # A run may go on with another number of batches a step: the next batch begins one.
        current = trainer.fit_loop.epoch_loop.batch_progress.current
        ahead = -current.ready % trainer.accumulate_grad_batches
        for name in ("ready", "started", "processed", "completed"):
            setattr(current, name, getattr(current, name) + ahead)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.strategy.broadcast(time.monotonic() - self._saved >= self.seconds):  # all ranks save, or none
            require_finite_weights(pl_module, self.path.parent.name)
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()


def _lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's averages the memory layout of their weights: a checkpoint of shared out weights, which lie
    contiguous, goes on with weights that lie channels_last, and a fused step walks through memory, not through axes."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight).copy_(value)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its name and renames it, so that a killed run leaves the one before. Lightning writes
    to the system's temporary folder first, which may be small or on another disk, where a move is a copy.

    configuration  what is trained, by dotted keys: kept in the checkpoint, and one of another is refused
    """

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.configuration = configuration

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        for leftover in Path(path).parent.glob(f".{Path(path).stem}.*.partial*"):  # of a run killed while it wrote
            leftover.unlink(missing_ok=True)
        with atomic_path(path) as temporary:
            torch.save({**checkpoint, "configuration": self.configuration}, temporary)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """raises UserError that names the settings in which the checkpoint differs"""
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        require_same(path, checkpoint.get("configuration", {}), self.configuration)
        return checkpoint
