"""Where the time of our step goes, by kind of layer, and how it grows: `python -m benchmarks.profile`."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from matplotlib.figure import Figure
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

from benchmarks import start
from benchmarks.measure import ABOUT, MODES, Setting, Step, Workload, quickest
from benchmarks.networks import Inputs, ours
from drivesim.config import option, parse
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.machine import probe
from drivesim.models.conditioning import LayoutTokens
from drivesim.models.inflation import ContextEncoder
from drivesim.models.temporal import TemporalAttention, TemporalConv, TemporalHead, TemporalTransformer
from drivesim.training.experiment import ExperimentConfig

KINDS: dict[type, str] = {
    ResnetBlock2D: "spatial convolution",
    Transformer2DModel: "spatial attention",
    Downsample2D: "change of resolution",
    Upsample2D: "change of resolution",
    TimestepEmbedding: "embeddings",
    LayoutTokens: "embeddings",
    TemporalConv: "temporal convolution",
    TemporalAttention: "temporal attention",
    TemporalTransformer: "temporal attention",
    TemporalHead: "temporal head",
    ContextEncoder: "context encoder",
}
OPTIMIZER, REST = "optimiser", "the rest"
MARK = "kind of layer: "


@dataclass
class ProfileBenchmark:
    """Profile a step of our video denoiser on one CPU process and share its time out among the kinds of its layers,
    forward and backward passes together, for several lengths of clips and sizes of latents."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"experiment": "town"}])
    mode: str = option("temporal", f"the step: {', '.join(MODES)}")
    batch: int = option(1, "clips a step")
    frames: list[int] = option([8, 32], "frames a clip")
    sizes: list[str] = option(["8x16", "16x32", "32x64"], "of the latents")
    most_frames: int = option(300000, "clips x frames x height x width above which a pair is left out")
    dtype: str = option("auto", "fp32, bf16 or auto")
    threads: int = option(0, "CPU threads; 0: what the probe finds fastest")
    out: str | None = option(None, "write OUT.json and OUT.png too")
    config: ExperimentConfig = option(ExperimentConfig(), "the experiment; its denoiser is measured")


def main(argv: Sequence[str]) -> None:
    options = parse(ProfileBenchmark, argv, "python -m benchmarks.profile")
    sizes = check(options)
    torch.set_num_threads(options.threads or probe().threads)
    half = probe().bf16 if options.dtype == "auto" else options.dtype == "bf16"
    cases = [(t, h, w) for h, w in sizes for t in options.frames if options.batch * t * h * w <= options.most_frames]
    found: dict[str, dict[str, float]] = {}
    for t, h, w in tqdm(cases, desc=ABOUT[options.mode], file=sys.stderr):
        torch.manual_seed(0)
        model = replace(options.config.denoiser, prior=0)
        temporal = replace(options.config.temporal, frames=t)
        inputs = Inputs.random(options.batch, t, model.channels, h, w, seed=0)
        step = Workload(ours(model, inputs, temporal), options.mode).step(Setting(bf16=half, channels_last=True))
        found[f"{t} x {h}x{w}"] = by_kind(step)
    print(table(found, ABOUT[options.mode]))
    if options.out:
        with atomic_path(Path(f"{options.out}.json")) as path:
            path.write_text(json.dumps({"mode": options.mode, "batch": options.batch, "ms": found}, indent=1))
        with atomic_path(Path(f"{options.out}.png")) as path:
            draw(found, ABOUT[options.mode]).savefig(path, dpi=90)


def check(options: ProfileBenchmark) -> list[tuple[int, int]]:
    """Heights and widths. raises UserError for options that make no sense"""
    if options.mode not in MODES:
        raise UserError(f"mode is {options.mode!r}; choose from {', '.join(MODES)}")
    if options.dtype not in ("auto", "fp32", "bf16"):
        raise UserError(f"dtype is {options.dtype!r}, expected auto, fp32 or bf16")
    if options.batch < 1 or not options.frames or min(options.frames) < 1:
        raise UserError(f"batch={options.batch}, frames={options.frames}; expected numbers of 1 or more")
    sizes = []
    for text in options.sizes:
        sides = text.split("x")
        halved = 2 ** (len(options.config.denoiser.block_out_channels) - 1)
        if len(sides) != 2 or not all(side.isdigit() and int(side) and int(side) % halved == 0 for side in sides):
            raise UserError(f"sizes has {text!r}, expected HEIGHTxWIDTH, both multiples of {halved}")
        sizes.append((int(sides[0]), int(sides[1])))
    return sizes


def by_kind(step: Step) -> dict[str, float]:
    """Milliseconds of a step by kind of layer. Shares are those under the profiler, which slows all of it down; the sum
    is a step without it."""
    total = quickest(step)
    with _marked(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.events()
    assert events is not None
    shares = shared_out(events)
    return {kind: 1e3 * total * value / sum(shares.values()) for kind, value in shares.items()}


@contextmanager
def _marked() -> Iterator[None]:
    """Inside it every call of a layer of some kind is marked in profiles."""
    opened: list[record_function] = []

    def before(module: nn.Module, inputs: tuple) -> None:
        if type(module) in KINDS:
            opened.append(record_function(MARK + KINDS[type(module)]))
            opened[-1].__enter__()

    def after(module: nn.Module, inputs: tuple, output: object) -> None:
        if type(module) in KINDS:
            opened.pop().__exit__(None, None, None)

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def shared_out(events: Sequence[FunctionEvent]) -> dict[str, float]:
    """Microseconds by kind. What runs in a backward pass belongs to the layer whose forward pass it is of: autograd
    gives both the same number."""
    forward = {event.sequence_nr: kind for event in events if event.sequence_nr >= 0 and (kind := _kind(event))}
    found: dict[str, float] = defaultdict(float)
    for event in events:
        if event.name != "[memory]":
            found[_kind(event) or forward.get(_number(event), REST)] += event.self_cpu_time_total
    return dict(found)


def _kind(event: FunctionEvent | None) -> str | None:
    """Of the innermost layer that an operation of a forward pass ran in, or the optimiser."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        if event.name.startswith("Optimizer."):
            return OPTIMIZER
        event = event.cpu_parent
    return None


def _number(event: FunctionEvent | None) -> int:
    """autograd's number of the backward function that an operation ran in, -1 outside of one."""
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return event.sequence_nr
        event = event.cpu_parent
    return -1


def _kinds(found: dict[str, dict[str, float]]) -> list[str]:
    """All kinds, the costliest of the last case first."""
    last = list(found.values())[-1]
    return sorted({kind for case in found.values() for kind in case}, key=lambda kind: -last.get(kind, 0))


def table(found: dict[str, dict[str, float]], about: str) -> str:
    """A row a kind, a column a case (frames x height x width), milliseconds and shares."""
    lines = [f"{about}, ms", f"{'':<22}" + "".join(f"{case:>18}" for case in found)]
    for kind in _kinds(found):
        cells = [(case.get(kind, 0.0), sum(case.values())) for case in found.values()]
        lines.append(f"{kind:<22}" + "".join(f"{f'{ms:.1f} ({ms / total:.0%})':>18}" for ms, total in cells))
    return "\n".join([*lines, f"{'step':<22}" + "".join(f"{sum(case.values()):>18.1f}" for case in found.values())])


def draw(found: dict[str, dict[str, float]], about: str) -> Figure:
    """Stacked bars of milliseconds a frame, a bar a case: level bars mean that the cost grows with the clip."""
    figure = Figure(figsize=(1.5 + 1.4 * len(found), 5), layout="constrained")
    panel = figure.subplots()
    below = [0.0] * len(found)
    for kind in _kinds(found):
        heights = [case.get(kind, 0.0) / int(name.split()[0]) for name, case in found.items()]
        panel.bar(list(found), heights, bottom=below, label=kind)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    panel.set(ylabel="ms a frame", xlabel="frames x height x width of the latents", title=about)
    panel.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    start(main, "benchmarks.profile")
