"""Training of the autoencoder on frames, and of its decoder's temporal layers on video."""

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from drivesim.clip import to_uint8
from drivesim.data.windows import Batch
from drivesim.diffusion.draws import Generator, Streams
from drivesim.models.autoencoder import Autoencoder, KLAutoencoder
from drivesim.models.discriminator import VideoDiscriminator, adaptive_weight, discriminator_loss, generator_loss
from drivesim.training.experiment import StageConfig

SIZES = (1, 2, 4)  # pixels, each way, that the error of video is measured over


class AutoencoderTraining(pl.LightningModule):
    """Reconstruction, and a patch discriminator of 3D convolutions where its weight is not 0.

    video=False  frames by themselves, encoder and decoder are trained
    video=True   windows; the encoder and the image decoder are frozen, the decoder's temporal layers are trained
                 (paper, section 3.1.1), the difference between consecutive frames counts too: it is what flickers
    """

    def __init__(
        self, autoencoder: Autoencoder, stage: StageConfig, video: bool, validation: list[Batch], seed: int
    ) -> None:
        super().__init__()
        self.autoencoder, self.stage, self.video, self.validation = autoencoder, stage, video, validation
        self.seed = seed
        self.discriminator = VideoDiscriminator() if stage.adversarial else None
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers = self.optimizers()
        generator, critic = optimizers if isinstance(optimizers, list) else (optimizers, None)
        x = batch.x
        rebuilt, penalty = self.reconstruct(x, Streams(self.seed, batch.numbers))
        error = reconstruction_error(rebuilt, x)
        loss = error + penalty
        if self.discriminator is not None:
            realism = generator_loss(self.discriminator(_time_first(rebuilt)))
            weight = adaptive_weight(error, realism, self.autoencoder.last_weight()) if error.requires_grad else 1.0
            loss = loss + self.stage.adversarial * weight * realism
        generator.zero_grad()
        self.manual_backward(loss)
        trained = [p for p in self.autoencoder.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, 1.0, error_if_nonfinite=True)
        generator.step()
        self.log("loss", error.detach(), sync_dist=True)
        if critic is not None and self.discriminator is not None:
            loss = discriminator_loss(
                self.discriminator(_time_first(x)), self.discriminator(_time_first(rebuilt.detach()))
            )
            critic.zero_grad()
            self.manual_backward(loss)
            critic.optimizer.step()  # not through Lightning, which would count it as a second training step
            self.log("loss_discriminator", loss.detach(), sync_dist=True)

    def reconstruct(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """[B, T, 3, H, W] -> its reconstruction and the penalty on its latents; a KL autoencoder samples its latents
        where there is a generator."""
        b, t = x.shape[:2]
        frames = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        penalty = x.new_zeros(())
        if self.video:
            with torch.no_grad():
                latents = self.autoencoder.encode(frames)
        elif isinstance(self.autoencoder, KLAutoencoder) and generator is not None:
            posterior = self.autoencoder.moments(frames)
            latents, penalty = (
                posterior.sample(generator) * self.autoencoder.scale,
                self.stage.kl * posterior.kl().mean(),
            )
        else:
            latents = self.autoencoder.encode(frames)
            penalty = 1e-2 * (latents.square().mean() - 1).square()  # latents keep unit size, which diffusion counts on
        return self.autoencoder.decode(latents, t if self.video else 1).unflatten(0, (b, t)).float(), penalty

    def on_fit_end(self) -> None:
        if not self.video:
            images = torch.cat([batch.x.flatten(0, 1) for batch in self.validation])
            self.autoencoder.normalise(images.to(self.device))

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean squared error on held-out windows."""
        errors = [
            F.mse_loss(self.reconstruct(batch.x.to(self.device))[0], batch.x.to(self.device))
            for batch in self.validation
        ]
        return float(torch.stack(errors).mean())

    def sample_grid(self) -> np.ndarray:
        """Held-out frames above, their reconstructions below."""
        x = self.validation[0].x.to(self.device)
        rows = [x.flatten(0, 1)[:6], self.reconstruct(x)[0].flatten(0, 1)[:6]]
        return torch.cat([torch.cat(list(to_uint8(row)), -1) for row in rows], -2).permute(1, 2, 0).cpu().numpy()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = dict(lr=self.stage.lr, weight_decay=self.stage.weight_decay, betas=(0.9, 0.99), fused=True)
        trained = [p for p in self.autoencoder.parameters() if p.requires_grad]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(trained, **rates)]  # type: ignore[arg-type]
        if self.discriminator is not None:
            optimizers.append(torch.optim.AdamW(self.discriminator.parameters(), **{**rates, "betas": (0.5, 0.99)}))  # type: ignore
        return optimizers

    def result(self) -> dict[str, Tensor]:
        """What the stage adds to a bundle: the autoencoder, or its decoder's temporal layers alone."""
        return (self.autoencoder.temporal if self.video else self.autoencoder).state_dict()  # type: ignore[union-attr]


def reconstruction_error(rebuilt: Tensor, x: Tensor) -> Tensor:
    """Squared error of pixels; of video [B, T, 3, H, W] also of their change from frame to frame, and both again at a
    half and at a quarter of the size, weighed so that every size counts alike: what flickers there is seen first."""
    if x.shape[1] == 1:
        return F.mse_loss(rebuilt, x)
    wrong, error = rebuilt - x, x.new_zeros(())
    for size in SIZES:
        coarse = F.avg_pool2d(wrong.flatten(0, 1), size).unflatten(0, wrong.shape[:2])
        error = error + size**2 / len(SIZES) * (coarse.square().mean() + coarse.diff(dim=1).square().mean())
    return error


def _time_first(x: Tensor) -> Tensor:
    """[B, T, 3, H, W] -> [B, 3, T, H, W]; frames by themselves become clips of one frame."""
    return x.transpose(1, 2)
