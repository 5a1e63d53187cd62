"""What this machine does fastest, measured in a second or two: precision and threads."""

import ctypes
import os
import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from drivesim.errors import UserError

PRECISION = "DRIVESIM_PRECISION"  # environment variable: bf16 or fp32, instead of what is measured
M_MMAP_THRESHOLD = -3  # malloc.h
RETURNED_BYTES = 8 << 20  # 1 MiB peaks 4 % lower and costs a tenth more time in page faults


@dataclass(frozen=True)
class Machine:
    """device: cuda or cpu; bf16: whether autocast to bfloat16 is worth it; threads: of a CPU process."""

    device: str
    bf16: bool
    threads: int
    reason: str

    def autocast(self) -> AbstractContextManager:
        """bfloat16 autocast where it pays, else nothing."""
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext()

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    @property
    def lightning_precision(self) -> str:
        return "bf16-mixed" if self.bf16 else "32-true"


_settled: Machine | None = None


def settle(bf16: bool, threads: int) -> None:
    """Compute with this precision and so many threads from now on, in this process, whatever is fastest: what goes on
    has to be rounded as it began."""
    global _settled
    _settled = Machine("cuda" if torch.cuda.is_available() else "cpu", bf16, threads, "as it began")
    torch.set_num_threads(threads)
    probe.cache_clear()


@lru_cache(maxsize=1)
def probe() -> Machine:
    """Measure once a process, unless it is settled. On a CPU without bf16 instructions a bf16 convolution is tens of
    times slower than an fp32 one, so the speed is never assumed; a step that is too slow is not even finished."""
    if _settled is not None:
        return _settled
    asked = os.environ.get(PRECISION)
    if asked not in (None, "bf16", "fp32"):
        raise UserError(f"{PRECISION}={asked}, expected bf16 or fp32")
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported() if asked is None else asked == "bf16"
        return Machine("cuda", bf16, 1, torch.cuda.get_device_name())
    # The median, not the fastest run: on a shared machine it is the waiting of threads for each other that hurts, and
    # one thread can be several times faster than all of them.
    with torch.enable_grad():
        most = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        timed = {}
        for threads in sorted({1, most}):
            torch.set_num_threads(threads)
            timed[threads] = _seconds(torch.float32)
        threads = min(timed, key=timed.__getitem__)
        torch.set_num_threads(threads)
        half = _seconds(torch.bfloat16, limit=2 * timed[threads])
    faster = half < 0.9 * timed[threads] if asked is None else asked == "bf16"
    fp32 = ", ".join(f"{1e3 * seconds:.1f} ms in fp32 with {count} threads" for count, seconds in timed.items())
    return Machine("cpu", faster, threads, f"convolution {fp32}, {1e3 * half:.1f} ms in bf16")


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA says so by type, a CPU by the words of torch's allocator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"not enough memory|can't allocate memory", str(error)))


def return_freed_memory() -> None:
    """Give what large tensors leave back to the system at once, in this process from now on; glibc only.

    glibc's malloc would soon keep blocks of up to 32 MiB for itself, where small things that live longer settle between
    them, so that a process grows for minutes although what it holds does not: `drivesim generate` by 163 MiB.
    The price is page faults: 0.40 instead of 0.34 CPU seconds a frame of 512x1024 with one step of each denoiser.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)  # a threshold that is set does not move any more


def _seconds(dtype: torch.dtype, limit: float = float("inf"), repeats: int = 9) -> float:
    """Median of some 3x3 convolutions with gradient, channels_last, as the U-Net runs them."""
    x = torch.randn(8, 128, 16, 32).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3).to(dtype).requires_grad_()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        F.conv2d(x, weight, padding=1).float().sum().backward()
        times.append(time.perf_counter() - start)
        if min(times) > 5 * limit:
            break  # tens of times slower: not worth waiting for the rest
    return sorted(times)[len(times) // 2]


def describe() -> str:
    """One line for the user."""
    m = probe()
    return f"{m.device}, {m.threads} threads, {m.precision} ({m.reason})"
