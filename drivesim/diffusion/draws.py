"""Random numbers of training, a stream for every sample: what a sample meets depends on the seed and on its number
alone, not on the batch, the process or the run that it comes up in.

So two processes of 4 samples a step train as one of 8 does, or as one of 4 that accumulates two gradients, and a killed
run goes on with the numbers that it would have drawn. Wherever a `Generator` is asked for, one torch.Generator serves a
whole batch as well, as in diffusers.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

GOLDEN = (5**0.5 - 1) / 2  # multiples of it, without their whole parts, spread evenly over 0..1 however many there are


class Streams(list[torch.Generator]):
    """A generator for every sample of a batch, by the samples' numbers."""

    def __init__(self, seed: int, numbers: Iterable[int]) -> None:
        self.seed, self.numbers = seed, [int(number) for number in numbers]
        super().__init__(stream(seed, number) for number in self.numbers)


Generator = torch.Generator | Sequence[torch.Generator]


def stream(seed: int, *index: int) -> torch.Generator:
    """A generator that depends on (seed, index) alone, however many were made before it."""
    mixed = 0x9E3779B97F4A7C15
    for number in (seed, *index):
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed)


def rand(shape: Sequence[int], generator: Generator) -> Tensor:
    """Uniform in [0, 1), [B, ...] on the CPU."""
    return _draw(torch.rand, shape, generator)


def randn(shape: Sequence[int], generator: Generator) -> Tensor:
    """Standard normal, [B, ...] on the CPU."""
    return _draw(torch.randn, shape, generator)


def choice(probabilities: Sequence[float], count: int, generator: Generator) -> Tensor:
    """Indices [count] drawn in proportion to `probabilities`."""
    edges = torch.tensor(probabilities, dtype=torch.float64).cumsum(0)
    drawn = rand((count,), generator).double() * edges[-1]
    return torch.searchsorted(edges, drawn, right=True).clamp_max(len(edges) - 1)


def spread(count: int, generator: Generator) -> Tensor:
    """Uniform in [0, 1), [count], and more evenly spread over a batch than independent draws: a less noisy gradient.

    The samples of `Streams` follow a golden-ratio sequence by their numbers, so they are spread over the batch of all
    processes too; of one generator they come from `count` equal shares of the range.
    """
    if isinstance(generator, Streams):
        offset = torch.rand((), generator=stream(generator.seed), dtype=torch.float64)
        places = (torch.tensor(generator.numbers, dtype=torch.float64) * GOLDEN + offset) % 1
        return places.float().clamp_max(1 - 2**-24)  # rounding must not reach 1
    return (torch.arange(count) + rand((count,), generator)) / count


def _draw(function, shape: Sequence[int], generator: Generator) -> Tensor:
    if isinstance(generator, torch.Generator):
        return function(tuple(shape), generator=generator)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}")
    return torch.stack([function(tuple(shape[1:]), generator=one) for one in generator])
