"""Our video denoiser against Stable Video Diffusion's and AnimateDiff's: `python -m benchmarks.denoiser`."""

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
from benchmarks.measure import ABOUT, MODES, Setting, Workload, best_setting, count, in_turns, matmul_peak, median_ratio
from benchmarks.networks import Contender, Inputs, contenders
from drivesim.config import option, parse
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.machine import probe
from drivesim.training.experiment import ExperimentConfig

LIMIT = 0.85  # of the time of the faster peer


@dataclass
class DenoiserBenchmark:
    """Time our video denoiser against the two published video U-Nets, on the CPU, in turns within one process.

    Parameters match within 10 %, the same set of weights is trained (temporal layers only, or all), the clip is the
    same and every network runs in its own fastest setting. AnimateDiff's has temporal attention only; ours and Stable
    Video Diffusion's have temporal attention and temporal convolutions.
    """

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"experiment": "town"}])
    batch: int = option(2, "clips a step")
    frames: int = option(8, "frames a clip")
    height: int = option(16, "of the latents")
    width: int = option(32, "of the latents")
    modes: list[str] = option(list(MODES), "what is timed")
    rounds: int = option(9, "turns of every network, at least 7 for a figure to quote")
    dtype: str = option("auto", "fp32, bf16, or auto: the faster one of each network")
    compile: bool = option(False, "try torch.compile for each network as well; minutes")
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
    saved_mib: float
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
    for name in ("batch", "frames", "height", "width", "rounds"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}, expected 1 or more")
    if options.compile and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise UserError("compile=true needs a C++ compiler and found neither g++ nor clang++; install one or set CXX")
    if not options.config.denoiser.token_dim:
        raise UserError("config.denoiser.token_dim is 0, but the peers need tokens to attend to; set it above 0")


def run(options: DenoiserBenchmark) -> dict[str, Any]:
    """All modes -> the report: machine, clip, rows, and our ratio to the faster peer in each mode."""
    threads = options.threads or probe().threads
    torch.set_num_threads(threads)
    torch.manual_seed(options.seed)
    model = replace(options.config.denoiser, prior=0)  # the network by itself, as the peers are
    inputs = Inputs.random(options.batch, options.frames, model.channels, options.height, options.width, options.seed)
    networks = contenders(model, inputs)
    choices = {"fp32": [False], "bf16": [True], "auto": [probe().bf16, not probe().bf16]}[options.dtype]
    peaks = {half: matmul_peak(half) for half in choices}
    rows = [row for mode in options.modes for row in measure(mode, networks, choices, peaks, options)]
    return {
        "machine": {"threads": threads, "torch": torch.__version__,
                    "peak_gflops": {"bf16" if half else "fp32": round(peak) for half, peak in peaks.items()}},
        "clip": list(inputs.x.shape), "rounds": options.rounds, "rows": [asdict(row) for row in rows],
        "ratio_to_faster_peer": {mode: ratio(rows, mode) for mode in options.modes},
    }  # fmt: skip


def measure(mode: str, networks: list[Contender], choices: Sequence[bool], peaks: dict[bool, float],
            options: DenoiserBenchmark) -> list[Row]:  # fmt: skip
    """One row a network."""
    bar = tqdm(total=2 * len(networks) + options.rounds, desc=ABOUT[mode], file=sys.stderr)
    loads = [Workload(network, mode) for network in networks]
    settings: list[Setting] = []
    for load in loads:
        settings.append(best_setting(load, choices, options.compile))
        bar.update()
    counted = []
    for load in loads:
        counted.append(count(load.step(Setting(bf16=choices[0]))))
        bar.update()
    steps = [load.step(setting) for load, setting in zip(loads, settings, strict=True)]
    seconds = in_turns(steps, options.rounds, bar.update)
    bar.close()
    rows = []
    for load, setting, taken, (gflop, saved) in zip(loads, settings, seconds, counted, strict=True):
        network, median = load.contender, statistics.median(taken)
        rows.append(Row(
            mode, network.name, network.widths, network.parameters / 1e6, sum(p.numel() for p in load.trained) / 1e6,
            gflop, saved, 1e3 * median, (1e3 * min(taken), 1e3 * max(taken)), gflop / median / peaks[setting.bf16],
            median_ratio(seconds[0], taken), str(setting),
        ))  # fmt: skip
    return rows


def ratio(rows: Sequence[Row], mode: str) -> float:
    """Our time over that of the faster peer: the largest of the ratios to each."""
    return max(row.ours_over_this for row in rows if row.mode == mode and row.network != "drivesim")


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    b, t, c, h, w = report["clip"]
    machine = report["machine"]
    peaks = ", ".join(f"{name} {peak} GFLOP/s" for name, peak in machine["peak_gflops"].items())
    lines = [f"{b} x {t} frames of {c}x{h}x{w} latents, {report['rounds']} rounds in turns, "
             f"{machine['threads']} threads, matrix product {peaks}"]  # fmt: skip
    columns = ("", "M params", "trained", "GFLOP", "saved MiB", "ms", "ms range", "of peak", "ours / this", "setting")
    form = "{:<13}{:>9}{:>9}{:>8}{:>11}{:>8}{:>13}{:>9}{:>13}  {}"
    for mode, found in report["ratio_to_faster_peer"].items():
        lines += ["", f"{ABOUT[mode]}: {found:.2f} of the faster peer's time (at most {LIMIT})", form.format(*columns)]
        for row in (row for row in report["rows"] if row["mode"] == mode):
            low, high = row["spread_ms"]
            lines.append(form.format(
                row["network"], f"{row['parameters_m']:.1f}", f"{row['trained_m']:.1f}", f"{row['gflop']:.0f}",
                f"{row['saved_mib']:.0f}", f"{row['ms']:.0f}", f"{low:.0f}-{high:.0f}", f"{row['share']:.0%}",
                f"{row['ours_over_this']:.2f}", row["setting"],
            ))  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    start(main, "benchmarks.denoiser")
