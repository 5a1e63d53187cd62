"""Training of every diffusion stage: one module, told its stage by a task object."""

import numpy as np
import pytorch_lightning as pl
import torch

from drivesim.data.windows import Batch
from drivesim.diffusion.draws import Streams
from drivesim.diffusion.loss import velocity_loss
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.tasks import Task
from drivesim.models.denoiser import Denoiser
from drivesim.training.experiment import StageConfig
from drivesim.training.grids import GridMaker
from drivesim.training.sharding import is_sharded, shard


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
        loss = self._loss(batch, self.seed)
        self.log("loss", loss.detach(), sync_dist=True)
        return loss

    def _loss(self, batch: Batch, seed: int) -> torch.Tensor:
        streams = Streams(seed, batch.numbers)
        problem = self.task.pose(batch, self.denoiser, streams, self.diffusion)
        return velocity_loss(self.denoiser, problem, self.diffusion, streams)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Loss on the same held-out windows, times and noise every time: comparable along a run and between runs."""
        losses = [float(self._loss(batch.to(self.device), seed=0)) for batch in self.validation]
        return float(np.mean(losses))

    def configure_model(self) -> None:
        """Share out the weights where the strategy is to (Lightning calls this on every process before training)."""
        if self.device_mesh is not None and not is_sharded(self.denoiser):
            shard(self.denoiser, self.device_mesh["data_parallel"])

    def sample_grid(self) -> np.ndarray:
        return self.grid(self.denoiser)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # By hand: Lightning does not clip for a fused optimizer, which halves the time of its step on a CPU.
        trained = [p for p in self.denoiser.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)

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
