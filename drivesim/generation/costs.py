"""What the stages of a rollout take: seconds, and answers of denoisers."""

import time
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """seconds      of computing
    evaluations  answers of denoisers, for a window each: one that is guided by another costs two
    """

    seconds: float = 0.0
    evaluations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.evaluations + other.evaluations)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds - other.seconds, self.evaluations - other.evaluations)

    def tensor(self) -> Tensor:
        """[2] float64, of which `of` makes it again."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @staticmethod
    def of(tensor: Tensor) -> "Cost":
        seconds, evaluations = tensor.tolist()
        return Cost(seconds, int(evaluations))


class Meter:
    """Counts what passes: time, and what the networks that it watches answer."""

    def __init__(self) -> None:
        self.evaluations = 0

    def watch(self, denoiser: nn.Module) -> None:
        """Count its answers from now on."""
        denoiser.register_forward_pre_hook(self._count)

    def read(self) -> Cost:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or time would be told of the stage that waits, not of the one that computes
        return Cost(time.perf_counter(), self.evaluations)

    def _count(self, denoiser: nn.Module, told: tuple[Any, ...]) -> None:
        self.evaluations += len(told[0])


def table(costs: dict[str, Cost], video_s: float) -> str:
    """Costs for people, a line a stage: per second of a video of `video_s` seconds."""
    total = sum(costs.values(), Cost())
    lines = [f"{'computing':<14} {'seconds a second':>16} {'share':>6} {'evaluations':>12}"]
    for name, cost in {**costs, "all": total}.items():
        share = cost.seconds / max(total.seconds, 1e-9)
        lines.append(f"{name:<14} {cost.seconds / video_s:16.3f} {share:6.0%} {cost.evaluations or '':>12}")
    return "\n".join(lines)


def record(costs: dict[str, Cost]) -> dict[str, dict[str, float]]:
    """Costs as OUT.json holds them."""
    return {name: {**asdict(cost), "seconds": round(cost.seconds, 3)} for name, cost in costs.items()}
