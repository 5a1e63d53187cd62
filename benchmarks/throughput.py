"""What the parts around the denoiser cost: `python -m benchmarks.throughput`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import start
from data_prep.prepare import main as prepare
from data_prep.source import Frame, RawClip, Unit
from data_prep.town.source import TownConfig, TownSource
from data_prep.town.world import World
from data_prep.writer import write_clip
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.data.windows import VideoPatches, WindowDataset, WindowSpec
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.upsample import Upsample
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.generation import cascade
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig
from drivesim.machine import describe
from drivesim.models.denoiser import DenoiserConfig

WINDOW = WindowSpec(frames=5, fps=0)  # as the town trains its decoder: five frames in a row
PORTION = 8  # frames that the upsampler makes at once


@dataclass
class ThroughputBenchmark:
    """Measure the town, window reading, the upsampler at 512x1024 and, given a bundle, every cascade stage.

    The town is measured in CPU seconds, which other work on the machine lengthens far less than the time on the clock.
    """

    seconds: float = option(10.0, "time given to the reader, seconds")
    routes: int = option(2, "full-rate town routes that are prepared, and six times as many sparse ones")
    store: str | None = option(None, "clip store to read windows from; without it a small town is prepared")
    bundle: str | None = option(None, "bundle whose cascade is measured, and its upsampler in place of random weights")
    seed: int = option(0, "seed of routes, windows and noise")
    out: str | None = option(None, "write the results to this JSON file too")


def main(argv: Sequence[str]) -> None:
    options = parse(ThroughputBenchmark, argv, "python -m benchmarks.throughput")
    if options.seconds <= 0 or options.routes < 1:
        raise UserError(f"seconds is {options.seconds:g}, routes {options.routes}; expected more than 0")
    torch.manual_seed(options.seed)
    pipeline = DrivingPipeline.from_pretrained(options.bundle) if options.bundle else None
    store = ClipStore(options.store) if options.store else None
    print(f"machine: {describe()}")
    results: dict[str, Any] = {
        "town": town(TownConfig(routes=options.routes, sparse_routes=6 * options.routes, seed=options.seed)),
        "windows/s": show("windows of 5 frames at 128x256 from the store, a second", windows(store, options)),
        "upsampler s/frame": show("upsampler, seconds a frame of 512x1024", upsampler(pipeline, options.seed)),
    }
    for name, seconds in results["town"].items():
        show(f"town, {name}: CPU seconds a frame of 512x1024", seconds)
    show("town, the whole: frames a second and core", 1 / results["town"]["prepare"])
    if pipeline is not None:
        results["cascade"] = stages(pipeline, options.seed)
        for name, seconds in results["cascade"].items():
            show(f"{name}, seconds a second of video", seconds)
    if options.out:
        with atomic_path(Path(options.out)) as path:
            path.write_text(json.dumps(results, indent=1))


def show(label: str, value: float) -> float:
    print(f"{label:<58} {value:8.3f}", flush=True)
    return value


def rate(step: Callable[[], object], seconds: float, label: str) -> float:
    """Steps a second, after one that warms up."""
    step()
    start, done = time.perf_counter(), 0
    with tqdm(desc=label, file=sys.stderr, unit="step") as bar:
        while (taken := time.perf_counter() - start) < seconds or not done:
            step()
            done += 1
            bar.update()
    return done / taken


def town(config: TownConfig) -> dict[str, float]:
    """CPU seconds a frame that the town takes: building its routes, rendering and encoding in this process, and the
    whole of `drivesim prepare` with its start and all its processes."""
    source, frames = TownSource(config), 0
    spent = dict.fromkeys(("building", "rendering", "encoding"), 0.0)

    @contextmanager
    def counted(part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        spent[part] += time.process_time() - start

    def rendered(unit: Unit, fps: float) -> Iterator[Frame]:
        setting = source.setting(unit)
        with counted("building"):
            world = World(setting)
        for index in range(round(setting.seconds * fps)):
            with counted("rendering"):
                frame = world.frame(index / fps)
            yield frame

    with TemporaryDirectory() as folder:
        for unit in tqdm(source.units(), "town", file=sys.stderr, unit="route"):
            (clip,) = source.clips(unit)
            assert isinstance(clip, RawClip)
            begun, before = time.process_time(), sum(spent.values())
            row = write_clip(Path(folder), replace(clip, frames=rendered(unit, clip.fps)), "train")
            spent["encoding"] += time.process_time() - begun - (sum(spent.values()) - before)
            frames += row["frames"]
    whole = prepare_seconds(config)
    return {part: seconds / frames for part, seconds in [*spent.items(), ("prepare", whole)]}


def prepare_seconds(config: TownConfig) -> float:
    """CPU seconds of `drivesim prepare source=town` and every process that it starts."""
    start = sum(os.times()[2:4])
    with TemporaryDirectory() as folder:
        options = [f"town.{name}={value}" for name, value in asdict(config).items()]
        command = [sys.executable, "-m", "drivesim", "prepare", "source=town", f"out={folder}/store", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sum(os.times()[2:4]) - start


def windows(store: ClipStore | None, options: ThroughputBenchmark) -> float:
    """Random training windows a second, decoded from the stored video by one process."""
    if store is not None:
        return read(store, options)
    with TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        prepare(["source=town", f"out={root}", "town.routes=4", "town.sparse_routes=0", "town.seconds=1", "workers=1"])
        return read(ClipStore(root), options)


def read(store: ClipStore, options: ThroughputBenchmark) -> float:
    dataset = WindowDataset(store, VideoPatches(store, 128, 256), "train", [WINDOW], options.seed)
    index = count()
    return rate(lambda: dataset[next(index)], options.seconds, "windows")


def upsampler(pipeline: DrivingPipeline | None, seed: int) -> float:
    """Seconds a frame from 128x256 to 512x1024, a bundle's upsampler or one of the town's size with random weights."""
    task = pipeline.upsample if pipeline else Upsample()
    network = pipeline.upsampler if pipeline else None
    if network is None:
        widths = DenoiserConfig(task.channels, task.planes, [64, 96, 128], [1, 1, 1], [False] * 3, token_dim=0)
        network = widths.build().inflate(0)
    schedule = pipeline.schedule if pipeline else ScheduleConfig()
    low = pictures(3, 512 // task.factor, 1024 // task.factor)
    made = cascade.upsample(network, schedule, task, low, seed, SamplerConfig())
    return per_frame(made, PORTION, PORTION, "upsampler")


def stages(pipeline: DrivingPipeline, seed: int) -> dict[str, float]:
    """Seconds that each stage of the cascade before the upsampler takes for a second of video, on random latents.

    A stage works in windows: the first warms up, and whole windows are timed, so nothing made ahead is counted.
    """
    ae, spacing, task = pipeline.autoencoder.config, pipeline.spacing, pipeline.interpolate
    shape = ae.channels, pipeline.low_height // ae.factor, pipeline.low_width // ae.factor
    at, schedule, config = pipeline.layout_at(None), pipeline.schedule, pipeline.config

    def interpolated(level: int) -> Iterator[Tensor]:
        return cascade.interpolate(
            pipeline.interpolator,
            schedule,
            task,
            pictures(*shape),
            at,
            spacing // task.factor**level,
            level,
            seed,
            config,
        )

    start, keys = next(pictures(*shape))[None], pipeline.predict.frames
    made = cascade.keyframes(pipeline.keyframes, schedule, pipeline.predict, start, at, spacing, seed, config)
    pairs = 4 * task.factor  # that many frames come of one batch of pairs
    decoded = cascade.decode(pipeline.autoencoder, pictures(*shape))
    second = pipeline.fps
    return {
        "keyframes": per_frame(made, keys, keys - 2, "keyframes") * second / spacing,
        "interpolation, coarse": per_frame(interpolated(0), 1 + pairs, pairs, "coarse") * second / task.factor,
        "interpolation, fine": per_frame(interpolated(1), 1 + pairs, pairs, "fine") * second,
        "decoder": per_frame(decoded, 8, 24, "decoder") * second,  # windows bring 8 frames, or 6 where they overlap
    }


def pictures(*shape: int) -> Iterator[Tensor]:
    """Endless random pictures or latents, normal, within what pixels may hold."""
    while True:
        yield torch.randn(shape).clamp(-1, 1)


def per_frame(frames: Iterator[Tensor], warm: int, timed: int, label: str) -> float:
    """Seconds a frame of the `timed` frames that come after `warm` others."""
    bar = tqdm(total=warm + timed, desc=label, file=sys.stderr, unit="frame")
    for _ in islice(frames, warm):
        bar.update()
    start = time.perf_counter()
    for _ in islice(frames, timed):
        bar.update()
    taken = time.perf_counter() - start
    bar.close()
    return taken / timed


if __name__ == "__main__":
    start(main, "benchmarks.throughput")
