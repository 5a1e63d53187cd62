"""What can go wrong while a stage trains, told in one line that says what to change."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from drivesim.data.windows import Batch
from drivesim.errors import UserError
from drivesim.training.experiment import StageConfig
from drivesim.training.sharding import whole

MANUAL = ("autoencoder", "decoder")  # stages whose step is their own, with a discriminator perhaps
NAMED = 8  # windows that a message names


class Finite(Callback):
    """Ends a run whose windows, loss or gradient are no finite numbers, on all processes at once, and
    names the windows. The checkpoint before it stays.

    stage       its name;  checkpoint  where the run is saved
    """

    def __init__(self, stage: str, checkpoint: Path) -> None:
        self.stage, self.checkpoint = stage, checkpoint
        self._step: list[Batch] = []  # the batches whose gradients the step under way adds up

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._step = []
        self._step.append(batch)
        self._require(trainer, batch.x.sum(), "a window")  # before a process alone fails on it

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        self._require(trainer, loss, "the loss")

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer) -> None:
        gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
        self._require(trainer, whole(torch.nn.utils.get_total_norm(gradients)), "the gradient")

    def _require(self, trainer: pl.Trainer, value: Tensor, what: str) -> None:
        """raises UserError in the first process, and ends the others, if a number is not finite in any"""
        mean = trainer.strategy.reduce(value.detach().float().clone(), reduce_op="mean")
        if not torch.isfinite(mean):
            error = self._error(trainer, f"{what} is not finite ({float(mean)})")
            with suppress(RuntimeError):  # no process leaves before the first has heard of all windows
                trainer.strategy.barrier()
            raise error if trainer.is_global_zero else SystemExit(2)

    def _error(self, trainer: pl.Trainer, what: str) -> UserError:
        """What is wrong, in which windows, and what to do; asked for by all processes or none."""
        windows = [pair for batch in self._step for pair in zip(batch.numbers, batch.x, strict=True)]
        spoilt = _from_all(trainer, [number for number, x in windows if not x.isfinite().all()])
        numbers = spoilt or _from_all(trainer, [number for number, _ in windows])
        dataset = trainer.datamodule.dataset  # type: ignore[attr-defined]
        places = ", ".join(dataset.place(number) for number in numbers[:NAMED])
        places += f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        advice = f"lower config.stages.{self.stage}.lr or raise its warmup_steps"
        if spoilt:
            advice = "leave these out by config.data.where, or prepare them again"
        kept = f"{self.checkpoint} is good" if self.checkpoint.exists() else "nothing was saved yet"
        return UserError(f"{self.stage}: {what} at step {trainer.global_step} ({places}); {advice}; {kept}, run again")


def _from_all(trainer: pl.Trainer, numbers: list[int]) -> list[int]:
    """The numbers of all processes, sorted."""
    gathered: list[Any] = [numbers]
    if trainer.world_size > 1:
        gathered = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, numbers)
    return sorted(number for part in gathered for number in part)


def require_finite_weights(module: torch.nn.Module, stage: str) -> None:
    """raises UserError if a trained weight is not finite: such weights are never saved"""
    for name, weight in module.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise UserError(f"{stage}: {name} is not finite; lower config.stages.{stage}.lr and run again")


def is_lost_process(error: BaseException) -> bool:
    """Whether another process of the run ended while this one waited for it (the words are gloo's)."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return bool(re.search(r"gloo.*(closed by peer|reset by peer|[Tt]imed out)", str(error), re.DOTALL))


def out_of_memory(name: str, stage: StageConfig, error: BaseException, devices: int, strategy: str) -> UserError:
    """Which of the options that save memory are still open to a stage, the cheapest first."""
    option, ways = f"config.stages.{name}", []
    if name not in MANUAL and not stage.checkpointing:
        ways.append(f"{option}.checkpointing=true (computes activations twice instead of keeping them)")
    if stage.batch_size > 1:
        halved, doubled = f"{option}.batch_size={stage.batch_size // 2}", f"{option}.accumulate={2 * stage.accumulate}"
        ways.append(halved if name in MANUAL else f"{halved} {doubled} (the same training)")
    if name not in MANUAL and strategy != "fsdp":
        ways.append(
            f"strategy=fsdp{'' if devices > 1 else ' devices=2 or more'} (every GPU keeps a share of the weights)"
        )
    found = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    advice = ", or ".join(ways) or "a smaller network"
    return UserError(f"{name}: out of memory ({found}); try {advice}; what was saved is kept, run again")


# A stage's settings that may change between a checkpoint and what goes on from it; all others are what was trained.
FREE = {"share", "max_steps", "batch_size", "accumulate", "checkpointing", "augment",
        "lr", "warmup_steps", "weight_decay", "ema_decay"}  # fmt: skip


def require_same(path: Path | str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """raises UserError that names the settings, by dotted keys, in which a checkpoint differs from the run"""
    changed = [key for key in sorted(now) if key in then and then[key] != now[key]]
    if changed:
        told = ", ".join(f"{key} was {then[key]}, now {now[key]}" for key in changed[:3])
        raise UserError(
            f"{path} is of another configuration ({told}); give the configuration it was started with, another out=, "
            "or overwrite=true"
        )


def flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Nested dicts as one of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}") if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return found
