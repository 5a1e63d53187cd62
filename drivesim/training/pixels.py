"""Training of the autoencoder on frames, and of its decoder's temporal layers on video."""

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from drivesim.clip import to_uint8
from drivesim.data.windows import Batch
from drivesim.diffusion.draws import Generator, Streams
from drivesim.errors import UserError
from drivesim.models.autoencoder import Autoencoder
from drivesim.models.discriminator import Critics
from drivesim.models.perceptual import perceptual_distance
from drivesim.training.experiment import StageConfig

RECONSTRUCTIONS = ("flicker", "l1", "l2")
LEAST = 32  # pixels, each way, that leave something to every layer of the networks that judge pictures
SIZES = (1, 2, 4)  # pixels, each way, that the error of video is measured over


class AutoencoderTraining(pl.LightningModule):
    """The recipe of latent diffusion (Rombach et al. 2022, appendix G): error of pixels, perceptual distance if wanted,
    and from `stage.adversarial_start` on patch discriminators, each balanced by its gradient.

    video=False  frames by themselves, encoder and decoder are trained, the encoder's latents held near unit size
    video=True   windows; the encoder and the image decoder are frozen, the decoder's temporal layers are trained
                 (paper, section 3.1.1) against a discriminator of video, with one of pictures beside it if
                 `stage.image_adversarial` (the paper's ablation)
    """

    def __init__(
        self, autoencoder: Autoencoder, stage: StageConfig, video: bool, validation: list[Batch], seed: int
    ) -> None:
        super().__init__()
        self.autoencoder, self.stage, self.video, self.validation = autoencoder, stage, video, validation
        self.seed = seed
        trained = any(p.requires_grad for p in autoencoder.parameters())
        critics = (stage.adversarial, stage.image_adversarial) if video else (0.0, stage.adversarial)
        self.discriminator = Critics(*critics, stage.discriminator_width) if trained and any(critics) else None
        self.perceptual = perceptual_distance(stage.perceptual) if trained and stage.perceptual else None
        self.automatic_optimization = False
        if stage.checkpointing:
            autoencoder.enable_checkpointing()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers = self.optimizers()
        generator, critic = optimizers if isinstance(optimizers, list) else (optimizers, None)
        x = batch.x
        rebuilt, penalty = self.reconstruct(x, Streams(self.seed, batch.numbers))
        error = self.error(rebuilt, x)
        loss = error + penalty
        critics = self.discriminator if self.global_step >= self.stage.adversarial_start else None
        if critics is not None:
            loss = loss + critics.realism(rebuilt, error, self.autoencoder.last_weight())
        generator.zero_grad()
        self.manual_backward(loss)
        trained = [p for p in self.autoencoder.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        generator.step()
        psnr = -10 * torch.log10(F.mse_loss(rebuilt.detach(), x) / 4)
        self.log_dict({"loss": error.detach(), "psnr": psnr}, sync_dist=True)
        if critics is not None and critic is not None:
            loss = critics.loss(x, rebuilt)
            critic.zero_grad()
            self.manual_backward(loss)
            critic.optimizer.step()  # not through Lightning, which would count it as a second training step
            self.log("loss_discriminator", loss.detach(), sync_dist=True)

    def error(self, rebuilt: Tensor, x: Tensor) -> Tensor:
        """What a reconstruction [B, T, 3, H, W] is worth by itself, without discriminators."""
        error = reconstruction_error(rebuilt, x, self.stage.reconstruction)
        if self.perceptual is not None:
            distance = self.perceptual.between(rebuilt.flatten(0, 1), x.flatten(0, 1)).mean()
            error = error + self.stage.perceptual_weight * distance
        return error

    def reconstruct(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """[B, T, 3, H, W] -> its reconstruction and the penalty on its latents; where there is a generator the encoder
        is trained, and a KL autoencoder samples its latents."""
        b, t = x.shape[:2]
        frames = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        penalty = x.new_zeros(())
        if self.video or generator is None:
            with torch.no_grad():
                latents = self.autoencoder.encode(frames)
        else:
            latents, penalty = self.autoencoder.training_latents(frames, generator, self.stage.kl)
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
        if not trained:  # a pretrained autoencoder that is taken as it is
            return []
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(trained, **rates)]  # type: ignore[arg-type]
        if self.discriminator is not None:
            optimizers.append(torch.optim.AdamW(self.discriminator.parameters(), **{**rates, "betas": (0.5, 0.99)}))  # type: ignore
        return optimizers

    def result(self) -> dict[str, Tensor]:
        """What the stage adds to a bundle: the autoencoder, or its decoder's temporal layers alone."""
        return (self.autoencoder.temporal if self.video else self.autoencoder).state_dict()  # type: ignore[union-attr]


def check_recipe(name: str, stage: StageConfig, size: int) -> None:
    """raises UserError for a recipe that stage `name` cannot follow on pictures of `size` pixels each way, or more"""
    where = f"config.stages.{name}"
    if stage.reconstruction not in RECONSTRUCTIONS:
        known = ", ".join(RECONSTRUCTIONS)
        raise UserError(f"{where}.reconstruction is {stage.reconstruction!r}, expected one of {known}")
    if stage.image_adversarial and name != "decoder":
        raise UserError(f"{where}.image_adversarial is for the decoder; {where}.adversarial judges pictures here")
    for option in ("adversarial", "image_adversarial", "adversarial_start", "perceptual_weight", "kl"):
        if (found := getattr(stage, option)) < 0:
            raise UserError(f"{where}.{option} is {found}, expected 0 or more")
    if stage.discriminator_width < 1:
        raise UserError(f"{where}.discriminator_width is {stage.discriminator_width}, expected 1 or more")
    if stage.perceptual:
        perceptual_distance(stage.perceptual)
    picture = stage.adversarial if name == "autoencoder" else stage.image_adversarial
    if (stage.perceptual or picture) and size < LEAST:
        raise UserError(f"{where}: perceptual and picture discriminators need {LEAST} pixels each way, found {size}")


def reconstruction_error(rebuilt: Tensor, x: Tensor, kind: str = "flicker") -> Tensor:
    """Error of [B, T, 3, H, W] in [-1, 1], a mean over pixel values.

    l1, l2   absolute, squared
    flicker  of frames by themselves l2; of video also of the change from frame to frame, and both again at a half and
             at a quarter of the size, weighed so that every size counts alike: what flickers there is seen first
    """
    if kind == "l1":
        return F.l1_loss(rebuilt, x)
    if kind == "l2" or x.shape[1] == 1:
        return F.mse_loss(rebuilt, x)
    wrong, error = rebuilt - x, x.new_zeros(())
    for size in SIZES:
        coarse = F.avg_pool2d(wrong.flatten(0, 1), size).unflatten(0, wrong.shape[:2])
        error = error + size**2 / len(SIZES) * (coarse.square().mean() + coarse.diff(dim=1).square().mean())
    return error
