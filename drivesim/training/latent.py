"""Training of every diffusion stage: one module, told its stage by a task object."""

import numpy as np
import pytorch_lightning as pl
import torch

from drivesim.data.windows import Batch
from drivesim.diffusion.loss import velocity_loss
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Task
from drivesim.models.denoiser import Denoiser
from drivesim.training.experiment import StageConfig
from drivesim.training.grids import GridMaker


def step_generator(module: pl.LightningModule, seed: int, batch_idx: int) -> torch.Generator:
    """Randomness of a training step from the seed, the batch and the rank alone: a resumed run draws what it would
    have drawn, and the batches of an accumulated gradient differ."""
    return torch.Generator().manual_seed(seed + 1_000_003 * (batch_idx + 1) + module.global_rank)


class LatentVideoDiffusion(pl.LightningModule):
    """batch -> task -> noise -> denoise -> loss.

    With a temporal task the image network stays frozen and only the temporal layers are optimised and saved, unless
    `stage.train_image`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        task: Task,
        diffusion: Diffusion,
        stage: StageConfig,
        seed: int,
        validation: list[Batch],
        grid: GridMaker,
    ) -> None:
        super().__init__()
        self.denoiser, self.task, self.diffusion, self.stage, self.seed = denoiser, task, diffusion, stage, seed
        self.validation, self.grid = validation, grid

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = self._loss(batch, step_generator(self, self.seed, batch_idx))
        self.log("loss", loss.detach(), prog_bar=False)
        return loss

    def _loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        problem = self.task.pose(batch, self.denoiser, generator, self.diffusion)
        loss = velocity_loss(self.denoiser, problem, self.diffusion, generator)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"loss is {loss.item()} at step {self.global_step}; the last checkpoint is good, "
                "lower stages.*.lr and run again"
            )
        return loss

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Loss on the same held-out windows, times and noise every time: comparable along a run and between runs."""
        losses = [
            float(self._loss(batch.to(self.device), torch.Generator().manual_seed(i)))
            for i, batch in enumerate(self.validation)
        ]
        return float(np.mean(losses))

    def sample_grid(self) -> np.ndarray:
        return self.grid(self.denoiser)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # By hand: Lightning does not clip for a fused optimizer, which halves the time of its step on a CPU.
        torch.nn.utils.clip_grad_norm_([p for p in self.denoiser.parameters() if p.requires_grad], 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        trained = [p for p in self.denoiser.parameters() if p.requires_grad]
        if not trained:  # a pretrained image network that is taken as it is
            return []
        return torch.optim.AdamW(
            trained, lr=self.stage.lr, weight_decay=self.stage.weight_decay, betas=(0.9, 0.99), fused=True
        )

    def result(self) -> dict[str, torch.Tensor]:
        """What the stage adds to a bundle: the temporal layers alone, or all that was trained."""
        temporal = self.denoiser.temporal
        return (self.denoiser if temporal is None or self.stage.train_image else temporal).state_dict()
