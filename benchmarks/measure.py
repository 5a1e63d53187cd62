"""How a step is set up, timed in turns with others, and counted."""

import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
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

    def attention(self) -> AbstractContextManager:
        """Inside it attention runs as chosen, in backward passes too."""
        return sdpa_kernel(SDPBackend.MATH) if self.plain else nullcontext()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside it forward passes run as chosen."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16), self.attention():
            yield


class Workload:
    """Steps of one mode of one network: forward, squared error, backward, AdamW; or one denoising step."""

    def __init__(self, contender: Contender, mode: str) -> None:
        self.contender, self.mode = contender, mode
        self.trained = [] if mode == "denoise" else contender.select(temporal_only=mode == "temporal")
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6) if self.trained else None
        contender.module.train(mode != "denoise")  # ModelScope's has dropout

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
                with setting.attention():  # of what gradient checkpointing runs again
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


class Steps(Protocol):
    """What can be run under a setting."""

    def step(self, setting: Setting) -> Step: ...


def best_setting(workload: Steps, bf16: Sequence[bool], compile_seconds: float = 0) -> Setting:
    """The fastest setting, found one choice after the other.

    compile_seconds  what torch.compile may take; one that does not finish is not chosen. 0: it is not tried
    """
    best = Setting(bf16=bf16[0])
    fastest = quickest(workload.step(best))
    for choice in [{"bf16": value} for value in bf16[1:]] + [{"channels_last": True}, {"plain": True}]:
        tried = replace(best, **choice)
        if (seconds := quickest(workload.step(tried))) < fastest:
            best, fastest = tried, seconds
    if compile_seconds > 0:
        tried = replace(best, compiled=True)
        step = workload.step(tried)
        if within(compile_seconds, step) and quickest(step) < fastest:
            return tried
    return best


class _TimeUp(BaseException):
    """Not an Exception, since compilers catch those."""


def within(seconds: float, step: Step) -> bool:
    """Whether a step ends within some seconds; stopped where it is if it does not. Main thread only."""

    def stop(*_: object) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        step()
        return True
    except _TimeUp:
        torch.compiler.reset()
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def quickest(step: Step, repeats: int = 2) -> float:
    """Shortest of some steps after a first that warms up, seconds."""
    step()
    return min(timed(step) for _ in range(repeats))


def clock() -> float:
    """Seconds that count: of the CPU where torch runs on one thread, so that what others do on the machine is left
    out, else on the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(step: Step) -> float:
    start = clock()
    step()
    return clock() - start


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


def operations(step: Step) -> float:
    """Operations of a step, forward and backward, GFLOP."""
    # Attention as plain products, since the counter does not know the CPU's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def saved_mib(step: Step, weights: Iterable[Tensor]) -> float:
    """What is kept from the forward to the backward pass of a step, the weights themselves aside."""
    kept: dict[int, int] = {}
    known = {weight.untyped_storage().data_ptr() for weight in weights}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values()) / 2**20


def peak_mib(step: Step) -> float:
    """The most that tensors take during a step beyond what they took before it: activations, gradients, temporaries.
    What oneDNN allocates for itself is not in it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def matmul_peak(bf16: bool, size: int = 1024, repeats: int = 10) -> float:
    """What the machine reaches in a square matrix product, GFLOP/s."""
    a = torch.randn(size, size).to(torch.bfloat16 if bf16 else torch.float32)
    return 2 * size**3 / quickest(lambda: torch.mm(a, a), repeats) / 1e9  # type: ignore[arg-type, return-value]
