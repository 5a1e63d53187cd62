"""Guidance: away from what the network would say if it had been told less.

With f(z; all) the answer to everything that is asked, and f(z; all but i) the answer without condition i,

    f' = f(z; all) + sum over i of (s_i - 1)·(f(z; all) - f(z; all but i)).

With one condition this is classifier-free guidance, f(z) + s·(f(z; c) - f(z)), and with the context frames as that
condition the paper's context guidance (section 3.2). With several, each has a scale of its own: a scale of 1 leaves a
condition as it is whatever the others are. (To guide a guided denoiser again multiplies scales: context twice as strong
and layout twice as strong would make context four times as strong.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from drivesim.diffusion.sampler import Denoise
from drivesim.diffusion.schedule import TIMESTEPS

T = TypeVar("T")
Answer = Callable[[Tensor, Tensor, Any], Tensor]  # (noisy latents [B, ...], timestep [B], told) -> velocity [B, ...]


@dataclass(frozen=True)
class Term:
    """How strongly one condition steers.

    scale    1 is unguided, 0 is as if it were not told
    without  everything else that is told: the network's conditions with this one left out
    """

    scale: float
    without: Any


@dataclass(frozen=True)
class Interval:
    """Timesteps that are guided, as shares of all: 0 is data, 1 is noise (Kynkäänniemi et al. 2024)."""

    low: float = 0.0
    high: float = 1.0

    def holds(self, timestep: Tensor) -> Tensor:
        """Which of timesteps [B] are guided."""
        share = (timestep + 0.5) / TIMESTEPS
        return (self.low <= share) & (share <= self.high)


EVERYWHERE = Interval()


def guided(
    answer: Answer,
    told: Any,
    terms: Sequence[Term] = (),
    interval: Interval = EVERYWHERE,
    rescale: float = 0.0,
    batched: bool = True,
) -> Denoise:
    """A denoiser that is told `told` and guided by `terms`.

    told      a tensor, or None, dicts and dataclasses of them, that `answer` takes and `cat` can batch
    interval  outside of it nothing is guided, nor paid for
    rescale   0..1, how far the answer is brought back to the spread of the unguided one (Lin et al. 2023, section 3.4)
    batched   ask for all terms in one call of the network, for as much more memory
    """
    terms = [term for term in terms if term.scale != 1.0]

    def denoise(z: Tensor, timestep: Tensor) -> Tensor:
        held = None if interval == EVERYWHERE else interval.holds(timestep)  # everywhere: no waiting for the device
        if not terms or (held is not None and not held.any()):
            return answer(z, timestep, told)
        first, *others = _ask(answer, z, timestep, [told, *(term.without for term in terms)], batched)
        made = first + sum((term.scale - 1) * (first - other) for term, other in zip(terms, others, strict=True))
        made = made if rescale == 0 else rescaled(made, first, rescale)
        return made if held is None else torch.where(held.view(-1, *(1,) * (z.dim() - 1)), made, first)

    return denoise


def _ask(answer: Answer, z: Tensor, timestep: Tensor, questions: list[Any], batched: bool) -> Sequence[Tensor]:
    if not batched:
        return [answer(z, timestep, question) for question in questions]
    n = len(questions)
    return answer(torch.cat([z] * n), timestep.repeat(n), cat(questions)).chunk(n)


def rescaled(guided: Tensor, unguided: Tensor, share: float) -> Tensor:
    """The guided answer with its standard deviation, a sample at a time, moved by `share` to that of the unguided one:
    guidance makes it larger, and pictures too contrasty."""
    rest = tuple(range(1, guided.dim()))
    ratio = unguided.std(rest, keepdim=True) / guided.std(rest, keepdim=True)
    return guided * (share * ratio + 1 - share)


def cat(parts: Sequence[T]) -> T:
    """Conditions of one kind as those of one larger batch, along the first axis of every tensor.

    raises  ValueError where some of them have a part that others lack: what is left out must be told to be unknown
    """
    first: Any = parts[0]
    if any(part is None for part in parts):
        if not all(part is None for part in parts):
            raise ValueError("conditions of which some lack a part; leave one out by its unknown value, not by None")
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)  # type: ignore[arg-type]
    if isinstance(first, dict):
        return {key: cat([part[key] for part in parts]) for key in first}  # type: ignore[return-value, index]
    return replace(first, **{f.name: cat([getattr(part, f.name) for part in parts]) for f in fields(first)})
