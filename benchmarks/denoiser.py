"""Our video denoiser against the published video U-Nets: `python -m benchmarks.denoiser`."""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import start
from benchmarks.measure import (
    ABOUT,
    MODES,
    Setting,
    Workload,
    best_setting,
    in_turns,
    matmul_peak,
    median_ratio,
    operations,
)
from benchmarks.memory import MemoryRow, memory, memory_table
from benchmarks.networks import OURS, Contender, Inputs, contenders
from drivesim.config import option, parse
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.machine import probe
from drivesim.training.experiment import ExperimentConfig

LIMIT = 0.85  # of the time of the fastest peer


@dataclass
class DenoiserBenchmark:
    """Time our video denoiser against three published video U-Nets, on the CPU, in turns within one process.

    Parameters match within 10 %, the same set of weights is trained (temporal layers only, or all), the clip is the
    same and every network runs in its own fastest setting. AnimateDiff's has temporal attention only; ours, Stable
    Video Diffusion's and ModelScope's have temporal attention and temporal convolutions.
    """

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"experiment": "town"}])
    batch: int = option(2, "clips a step")
    frames: list[int] = option([8, 32], "frames a clip, one measurement after the other")
    height: int = option(16, "of the latents")
    width: int = option(32, "of the latents")
    modes: list[str] = option(list(MODES), "what is timed")
    rounds: int = option(9, "turns of every network, at least 7 for a figure to quote")
    dtype: str = option("auto", "fp32, bf16, or auto: the faster one of each network")
    attention: str = option("ours", "of the peers: at the resolutions where ours has it, or as published")
    compile_seconds: float = option(0.0, "try torch.compile for each network and mode as well, for so long at most")
    memory: bool = option(True, "measure the memory of training steps, with gradient checkpointing and without")
    threads: int = option(0, "CPU threads; 0: as many as cores or OMP_NUM_THREADS. One, on a machine that is in use")
    seed: int = option(0, "seed of weights and inputs")
    out: str | None = option(None, "write the results to this JSON file too")
    config: ExperimentConfig = option(ExperimentConfig(), "the experiment; its denoiser is measured")


@dataclass(frozen=True)
class Row:
    """One network in one mode. ratio: our time over its own, median over rounds; share: of the matmul peak."""

    mode: str
    network: str
    widths: tuple[int, ...]
    parameters_m: float
    trained_m: float
    gflop: float
    ms: float
    spread_ms: tuple[float, float]
    share: float
    ours_over_this: float
    setting: str


def main(argv: Sequence[str]) -> None:
    options = parse(DenoiserBenchmark, argv, "python -m benchmarks.denoiser")
    check(options)
    report = run(options)
    print(table(report))
    if options.out:
        with atomic_path(Path(options.out)) as path:
            path.write_text(json.dumps(report, indent=1))


def check(options: DenoiserBenchmark) -> None:
    if unknown := [mode for mode in options.modes if mode not in MODES]:
        raise UserError(f"unknown mode {unknown[0]!r} in modes; choose from {', '.join(MODES)}")
    if options.dtype not in ("auto", "fp32", "bf16"):
        raise UserError(f"dtype is {options.dtype!r}, expected auto, fp32 or bf16")
    if options.attention not in ("ours", "published"):
        raise UserError(f"attention is {options.attention!r}, expected ours or published")
    for name in ("batch", "height", "width", "rounds"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}, expected 1 or more")
    if not options.frames or min(options.frames) < 1:
        raise UserError(f"frames is {options.frames}, expected numbers of 1 or more")
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
    if options.compile_seconds > 0 and not compiler:
        raise UserError("compile_seconds needs a C++ compiler and found neither g++ nor clang++; install one, set CXX")
    if not options.config.denoiser.token_dim:
        raise UserError("config.denoiser.token_dim is 0, but the peers need tokens to attend to; set it above 0")


def run(options: DenoiserBenchmark) -> dict[str, Any]:
    """All lengths of clips and modes -> the report."""
    threads = options.threads or probe().threads
    torch.set_num_threads(threads)
    choices = {"fp32": [False], "bf16": [True], "auto": [probe().bf16, not probe().bf16]}[options.dtype]
    peaks = {half: matmul_peak(half) for half in choices}
    return {
        "machine": {"threads": threads, "torch": torch.__version__,
                    "peak_gflops": {"bf16" if half else "fp32": round(peak) for half, peak in peaks.items()}},
        "rounds": options.rounds, "attention": options.attention,
        "clips": [clip(frames, choices, peaks, options) for frames in options.frames],
    }  # fmt: skip


def clip(
    frames: int, choices: Sequence[bool], peaks: dict[bool, float], options: DenoiserBenchmark
) -> dict[str, Any]:  # fmt: skip
    """All modes for clips of so many frames: their shape, rows, and our ratio to the fastest peer in each mode."""
    torch.manual_seed(options.seed)
    model = replace(options.config.denoiser, prior=0)  # the network by itself, as the peers are
    inputs = Inputs.random(options.batch, frames, model.channels, options.height, options.width, options.seed)
    networks = contenders(model, inputs, options.attention, replace(options.config.temporal, frames=frames))
    settings: dict[tuple[str, str], Setting] = {}
    rows: list[Row] = []
    for mode in options.modes:
        chosen, measured = measure(mode, networks, choices, peaks, options)
        rows += measured
        settings |= {(mode, name): setting for name, setting in chosen.items() if mode != "denoise"}
    held = memory(networks, settings) if options.memory else []
    return {
        "shape": list(inputs.x.shape), "rows": [asdict(row) for row in rows], "memory": [asdict(row) for row in held],
        "ratio_to_fastest_peer": {mode: ratio(rows, mode) for mode in options.modes},
    }  # fmt: skip


def measure(
    mode: str, networks: list[Contender], choices: Sequence[bool], peaks: dict[bool, float], options: DenoiserBenchmark
) -> tuple[dict[str, Setting], list[Row]]:
    """The setting of each network, by name, and one row each."""
    bar = tqdm(total=2 * len(networks) + options.rounds, desc=ABOUT[mode], file=sys.stderr)
    loads = [Workload(network, mode) for network in networks]
    settings, gflop = [], []
    for load in loads:
        settings.append(best_setting(load, choices, options.compile_seconds))
        bar.update()
    for load in loads:
        gflop.append(operations(load.step(Setting(bf16=choices[0]))))
        bar.update()
    steps = [load.step(setting) for load, setting in zip(loads, settings, strict=True)]
    seconds = in_turns(steps, options.rounds, bar.update)
    bar.close()
    rows = []
    for load, setting, taken, counted in zip(loads, settings, seconds, gflop, strict=True):
        network, median = load.contender, statistics.median(taken)
        rows.append(Row(
            mode, network.name, network.widths, network.parameters / 1e6, sum(p.numel() for p in load.trained) / 1e6,
            counted, 1e3 * median, (1e3 * min(taken), 1e3 * max(taken)), counted / median / peaks[setting.bf16],
            median_ratio(seconds[0], taken), str(setting),
        ))  # fmt: skip
    return {network.name: setting for network, setting in zip(networks, settings, strict=True)}, rows


def ratio(rows: Sequence[Row], mode: str) -> float:
    """Our time over that of the fastest peer: the largest of the ratios to each."""
    return max(row.ours_over_this for row in rows if row.mode == mode and row.network != OURS)


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    machine = report["machine"]
    peaks = ", ".join(f"{name} {peak} GFLOP/s" for name, peak in machine["peak_gflops"].items())
    heading = f"{report['rounds']} rounds in turns, {machine['threads']} threads, matrix product {peaks}"
    return "\n\n".join([heading, *(clip_table(measured) for measured in report["clips"])])


def clip_table(measured: dict[str, Any]) -> str:
    """What was measured with one length of clips, as text."""
    b, t, c, h, w = measured["shape"]
    lines = [f"{b} x {t} frames of {c}x{h}x{w} latents"]
    columns = ("", "M params", "trained", "GFLOP", "ms", "ms range", "of peak", "ours / this", "setting")
    form = "{:<13}{:>9}{:>9}{:>8}{:>8}{:>13}{:>9}{:>13}  {}"
    for mode, found in measured["ratio_to_fastest_peer"].items():
        lines += ["", f"{ABOUT[mode]}: {found:.2f} of the fastest peer's time (at most {LIMIT})", form.format(*columns)]
        for row in (row for row in measured["rows"] if row["mode"] == mode):
            low, high = row["spread_ms"]
            lines.append(form.format(
                row["network"], f"{row['parameters_m']:.1f}", f"{row['trained_m']:.1f}", f"{row['gflop']:.0f}",
                f"{row['ms']:.0f}", f"{low:.0f}-{high:.0f}", f"{row['share']:.0%}", f"{row['ours_over_this']:.2f}",
                row["setting"],
            ))  # fmt: skip
    held = [MemoryRow(**row) for row in measured["memory"]]
    return "\n".join([*lines, memory_table(held)] if held else lines)


if __name__ == "__main__":
    start(main, "benchmarks.denoiser")
