"""Tasks: what a denoiser makes of a batch, and what it is told. Stages differ by their task object alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from drivesim.clip import Layout
from drivesim.diffusion.draws import Generator, choice, rand, randn
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion
from drivesim.errors import UserError
from drivesim.models.conditioning import drop
from drivesim.models.conditions import chosen

if TYPE_CHECKING:
    from drivesim.data.windows import Batch
    from drivesim.models.denoiser import Denoiser

FLAGS = 3  # planes beside the known latents: the mask, the task's own flag, metres from the nearest known frame
FAR_M = 10.0  # metres that count as 1


@dataclass(frozen=True)
class Known:
    """The frames of a window that are given.

    mask    [B, T] 1 for known frames
    flag    [B] a number that the task wants to tell its temporal layers (interpolation: which level)
    noised  [B] timestep to which the known frames were noised; None where a task does not tell
    """

    mask: Tensor
    flag: Tensor
    noised: Tensor | None = None


@dataclass(frozen=True)
class Lesson:
    """What is to be answered at one noise level of each sample.

    noisy     [B, T, C, h, w] latents at timestep [B]
    velocity  [B, T, C, h, w] the right answer
    weight    [B] of each sample's squared error
    """

    noisy: Tensor
    timestep: Tensor
    velocity: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Problem:
    """A denoising problem.

    x        [B, T, C, h, w] what is to be made
    planes   [B, T, P, h, w] laid beside it
    tokens   [B, T, N, D] for cross-attention, or None
    context  [B, T, K, h, w] known frames with their flags for the context encoder, or None
    weight   [B, T] of each frame in the loss
    level    [B] noise level of what is laid beside it, told to the network as an embedding; None where there is none
    layout   [B, T] what planes and tokens tell; None where they tell none
    lesson   where the task decides it (training/distillation.py); None: x noised at random, and its velocity
    """

    x: Tensor
    planes: Tensor
    tokens: Tensor | None
    context: Tensor | None
    weight: Tensor
    level: Tensor | None = None
    layout: Layout | None = None
    lesson: Lesson | None = None


class Task(Protocol):
    """Turns a training batch into a denoising problem."""

    @property
    def temporal(self) -> bool:
        """Whether temporal layers are trained (and the image network frozen)."""

    @property
    def context_channels(self) -> int:
        """Channels of the context beyond those of the latents; 0: this task knows no frames."""

    def pose(
        self, batch: "Batch", denoiser: "Denoiser", generator: Generator, diffusion: Diffusion | None = None
    ) -> Problem:
        """`diffusion` is the forward process under training, for a task that noises what it tells by it."""


@dataclass
class Frames:
    """The image LDM: frames by themselves, nothing known but the layout. The base of the tasks on latents."""

    drop_boxes: float = 0.1  # share of the clips that are not told their boxes, nor what is told of boxes
    drop_labels: float = 0.1  # the same of every other condition, each by itself
    drop: dict[str, float] = field(default_factory=dict)  # the same of conditions by name, before the two above
    drop_text: float = 0.1  # of a network that reads captions
    temporal: bool = False
    context_channels: int = 0

    def rates(self, conditions: Sequence[str]) -> dict[str, float]:
        """How often each condition is dropped in training."""
        usual = {
            c.name: self.drop_boxes if "boxes" in (c.name, c.needs) else self.drop_labels for c in chosen(conditions)
        }
        return {name: self.drop.get(name, rate) for name, rate in usual.items()}

    def draw(self, batch: int, level: Tensor, generator: Generator) -> Known | None:
        """Which frames of a training window are known."""
        return None

    def pose(
        self, batch: "Batch", denoiser: "Denoiser", generator: Generator, diffusion: Diffusion | None = None
    ) -> Problem:
        z = batch.x
        layout = drop(batch.layout, self.rates(denoiser.config.conditions), generator)
        captions = drop_texts(batch.captions, self.drop_text, generator) if denoiser.reads else ()
        planes, tokens = denoiser.condition(layout, z.shape[-2], z.shape[-1], captions)
        known = self.draw(len(z), batch.level, generator)
        if known is None:
            return Problem(z, planes, tokens, None, torch.ones(z.shape[:2], device=z.device), layout=layout)
        seen, known = self.augment(z, known, generator, diffusion)
        context = context_planes(denoiser, seen, known, batch.layout)
        return Problem(z, planes, tokens, context, 1 - known.mask.to(z), layout=layout)

    def augment(
        self, z: Tensor, known: Known, generator: Generator, diffusion: Diffusion | None
    ) -> tuple[Tensor, Known]:
        """What is seen of the known frames in training, and told of it."""
        return z, known


@dataclass
class Window(Frames):
    """The base of tasks on windows some of whose frames are known.

    In a rollout the known frames are the model's own. In training they get a little noise that is not told
    (`context_noise`, its largest standard deviation), or are noised by the forward process to a timestep up to
    `context_augmentation` which is told (conditioning augmentation; 250 in the paper's text-to-video model), or both.
    """

    temporal: bool = True
    context_channels: int = FLAGS
    context_noise: float = 0.0
    context_augmentation: int = 0

    def __post_init__(self) -> None:
        if self.context_augmentation:
            self.context_channels = FLAGS + 1  # one more plane tells the timestep

    def check(self, name: str) -> None:
        """raises UserError for values that make no sense, under the name of the task in the configuration."""
        if not 0 <= self.context_augmentation < TIMESTEPS:
            raise UserError(
                f"{name}.context_augmentation={self.context_augmentation}, expected a timestep, 0 to {TIMESTEPS - 1}"
            )
        if not self.context_noise >= 0:
            raise UserError(f"{name}.context_noise={self.context_noise:g}, expected 0 or more")

    def augment(
        self, z: Tensor, known: Known, generator: Generator, diffusion: Diffusion | None
    ) -> tuple[Tensor, Known]:
        if self.context_noise:
            level = rand((len(z), 1, 1, 1, 1), generator) * self.context_noise
            z = z + (level * randn(z.shape, generator)).to(z)
        if not self.context_augmentation:
            return z, known
        if diffusion is None:
            raise ValueError("context_augmentation needs the forward process: pose(..., diffusion)")
        timestep = (rand((len(z),), generator) * (self.context_augmentation + 1)).long()
        return noised_context(z, known, timestep, randn(z.shape, generator), diffusion)

    def told(self, known: Known) -> Known:
        """`known` with the timestep of frames that were not noised, where this task tells one."""
        return replace(known, noised=torch.zeros(len(known.mask))) if self.context_augmentation else known


@dataclass
class Predict(Window):
    """Keyframes after 0, 1 or 2 first frames, drawn from a categorical p_S (paper, section 3.2); S = 0 is the
    unconditional case that context guidance needs. With probabilities of that case alone, [1.0], as in text-to-video,
    there is no context."""

    frames: int = 8
    probabilities: list[float] = field(default_factory=lambda: [0.1, 0.5, 0.4])
    context_noise: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.probabilities) == 1:
            self.context_channels = 0

    def check(self, name: str) -> None:
        super().check(name)
        most = max(len(self.probabilities) - 1, 2)  # a rollout goes on from two
        if not all(p >= 0 for p in self.probabilities) or not sum(self.probabilities) > 0:
            raise UserError(f"{name}.probabilities={self.probabilities}, expected shares of 0, 1, 2 known frames")
        if self.frames <= most:
            raise UserError(f"{name}.frames={self.frames}; expected {most + 1} or more, {most} of which may be known")

    def draw(self, batch: int, level: Tensor, generator: Generator) -> Known | None:
        if not self.context_channels:
            return None
        return self.known(choice(self.probabilities, batch, generator))

    def known(self, counts: Tensor) -> Known:
        """The first counts [B] frames are known."""
        mask = (torch.arange(self.frames) < counts[:, None]).float()
        return self.told(Known(mask, torch.zeros(len(counts))))


@dataclass
class Interpolate(Window):
    """The `factor` - 1 frames between each two of `keys` known ones; one model for both levels, told which by a flag
    (section 3.3). With T keys a window, T become factor·(T - 1) + 1 in one go.

    drop_context  share of training windows of which nothing is known, which guidance of the interpolation needs
    """

    factor: int = 4
    keys: int = 2
    drop_context: float = 0.0

    @property
    def frames(self) -> int:
        return self.factor * (self.keys - 1) + 1

    def check(self, name: str) -> None:
        super().check(name)
        for option in ("factor", "keys"):
            if getattr(self, option) < 2:
                raise UserError(f"{name}.{option}={getattr(self, option)}, expected 2 or more")
        if not 0 <= self.drop_context < 1:
            raise UserError(f"{name}.drop_context={self.drop_context:g}, expected 0 or more and less than 1")

    def frames_of(self, keys: int) -> int:
        """Frames that a sequence of `keys` becomes, in windows that share their ends.

        raises  UserError if that many do not fill whole windows
        """
        left = (keys - 1) % (self.keys - 1)
        if keys < 1 or left:
            low = max(keys - left, 1) if keys > 0 else 1
            raise UserError(
                f"{keys} frames do not fill windows of {self.keys} keys that share their ends; the nearest numbers "
                f"that do are {low} and {low + self.keys - 1}"
            )
        return self.factor * (keys - 1) + 1

    def draw(self, batch: int, level: Tensor, generator: Generator) -> Known:
        known = self.known(level)
        if not self.drop_context:
            return known
        keep = rand((batch, 1), generator) >= self.drop_context
        return replace(known, mask=known.mask * keep)

    def known(self, level: Tensor) -> Known:
        """Every `factor`-th frame is known; level [B] is 0 for the coarse and 1 for the fine interpolation."""
        mask = torch.zeros(len(level), self.frames)
        mask[:, :: self.factor] = 1
        return self.told(Known(mask, level.float()))


def drop_texts(captions: Sequence[str], rate: float, generator: Generator) -> list[str]:
    """Captions, each forgotten with probability `rate`: classifier-free guidance needs a network that knows none."""
    forgotten = rand((len(captions),), generator) < rate
    return ["" if drop else text for text, drop in zip(captions, forgotten.tolist(), strict=True)]


def noised_context(
    latents: Tensor, known: Known, timestep: Tensor, noise: Tensor, diffusion: Diffusion
) -> tuple[Tensor, Known]:
    """Known frames noised by the forward process to timesteps [B], which are told; latents, noise [B, T, C, h, w]."""
    timestep = timestep.to(latents.device)
    return diffusion.add_noise(latents, noise.to(latents), timestep), replace(known, noised=timestep)


def context_planes(denoiser: "Denoiser", latents: Tensor, known: Known, layout: Layout) -> Tensor:
    """Input of the context encoder [B, T, C + FLAGS, h, w]: the known latents, carried to the unknown frames; the mask;
    the flag; and how far the car is from the nearest known frame, that is, how much the carried ones are worth. Where
    nothing is carried, the paper's c_S = (m o z, m) and the flag. One more plane where `known.noised` tells how noisy
    the known frames are, as a share of all timesteps.

    latents [B, T, C, h, w], of which the known are looked at; layout [B, T] with known ego motion
    """
    mask = known.mask.to(latents)
    flag = known.flag.to(latents)[:, None] * torch.ones_like(mask)
    h, w = latents.shape[-2:]
    apart = distance(mask, layout.travel.to(latents)) if denoiser.carries else torch.zeros_like(mask)
    flags = [mask, flag, apart / FAR_M]
    if known.noised is not None:
        flags.append(known.noised.to(latents)[:, None] / TIMESTEPS * mask)
    carried = denoiser.carry(latents, known.mask, layout)
    return torch.cat([carried, torch.stack(flags, 2)[..., None, None].expand(-1, -1, -1, h, w)], 2)


def unknown_context(context: Tensor, channels: int) -> Tensor:
    """What `context_planes` makes of the same windows where no frame is known: the flag of the task alone is left."""
    nothing = torch.zeros_like(context)
    nothing[:, :, channels + 1] = context[:, :, channels + 1]
    return nothing


def distance(mask: Tensor, travel: Tensor) -> Tensor:
    """Metres to the nearest known frame [B, T]; 0 where none is known."""
    apart = (travel[:, :, None] - travel[:, None]).abs().masked_fill(mask[:, None] == 0, float("inf"))
    return apart.amin(-1).nan_to_num(posinf=0.0)
