"""Tasks: what a denoiser makes of a batch, and what it is told. Stages differ by their task object alone."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from drivesim.clip import Layout
from drivesim.models.conditioning import drop

if TYPE_CHECKING:
    from drivesim.data.windows import Batch
    from drivesim.models.denoiser import Denoiser

FLAGS = 3  # planes beside the known latents: the mask, the task's own flag, metres from the nearest known frame
FAR_M = 10.0  # metres that count as 1


@dataclass(frozen=True)
class Known:
    """The frames of a window that are given.

    mask   [B, T] 1 for known frames
    flag   [B] a number that the task wants to tell its temporal layers (interpolation: which level)
    """

    mask: Tensor
    flag: Tensor


@dataclass(frozen=True)
class Problem:
    """A denoising problem.

    x        [B, T, C, h, w] what is to be made
    planes   [B, T, P, h, w] laid beside it
    tokens   [B, T, N, D] for cross-attention, or None
    context  [B, T, K, h, w] known frames with their flags for the context encoder, or None
    weight   [B, T] of each frame in the loss
    level    [B] noise level of what is laid beside it, told to the network as an embedding; None where there is none
    """

    x: Tensor
    planes: Tensor
    tokens: Tensor | None
    context: Tensor | None
    weight: Tensor
    level: Tensor | None = None


class Task(Protocol):
    """Turns a training batch into a denoising problem."""

    @property
    def temporal(self) -> bool:
        """Whether temporal layers are trained (and the image network frozen)."""

    @property
    def context_channels(self) -> int:
        """Channels of the context beyond those of the latents; 0: this task knows no frames."""

    def pose(self, batch: "Batch", denoiser: "Denoiser", generator: torch.Generator) -> Problem: ...


@dataclass
class Frames:
    """The image LDM: frames by themselves, nothing known but the layout. The base of the tasks on latents."""

    drop_boxes: float = 0.1
    drop_labels: float = 0.1
    temporal: bool = False
    context_channels: int = 0

    def draw(self, batch: int, level: Tensor, generator: torch.Generator) -> Known | None:
        """Which frames of a training window are known."""
        return None

    def pose(self, batch: "Batch", denoiser: "Denoiser", generator: torch.Generator) -> Problem:
        z = batch.x
        layout = drop(batch.layout, self.drop_boxes, self.drop_labels, generator)
        planes, tokens = denoiser.condition(layout, z.shape[-2], z.shape[-1])
        known = self.draw(len(z), batch.level, generator)
        if known is None:
            return Problem(z, planes, tokens, None, torch.ones(z.shape[:2], device=z.device))
        context = context_planes(denoiser, self.augment(z, generator), known, batch.layout)
        return Problem(z, planes, tokens, context, 1 - known.mask.to(z))

    def augment(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return z


@dataclass
class Predict(Frames):
    """Keyframes after 0, 1 or 2 first frames, drawn from a categorical p_S (paper, section 3.2); S = 0 is the
    unconditional case that context guidance needs. In training the known frames get a little noise, since in a
    rollout they are the model's own."""

    frames: int = 8
    probabilities: list[float] = field(default_factory=lambda: [0.1, 0.5, 0.4])
    context_noise: float = 0.15  # largest standard deviation
    temporal: bool = True
    context_channels: int = FLAGS

    def draw(self, batch: int, level: Tensor, generator: torch.Generator) -> Known:
        counts = torch.multinomial(torch.tensor(self.probabilities), batch, replacement=True, generator=generator)
        return self.known(counts)

    def known(self, counts: Tensor) -> Known:
        """The first counts [B] frames are known."""
        return Known((torch.arange(self.frames) < counts[:, None]).float(), torch.zeros(len(counts)))

    def augment(self, z: Tensor, generator: torch.Generator) -> Tensor:
        level = torch.rand(len(z), 1, 1, 1, 1, generator=generator) * self.context_noise
        return z + (level * torch.randn(z.shape, generator=generator)).to(z)


@dataclass
class Interpolate(Frames):
    """The `factor` - 1 frames between two known ones; one model for both levels, told which by a flag (section 3.3)."""

    factor: int = 4
    temporal: bool = True
    context_channels: int = FLAGS

    @property
    def frames(self) -> int:
        return self.factor + 1

    def draw(self, batch: int, level: Tensor, generator: torch.Generator) -> Known:
        return self.known(level)

    def known(self, level: Tensor) -> Known:
        """Both ends are known; level [B] is 0 for the coarse and 1 for the fine interpolation."""
        mask = torch.zeros(len(level), self.frames)
        mask[:, 0] = mask[:, -1] = 1
        return Known(mask, level.float())


def context_planes(denoiser: "Denoiser", latents: Tensor, known: Known, layout: Layout) -> Tensor:
    """Input of the context encoder [B, T, C + FLAGS, h, w]: the known latents, carried to the unknown frames; the mask;
    the flag; and how far the car is from the nearest known frame, that is, how much the carried ones are worth. Where
    nothing is carried, the paper's c_S = (m o z, m) and the flag.

    latents [B, T, C, h, w], of which the known are looked at; layout [B, T] with known ego motion
    """
    mask = known.mask.to(latents)
    flag = known.flag.to(latents)[:, None] * torch.ones_like(mask)
    h, w = latents.shape[-2:]
    apart = distance(mask, layout.travel.to(latents)) if denoiser.carries else torch.zeros_like(mask)
    flags = torch.stack([mask, flag, apart / FAR_M], 2)
    carried = denoiser.carry(latents, mask, layout)
    return torch.cat([carried, flags[..., None, None].expand(-1, -1, -1, h, w)], 2)


def distance(mask: Tensor, travel: Tensor) -> Tensor:
    """Metres to the nearest known frame [B, T]; 0 where none is known."""
    apart = (travel[:, :, None] - travel[:, None]).abs().masked_fill(mask[:, None] == 0, float("inf"))
    return apart.amin(-1).nan_to_num(posinf=0.0)
