"""How a step is set up, timed in turns with others, and counted."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import Contender

MODES = ("temporal", "all", "denoise")
ABOUT = {
    "temporal": "training step, temporal layers alone",
    "all": "training step, all weights",
    "denoise": "denoising step",
}
Step = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """How a network is run.

    bf16           autocast to bfloat16, else fp32
    channels_last  memory format of its convolution weights
    plain          attention by plain matrix products instead of torch's choice of kernel
    compiled       torch.compile
    """

    bf16: bool = False
    channels_last: bool = False
    plain: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        chosen = [name for name in ("channels_last", "plain", "compiled") if getattr(self, name)]
        return "+".join(["bf16" if self.bf16 else "fp32", *chosen])

    @contextmanager
    def active(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=self.bf16))
            if self.plain:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield


class Workload:
    """Steps of one mode of one network: forward, squared error, backward, AdamW; or one denoising step."""

    def __init__(self, contender: Contender, mode: str) -> None:
        self.contender, self.mode = contender, mode
        self.trained = [] if mode == "denoise" else contender.select(temporal_only=mode == "temporal")
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6) if self.trained else None

    def step(self, setting: Setting) -> Step:
        """A callable that runs one step under a setting."""
        arrange(self.contender.module, setting.channels_last)
        call = self.contender.denoise if self.optimizer is None else self.contender.train
        if setting.compiled:
            call = torch.compile(call)

        def run() -> None:
            with setting.active(), torch.set_grad_enabled(self.optimizer is not None):
                out = call()
            if self.optimizer is not None:
                out.float().square().mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

        return run


def arrange(module: nn.Module, channels_last: bool) -> None:
    """Memory format of every convolution weight, 2D and 3D."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in formats:
            wanted = formats[parameter.dim()] if channels_last else torch.contiguous_format
            parameter.data = parameter.data.contiguous(memory_format=wanted)


def best_setting(workload: Workload, bf16: Sequence[bool], compiled: bool) -> Setting:
    """The fastest setting, found one choice after the other."""
    best = Setting(bf16=bf16[0])
    fastest = quickest(workload.step(best))
    choices = [{"bf16": value} for value in bf16[1:]] + [{"channels_last": True}, {"plain": True}]
    for choice in choices + [{"compiled": True}] * compiled:
        tried = replace(best, **choice)
        if (seconds := quickest(workload.step(tried))) < fastest:
            best, fastest = tried, seconds
    return best


def quickest(step: Step, repeats: int = 2) -> float:
    """Shortest of some steps after a first that warms up, seconds."""
    step()
    return min(timed(step) for _ in range(repeats))


def timed(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turns(steps: Sequence[Step], rounds: int, tick: Callable[[], object] = lambda: None) -> list[list[float]]:
    """Seconds of every step, A B C A B C ...: what slows the machine for a while slows all of them. [step][round]"""
    for step in steps:
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for taken, step in zip(seconds, steps, strict=True):
            taken.append(timed(step))
        tick()
    return seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of the ratio of two steps that ran one after the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def count(step: Step) -> tuple[float, float]:
    """Operations of a step, forward and backward (GFLOP), and what is kept from forward to backward pass (MiB)."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # Attention as plain products, since the counter does not know the CPU's fused kernel.
    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, saved:
        step()
    return counter.get_total_flops() / 1e9, sum(kept.values()) / 2**20


def matmul_peak(bf16: bool, size: int = 1024, repeats: int = 10) -> float:
    """What the machine reaches in a square matrix product, GFLOP/s."""
    a = torch.randn(size, size).to(torch.bfloat16 if bf16 else torch.float32)
    return 2 * size**3 / quickest(lambda: torch.mm(a, a), repeats) / 1e9  # type: ignore[arg-type, return-value]
