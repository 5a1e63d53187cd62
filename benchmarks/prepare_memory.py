"""How much memory a preparation takes at most, for a short and a long recording.

python -m benchmarks.prepare_memory minutes=30
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from benchmarks import start
from benchmarks.kill_prepare import ROOT, workers_of
from drivesim.config import option, parse
from drivesim.errors import UserError

HEIGHT, WIDTH, FPS = 180, 320, 15
TEXTURE_PX = 12
LOOK_S = 0.05


@dataclass
class MemoryConfig:
    """Prepare a video of `short` minutes and one of `minutes`; print the peak of either process."""

    short: float = option(1.0, "length of the short video, minutes")
    minutes: float = option(30.0, "length of the long one")
    seed: int = option(0, "of the pictures")


def main(argv: Sequence[str]) -> None:
    config = parse(MemoryConfig, argv, "python -m benchmarks.prepare_memory")
    if not 0 < config.short < config.minutes:
        raise UserError(f"short={config.short:g} minutes={config.minutes:g}; expected 0 < short < minutes")
    with tempfile.TemporaryDirectory() as folder:
        short, long = (peaks(Path(folder), minutes, config.seed) for minutes in (config.short, config.minutes))
    for name in short:
        growth = 100 * (long[name] / short[name] - 1)
        told = f"{short[name]:.1f} MiB for {config.short:g} min, {long[name]:.1f} MiB for {config.minutes:g} min"
        print(f"{name}: {told} of video, {growth:+.1f} %")


def peaks(folder: Path, minutes: float, seed: int) -> dict[str, float]:
    """MiB that the command and its one worker take at most. raises UserError if the command fails"""
    write_video(folder / "input" / "drive.mp4", round(60 * minutes * FPS), seed)
    words = ["source=videos", f"root={folder / 'input'}", f"out={folder / 'store'}", "workers=1"]
    words += [f"videos.height={HEIGHT}", f"videos.width={WIDTH}", f"videos.fps={FPS}"]
    command = [sys.executable, "-c", "import sys; from data_prep.prepare import main; main(sys.argv[1:])", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    highest = {"command": 0.0, "worker": 0.0}
    while process.poll() is None:
        for name, ids in (("command", [process.pid]), ("worker", workers_of(process))):
            highest[name] = max([highest[name], *(peak_mib(pid) for pid in ids)])
        time.sleep(LOOK_S)
    if process.returncode != 0:
        raise UserError(f"the preparation ended with code {process.returncode}")
    shutil.rmtree(folder / "input")
    shutil.rmtree(folder / "store")
    return highest


def peak_mib(pid: int) -> float:
    """The most memory that a process has held so far; 0 if it has ended. Linux only."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def write_video(path: Path, count: int, seed: int) -> None:
    """`count` frames of a texture that drifts, as a camera would write them."""
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": "250"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for picture in pictures(count, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def pictures(count: int, seed: int) -> Iterator[np.ndarray]:
    noise = np.random.default_rng(seed).integers(
        0, 256, (HEIGHT // TEXTURE_PX, 2 * WIDTH // TEXTURE_PX + 1, 3), np.uint8
    )
    texture = noise.repeat(TEXTURE_PX, 0).repeat(TEXTURE_PX, 1)
    for shift in range(count):
        left = 2 * shift % WIDTH
        yield np.ascontiguousarray(texture[:, left : left + WIDTH])


if __name__ == "__main__":
    start(main, "benchmarks.prepare_memory")
