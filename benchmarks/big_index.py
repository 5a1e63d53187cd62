"""What a store of a million clips costs before and while it is trained from: `python -m benchmarks.big_index`."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import start
from data_prep.writer import group_rows
from drivesim.clip import CLASSES
from drivesim.config import option, parse
from drivesim.data.loader import WindowLoader
from drivesim.data.schema import SCHEMA, TABLES, WEATHERS
from drivesim.data.store import ClipStore
from drivesim.data.tables import completed
from drivesim.data.windows import WindowDataset, WindowSpec
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.machine import describe

FPS = 7.5
SPECS = [WindowSpec(4, FPS / 2, level=0), WindowSpec(4, FPS, level=1)]  # as the interpolation has
PORTION = 50_000  # clips made at once
SHARD_CLIPS, CLIP_BYTES = 500, 1_000_000
Result = dict[str, float]


@dataclass
class IndexBenchmark:
    """Write the tables of a store without videos, then measure a query, the start of training and random windows, each
    in a process of its own. The windows' pictures are zeros: what is measured is the tables."""

    clips: int = option(1_000_000, "clips of the store")
    frames: int = option(12, "frames a clip")
    boxes: int = option(6, "boxes a clip")
    where: str = option("night and cars > 5 and speed > 10", "the condition of the query")
    windows: int = option(2000, "random windows that are read")
    balance: str = option("class:pedestrian", "tag that the balanced start balances by")
    store: str | None = option(None, "keep the store in this folder, and use what is there")
    seed: int = option(0, "seed of tables and windows")
    out: str | None = option(None, "write the results to this JSON file too")


def main(argv: Sequence[str]) -> None:
    options = parse(IndexBenchmark, argv, "python -m benchmarks.big_index")
    if min(options.clips, options.windows, options.boxes) < 1 or options.frames < 8:
        raise UserError("clips, windows and boxes must be 1 or more, frames 8 or more")
    with TemporaryDirectory() as folder:
        root = Path(options.store or folder)
        if not (root / "store.json").exists():
            write_store(root, options)
        results = {"machine": describe(), "options": asdict(options), "tables_mb": sizes(root)}
        results |= {name: alone(measure, root, options) for name, measure in MEASURES.items()}
        results["query command"] = command(root, options)
    text = json.dumps(results, indent=2)
    print(text)
    if options.out:
        with atomic_path(options.out) as path:
            path.write_text(text + "\n")


def write_store(root: Path, options: IndexBenchmark) -> None:
    """Tables as `drivesim prepare` writes them, sorted and in its row groups; store.json last."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    counts = {"index": 1, "frames": options.frames, "boxes": options.boxes}
    writers = {name: pq.ParquetWriter(root / f"{name}.parquet", TABLES[name], compression="zstd") for name in counts}
    for first in tqdm(range(0, options.clips, PORTION), "tables", unit="portion"):
        clips = np.arange(first, min(first + PORTION, options.clips))
        for name, each in counts.items():
            table = PORTIONS[name](clips, options, rng)
            writers[name].write_table(table, None if name == "index" else group_rows(each * options.clips))
    for writer in writers.values():
        writer.close()
    pq.write_table(TABLES["maps"].empty_table(), root / "maps.parquet")
    (root / "store.json").write_text(json.dumps({"schema": SCHEMA, "source": "benchmark"}))


def names(clips: np.ndarray) -> list[str]:
    return [f"drive_{clip // 20:06d}_{clip:08d}" for clip in clips]


def index_rows(clips: np.ndarray, options: IndexBenchmark, rng: np.random.Generator) -> pa.Table:
    count = len(clips)
    texts = {
        "clip": names(clips),
        "route": [f"drive_{clip // 20:06d}" for clip in clips],
        "split": np.where(clips // 20 % 10 == 0, "val", "train"),
        "camera": rng.choice(["CAM_FRONT", "CAM_BACK"], count),
        "source": [f"2024/drive_{clip // 20:06d}.mp4" for clip in clips],
        "licence": np.full(count, "CC BY-NC-SA 4.0"),
        "weather": rng.choice([*WEATHERS, ""], count),
        "caption": np.full(count, ""),
        "sha256": [rng.bytes(32).hex() for _ in clips],
        "shard": [f"shards/train-{clip // SHARD_CLIPS:05d}.tar" for clip in clips],
    }
    numbers = {
        "frames": np.full(count, options.frames),
        "fps": np.full(count, FPS),
        "start_s": clips % 20 * options.frames / FPS,
        "height": np.full(count, 512),
        "width": np.full(count, 1024),
        "night": np.where(rng.random(count) < 0.1, np.nan, rng.random(count)),
        "crowdedness": rng.exponential(5, count),
        "speed_mps": np.where(rng.random(count) < 0.1, np.nan, rng.uniform(0, 30, count)),
        "has_boxes": np.full(count, True),
        "shard_at": clips % SHARD_CLIPS * CLIP_BYTES,
        "bytes": np.full(count, CLIP_BYTES),
        "frames_at": clips * options.frames,
        "boxes_at": clips * options.boxes,
        "boxes": np.full(count, options.boxes),
    }
    return typed("index", texts | numbers)


def frames_rows(clips: np.ndarray, options: IndexBenchmark, rng: np.random.Generator) -> pa.Table:
    frame = np.tile(np.arange(options.frames), len(clips))
    speed = np.repeat(rng.uniform(0, 30, len(clips)), options.frames).round(2)
    still = {name: np.zeros(len(frame)) for name in ("x_m", "z_m", "qy", "qz", "steering_rad")}
    lens = {name: np.full(len(frame), value) for name, value in dict(fx=633.0, fy=633.0, cx=512.0, cy=256.0).items()}
    half = np.full(len(frame), 0.5**0.5)  # looking along y: the camera's z axis lies along the world's y
    pose = {"y_m": speed * frame / FPS, "qw": half, "qx": -half}
    labels = {"speed_mps": speed, "night": rng.random(len(frame)), "vehicles": rng.integers(0, 12, len(frame))}
    clip = np.repeat(names(clips), options.frames)
    return typed("frames", {"clip": clip, "frame": frame, "time_s": frame / FPS, **still, **lens, **pose, **labels})


def boxes_rows(clips: np.ndarray, options: IndexBenchmark, rng: np.random.Generator) -> pa.Table:
    count = len(clips) * options.boxes
    corner, size = rng.uniform(0, 0.8, (count, 2)), rng.uniform(0.02, 0.2, (count, 2))
    corners = dict(zip(("x1", "y1", "x2", "y2"), np.hstack([corner, corner + size]).T, strict=True))
    metres = ("x_m", "y_m", "z_m", "length_m", "width_m", "height_m", "yaw")
    return typed(
        "boxes",
        {
            "clip": np.repeat(names(clips), options.boxes),
            "frame": np.sort(rng.integers(0, options.frames, (len(clips), options.boxes)), 1).ravel(),
            "track": np.tile(np.arange(options.boxes), len(clips)),
            "class": rng.choice(CLASSES, count, p=[0.8, 0.1, 0.05, 0.03, 0.02]),
            "visibility": np.ones(count),
            **corners,
            **{name: rng.uniform(0, 5, count) for name in metres},
        },
    )


PORTIONS = {"index": index_rows, "frames": frames_rows, "boxes": boxes_rows}


def typed(name: str, columns: dict) -> pa.Table:
    """A table of the store's schema from its columns; what no generated clip is told of reads as in older stores."""
    schema = TABLES[name]
    given = pa.table(
        {field.name: pa.array(columns[field.name], field.type) for field in schema if field.name in columns}
    )
    return completed(given, schema.names).select(schema.names)


def sizes(root: Path) -> dict[str, float]:
    return {name: round((root / f"{name}.parquet").stat().st_size / 1e6, 1) for name in TABLES}


class Zeros:
    """A reader that reads nothing."""

    def window(self, clip: str, start: int, count: int, stride: int, rng: np.random.Generator) -> Tensor:
        return torch.zeros(count, 4, 16, 32)


def query(root: Path, options: IndexBenchmark) -> Result:
    """The query itself: opening the store, reading the index, selecting; and once more with the index in memory."""
    store, first = ClipStore(root), Clock()
    found = len(store.query(options.where))
    told, again = first.told("query"), Clock()
    store.query(options.where)
    return {"found": found} | told | again.told("again")


def windows(root: Path, options: IndexBenchmark, balance: str = "", where: str = "") -> Result:
    """From nothing to the first batch of eight windows, and random windows after it."""
    begun = Clock()
    store = ClipStore(root).select(where)
    data = WindowDataset(store, Zeros(), "train", SPECS, options.seed, balance=balance)
    next(iter(WindowLoader(data, 8)))
    told, clock = begun.told("start"), Clock()
    for i in range(options.windows):
        data[8 + i]
    return told | {f"{name} a window": value / options.windows for name, value in clock.told("").items()}


def balanced(root: Path, options: IndexBenchmark) -> Result:
    return windows(root, options, balance=options.balance)


def selected(root: Path, options: IndexBenchmark) -> Result:
    return windows(root, options, where=options.where)


def identity(root: Path, options: IndexBenchmark) -> Result:
    """What the first checkpoint of a run costs more than the others."""
    data, clock = WindowDataset(ClipStore(root), Zeros(), "train", SPECS, options.seed), Clock()
    _ = data.identity
    return clock.told("identity")


MEASURES: dict[str, Callable[[Path, IndexBenchmark], Result]] = {
    measure.__name__: measure for measure in (query, windows, balanced, selected, identity)
}


class Clock:
    """Seconds on the clock, and of the processor, which other work on the machine lengthens less."""

    def __init__(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def told(self, name: str) -> Result:
        wall, cpu = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
        return {f"{name} s".strip(): wall, f"{name} cpu s".strip(): cpu}


def alone(measure: Callable[[Path, IndexBenchmark], Result], root: Path, options: IndexBenchmark) -> Result:
    """What a measure tells in a process of its own, and the most memory that the process had, before it and with it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        before = pool.submit(peak_mib).result()
        found = pool.submit(measure, root, options).result()
        found |= {"MiB of imports": before, "MiB at most": pool.submit(peak_mib).result()}
    return {name: round(value, 4) for name, value in found.items()}


def peak_mib() -> float:
    """Not of getrusage, where a process begins with what the one that started it had."""
    return float(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def command(root: Path, options: IndexBenchmark) -> Result:
    """`drivesim data query` as a user runs it, imports and all."""
    words = ["-m", "drivesim", "data", "query", f"store={root}", f"where={options.where}"]
    clock, before = Clock(), sum(os.times()[2:4])
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return {"s": round(clock.told("")["s"], 2), "cpu s": round(sum(os.times()[2:4]) - before, 2)}


if __name__ == "__main__":
    start(main, "benchmarks.big_index")
