"""Small driving-like videos, made by PyAV, and the exit code and words of `drivesim data`."""

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from drivesim import cli

HEIGHT, WIDTH = 72, 128


def scene(seed: int, count: int) -> list[np.ndarray]:
    """`count` frames of a textured plane that comes nearer: fast, but one scene."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)
    texture = cv2.resize(noise, (4 * WIDTH, 4 * HEIGHT), interpolation=cv2.INTER_CUBIC)
    frames = []
    for number in range(count):
        zoom = np.array([[1 + number / 100, 0, 0], [0, 1 + number / 100, 0]], np.float32)
        zoom[:, 2] = (1 - zoom[0, 0]) * np.array([2 * WIDTH, 2 * HEIGHT])
        frames.append(cv2.resize(cv2.warpAffine(texture, zoom, (4 * WIDTH, 4 * HEIGHT)), (WIDTH, HEIGHT)))
    return frames


def _write(path: Path, frames: list[np.ndarray], rate: int = 15) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "14", "g": "15"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def make_video() -> Callable[..., Path]:
    """make_video(path, frames, rate=15) writes an H.264 file."""
    return _write


@pytest.fixture
def make_scene() -> Callable[[int, int], list[np.ndarray]]:
    """make_scene(seed, count) draws frames [72, 128, 3] of one scene; another seed, another scene."""
    return scene


@pytest.fixture
def data(monkeypatch, capsys):
    """data("stats", "store=...") runs the command line; returns (exit code, stdout, last line of stderr)."""
    entry = EntryPoint("data", "data_prep.inspect.command:main", "drivesim.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry])

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(["data", *words])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err.strip().rpartition("\n")[2]

    return run
