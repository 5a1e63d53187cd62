"""Steps of sampling against quality, of a bundle and of what was distilled from it: `python -m benchmarks.steps`."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from benchmarks import start
from drivesim.bundle import Bundle
from drivesim.clip import to_uint8
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.data.windows import Batch, WindowDataset, collate
from drivesim.diffusion.sampler import window_noise
from drivesim.diffusion.tasks import Known
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.generation.samplers import SamplerConfig, sample_upsampled, sample_window, upsampling_noise
from drivesim.machine import describe
from drivesim.models.denoiser import Denoiser
from drivesim.training.distill import STEPS, described
from drivesim.training.stages import Workspace, load_denoiser
from eval.distances import frechet
from eval.features import clip_features, frame_features

BATCH = 4  # windows sampled at once
SAMPLERS = ("ddim", "dpm++", "unipc")
DIGITS = 12  # of a hash that name weights
DISTANCES = ("fd_transnetv2", "fd_efficientnet_lite0")


@dataclass
class StepsBenchmark:
    """Sample held-out windows with more and more steps by several solvers, and with few by a distilled stage: distances
    to the real windows, the distance from what the most steps of DDIM make of the same noise, and the time.

    Writes results.json and curves.png into OUT. Settings that are there already, of this bundle or of other students
    of it, are not measured again.
    """

    bundle: str = option(help="folder of trained stages")
    data: str = option(help="clip store whose windows are sampled")
    out: str = option("runs/steps", "folder to write to")
    student: str = option("", "bundle made of it by `drivesim distill`; none: the solvers alone")
    stage: str = option("keyframes", f"one of {', '.join(STEPS)}")
    split: str = option("val", "of the store")
    windows: int = option(24, "how many")
    samplers: list[str] = option(list(SAMPLERS), "solvers of the bundle")
    steps: list[int] = option([2, 4, 8, 16, 50], "of the bundle; the most of them by ddim is what others are held to")
    student_steps: list[int] = option([1, 2, 4], "of the student")
    seed: int = option(0, "of windows and noise")


@dataclass(frozen=True)
class Row:
    """What one setting made.

    weights  the first digits of the SHA-256 of the stage's
    seconds  of the CPU to denoise a window; share of them: in terms of the most steps of DDIM
    apart    root mean square of the difference from the latents (of the upsampler: pixels) that the most steps of DDIM
             make of the same noise
    """

    who: str
    weights: str
    sampler: str
    steps: int
    seconds: float
    share: float
    apart: float
    fd_transnetv2: float
    fd_efficientnet_lite0: float


def main(argv: Sequence[str]) -> None:
    options = parse(StepsBenchmark, argv, "python -m benchmarks.steps")
    check(options)
    print(f"steps: {describe()}", file=sys.stderr)
    teacher = Bundle(Path(options.bundle)).require()
    bench = Bench(options, Workspace(described(teacher), ClipStore(options.data), teacher, options.seed))
    rows = bench.run()
    print(table(rows))
    draw(rows, Path(options.out) / "curves.png")


def check(options: StepsBenchmark) -> None:
    """raises UserError for options that make no sense"""
    if options.stage not in STEPS:
        raise UserError(f"stage={options.stage}, expected one of {', '.join(STEPS)}")
    if "ddim" not in options.samplers or not options.steps:
        raise UserError("samplers without ddim, or no steps: its most steps are what the others are compared with")
    if options.windows < 2:
        raise UserError(f"windows={options.windows}, a distance needs 2 or more")


class Bench:
    """The held-out windows, and what is made of them."""

    def __init__(self, options: StepsBenchmark, work: Workspace) -> None:
        self.options, self.work = options, work
        self.upsampler = options.stage == "upsample_temporal"
        reader = work.patches() if self.upsampler else work.frames
        data = WindowDataset(work.store, reader, options.split, work.specs[options.stage], options.seed)
        items = [data[i] for i in range(options.windows)]
        self.batches = [collate(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
        self.real = features(torch.cat([batch.x for batch in self.batches]))

    def run(self) -> list[Row]:
        """All settings, those that an earlier run left in OUT as they are."""
        options, rows = self.options, self.kept()
        todo = [("bundle", sampler, steps) for sampler in options.samplers for steps in options.steps]
        todo += [("student", "ddim", steps) for steps in options.student_steps if options.student]
        todo.sort(key=lambda one: one != ("bundle", "ddim", max(options.steps)))  # others are compared with it
        for who, sampler, steps in tqdm(todo, desc="steps", unit="setting", file=sys.stderr):
            bundle = Bundle(Path(options.bundle if who == "bundle" else options.student)).require()
            weights = bundle.sha(options.stage)[:DIGITS]
            if any((row.weights, row.sampler, row.steps) == (weights, sampler, steps) for row in rows):
                continue
            made, seconds = self.sampled(bundle, sampler, steps)
            if not rows:
                with atomic_path(self.reference) as path:
                    save_file({"made": made}, path)
            share = seconds / rows[0].seconds if rows else 1.0
            apart = float((made - load_file(self.reference)["made"]).square().mean().sqrt())
            rows.append(Row(who, weights, sampler, steps, seconds, share, apart, **self.distances(made)))
            self.keep(rows)
        return rows

    @property
    def reference(self) -> Path:
        """What the most steps of DDIM made."""
        return Path(self.options.out) / "reference.safetensors"

    @property
    def identity(self) -> dict[str, Any]:
        """What all rows of a folder have in common."""
        shared = {name: getattr(self.options, name) for name in ("data", "stage", "split", "windows", "seed")}
        return shared | {"bundle": self.work.bundle.sha(self.options.stage), "most": max(self.options.steps)}

    def keep(self, rows: Sequence[Row]) -> None:
        with atomic_path(Path(self.options.out) / "results.json") as path:
            found = {"machine": describe(), "of": self.identity, "rows": [asdict(row) for row in rows]}
            path.write_text(json.dumps(found, indent=1))

    def kept(self) -> list[Row]:
        """raises UserError if OUT holds what was measured otherwise"""
        path = Path(self.options.out) / "results.json"
        if not path.exists():
            return []
        found = json.loads(path.read_text())
        if changed := [name for name, value in self.identity.items() if found["of"].get(name) != value]:
            raise UserError(f"{path} was measured with another {', '.join(changed)}; choose another out=")
        return [Row(**row) for row in found["rows"]]

    def sampled(self, bundle: Bundle, sampler: str, steps: int) -> tuple[Tensor, float]:
        """Windows made, latents or pixels [N, T, ...], and the seconds that one took."""
        stage = self.options.stage
        chosen: dict[str, Any] = {"sampler": sampler, STEPS[stage]: steps}
        usual = replace(bundle.sampler(SamplerConfig), **chosen).of(stage)
        denoiser = load_denoiser(bundle, stage).carry_by(self.work.autoencoder)
        made, taken = [], 0.0
        for number, batch in enumerate(self.batches):
            began = time.process_time()
            made.append(self.upsampled(denoiser, batch, usual, number) if self.upsampler
                        else self.filled(denoiser, batch, usual, steps, number))  # fmt: skip
            taken += time.process_time() - began
        return torch.cat(made), taken / self.options.windows

    def filled(self, denoiser: Denoiser, batch: Batch, config: SamplerConfig, steps: int, number: int) -> Tensor:
        """Latents of a batch whose first frames, or ends, are known."""
        x = torch.stack([self.work.encode(frames) for frames in batch.x])
        if self.options.stage == "interpolate":
            config = config.between()
            known: Known = self.work.experiment.interpolate.known(batch.level)
        else:
            known = self.work.experiment.predict.known(torch.ones(len(x), dtype=torch.long))
        noise = window_noise(tuple(x.shape), self.options.seed, number)
        schedule = self.work.experiment.schedule
        return sample_window(denoiser, schedule, batch.layout, x, known, noise, steps, config, guidance=True).cpu()

    def upsampled(self, denoiser: Denoiser, batch: Batch, config: SamplerConfig, number: int) -> Tensor:
        """Patches from low-resolution ones."""
        task = self.work.experiment.upsample
        low = task.shrink(batch.x)
        noise = upsampling_noise(denoiser, task, tuple(low.shape), self.options.seed, number)
        schedule = self.work.bundle.value("upsample", "schedule", type(self.work.experiment.schedule))
        return sample_upsampled(denoiser, schedule, task, low, *noise, config).cpu()

    def distances(self, made: Tensor) -> dict[str, float]:
        """To the real windows."""
        pixels = made if self.upsampler else torch.stack([self.work.decode(latents) for latents in made])
        found = features(pixels)
        return {name: frechet(found[name], self.real[name]) for name in DISTANCES}


def features(windows: Tensor) -> dict[str, np.ndarray]:
    """Of windows [N, T, 3, H, W] in [-1, 1]: rows of clips, and of their frames."""
    clips = [to_uint8(window).permute(0, 2, 3, 1).contiguous().cpu().numpy() for window in windows]
    looks = np.concatenate([frame_features(clip) for clip in clips])
    return dict(zip(DISTANCES, (np.stack([clip_features(clip) for clip in clips]), looks), strict=True))


def table(rows: Sequence[Row]) -> str:
    lines = ["who      sampler  steps  s/window  of DDIM's  apart   fd_transnetv2  fd_efficientnet_lite0"]
    lines += [
        f"{r.who:8} {r.sampler:8} {r.steps:5d}  {r.seconds:8.2f}  {r.share:9.3f}  {r.apart:6.4f}  "
        f"{r.fd_transnetv2:13.3f}  {r.fd_efficientnet_lite0:21.2f}"
        for r in rows
    ]
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Distances against steps, a line a solver."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    panels: Any = figure.subplots(1, len(DISTANCES) + 1)
    for panel, what in zip(panels, (*DISTANCES, "apart"), strict=True):
        for who, weights, sampler in dict.fromkeys((row.who, row.weights, row.sampler) for row in rows):
            mine = [row for row in rows if (row.weights, row.sampler) == (weights, sampler)]
            line, student = sorted((row.steps, getattr(row, what)) for row in mine), who == "student"
            panel.plot(*zip(*line, strict=True), marker="o", linewidth=2.5 if student else 1.2,
                       label=f"distilled {weights}" if student else sampler)  # fmt: skip
        panel.set(xlabel="steps", ylabel=what, xscale="log")
        ticks = sorted({row.steps for row in rows})
        panel.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        panel.minorticks_off()
    panels[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)


if __name__ == "__main__":
    start(main, "benchmarks.steps")
