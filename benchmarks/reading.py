"""How fast random training windows are read, ours against the ways people have: `python -m benchmarks.reading`.

The same pictures lie in a file as a camera writes it and in stores that `drivesim prepare` made of that file. All
readers give the same windows, one after the other in one process on one core: uint8 RGB, cropped and resized alike.
"""

import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import Colorspace
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from benchmarks import start
from benchmarks.measure import in_turns
from data_prep.prepare import main as prepare
from drivesim.config import option, parse
from drivesim.data.cache import FrameCache, LatentCache
from drivesim.data.store import ClipStore
from drivesim.data.video import fit, iterate, read_window
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.machine import describe

FRAMES, SIZE = 16, (256, 512)  # of a window: frames, (height, width) pixels
FPS, CAMERA_SIZE = 30, (720, 1280)
# What x264 makes of a recording if nothing else is said, and close to what dash cameras do: long groups, B-frames.
CAMERA = {"preset": "medium", "crf": "20", "g": "250", "bf": "3", "x264-params": "scenecut=0", "threads": "1"}
FACTOR, CHANNELS = 8, 4  # of the latents, as of most autoencoders
OURS = "drivesim, store of 256x512"


@dataclass
class ReadingBenchmark:
    """Measure windows of 16x256x512 a second: from our stores and latents, and from the original file by others.

    OpenCV comes with drivesim; decord is measured where it is installed (pip install decord).
    """

    store: str = option(help="clip store (folder or URL) whose pictures are used")
    seconds: int = option(40, "length of the original, seconds; the store's clips are repeated to fill it")
    rounds: int = option(10, "times that every reader takes its turn")
    windows: int = option(4, "windows that a reader reads in a turn; of latents, fifty times as many")
    seed: int = option(0, "decides which windows are read")
    out: str | None = option(None, "folder for the original and the stores, to use again; else they are removed")


@dataclass(frozen=True)
class Moment:
    """A window: frame `start` of a clip, which is frame `at` of the original."""

    clip: str
    start: int
    at: int


Read = Callable[[Moment], np.ndarray | Tensor]


def main(argv: Sequence[str]) -> None:
    options = parse(ReadingBenchmark, argv, "python -m benchmarks.reading")
    if options.seconds < 2 or min(options.rounds, options.windows) < 1:
        found = f"seconds={options.seconds}, rounds={options.rounds}, windows={options.windows}"
        raise UserError(f"{found}; expected at least 2, 1 and 1")
    with nullcontext(options.out) if options.out else TemporaryDirectory() as folder:
        original = Path(folder) / "camera" / f"drive_{options.seconds}s.mp4"
        if not original.exists():
            record(ClipStore(options.store), original, options.seconds)
        stores = {size: prepared(original, Path(folder), size) for size in (SIZE, (512, 1024))}
        print(f"machine: {describe()}, one core")
        print(f"original: {original.stat().st_size / 1e6:.1f} MB")
        for (height, width), store in stores.items():
            print(f"store of {height}x{width}: {store.index['bytes'].sum() / 1e6:.1f} MB")
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        print(table(measure(readers(original, stores), stores[SIZE], options)))


def record(store: ClipStore, path: Path, seconds: int) -> None:
    """Encode the pictures of a store as a camera would."""
    pictures = (picture for clip in cycle(store.clips()) for picture in iterate(store.video(clip), FPS, CAMERA_SIZE))
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=CAMERA)
        stream.height, stream.width, stream.pix_fmt = *CAMERA_SIZE, "yuv420p"
        stream.codec_context.colorspace = Colorspace.ITU709
        for picture in tqdm(islice(pictures, seconds * FPS), "original", seconds * FPS, unit="frame"):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())


def prepared(original: Path, folder: Path, size: tuple[int, int]) -> ClipStore:
    """The store of an original, at its own rate and without leaving out a frame."""
    out = folder / f"store_{size[0]}x{size[1]}"
    words = [f"videos.height={size[0]}", f"videos.width={size[1]}", f"videos.fps={FPS}", "videos.min_seconds=0.01"]
    with redirect_stdout(sys.stderr):
        prepare(["source=videos", f"root={original.parent}", f"out={out}", "workers=1", *words])
    return ClipStore(out)


def readers(original: Path, stores: dict[tuple[int, int], ClipStore]) -> dict[str, Read]:
    """What is measured, ours first. Those of the original hold it open, which spares them opening it each time."""
    working, full = stores[SIZE], stores[512, 1024]
    found: dict[str, Read] = {
        OURS: lambda moment: read_window(working.video(moment.clip), moment.start, FRAMES),
        "drivesim, store of 512x1024": lambda moment: resized(
            read_window(full.video(moment.clip), moment.start, FRAMES)
        ),
        "drivesim, latent cache": latents(working),
        "OpenCV, original": opencv(original),
    }
    try:
        found["decord, original"] = decord(original)
    except ImportError:
        print("decord is not installed, so it is not measured")
    return found


def resized(pictures: np.ndarray) -> np.ndarray:
    return np.stack([fit(picture, SIZE) for picture in pictures])


def latents(store: ClipStore) -> Read:
    """Windows of cached latents. What they hold costs no time to read, so means of the pictures stand for them."""

    def encode(video: Tensor) -> Tensor:
        means = adaptive_avg_pool2d(video, (SIZE[0] // FACTOR, SIZE[1] // FACTOR))
        return torch.cat([means, means[:, : CHANNELS - 3]], 1)

    cache = LatentCache(store, "benchmark").build(FrameCache(store, *SIZE).build(1), encode)
    return lambda moment: cache.window(moment.clip, moment.start, FRAMES, 1)


def opencv(path: Path) -> Read:
    """Seek, then read frame after frame."""
    video = cv2.VideoCapture(str(path))

    def read(moment: Moment) -> np.ndarray:
        video.set(cv2.CAP_PROP_POS_FRAMES, moment.at)
        return resized(np.stack([cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB) for _ in range(FRAMES)]))

    return read


def decord(path: Path) -> Read:
    """Random access, resized by its own filter while decoding, which is faster than to do it after."""
    from decord import VideoReader

    width, height = SIZE[1], round(CAMERA_SIZE[0] * SIZE[1] / CAMERA_SIZE[1])
    video = VideoReader(str(path), width=width, height=height, num_threads=1)
    return lambda moment: resized(video.get_batch(range(moment.at, moment.at + FRAMES)).asnumpy())


def moments(store: ClipStore, seed: int) -> Iterator[Moment]:
    """Random windows, every one that lies within a clip equally likely."""
    counts = store.index["frames"].to_numpy()
    begins = np.cumsum(counts) - counts
    starts = np.maximum(counts - FRAMES + 1, 0)
    rng = np.random.default_rng(seed)
    while True:
        clip = rng.choice(len(counts), p=starts / starts.sum())
        first = int(rng.integers(starts[clip]))
        yield Moment(store.index.index[clip], first, int(begins[clip]) + first)


def measure(readers: dict[str, Read], store: ClipStore, options: ReadingBenchmark) -> dict[str, list[float]]:
    """Seconds a window, of each reader in each round. raises UserError if two readers do not show the same"""
    check(readers, next(moments(store, options.seed)))
    counts = {name: options.windows * (50 if "latent" in name else 1) for name in readers}

    def turn(name: str) -> Callable[[], None]:
        drawn = moments(store, options.seed)  # the same for every reader

        def read() -> None:
            for moment in islice(drawn, counts[name]):
                readers[name](moment)

        return read

    with tqdm(total=options.rounds, desc="rounds") as bar:
        seconds = in_turns([turn(name) for name in readers], options.rounds, bar.update)
    return {name: [s / counts[name] for s in taken] for name, taken in zip(readers, seconds, strict=True)}


def check(readers: dict[str, Read], moment: Moment) -> None:
    shown = {name: read(moment) for name, read in readers.items() if "latent" not in name}
    for name, pictures in shown.items():
        difference = np.abs(np.asarray(pictures, float) - np.asarray(shown[OURS], float)).mean()
        print(f"{name}: mean difference from the first {difference:.1f} levels")
        if difference > 8:
            raise UserError(f"{name} shows other pictures than {OURS}; the comparison would mean nothing")


def table(seconds: dict[str, list[float]]) -> str:
    """Windows a second, how many times as long as ours the others take, and each round of that."""
    lines = [f"\n{'':<28}{'windows/s':>10}{'ms':>9}{'time / ours':>13}  each round"]
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds[OURS], strict=True)]
        middle = statistics.median(taken)
        shown = " ".join(f"{ratio:.3g}" for ratio in ratios)
        lines.append(f"{name:<28}{1 / middle:>10.1f}{1e3 * middle:>9.2f}{statistics.median(ratios):>13.3g}  {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    start(main, "benchmarks.reading")
