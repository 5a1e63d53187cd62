"""What the tests of training and generation share: one thread, and small stores of textured drives with a car."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_prep.source import Box, Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.data.store import ClipStore

HEIGHT, WIDTH = 64, 128


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny operations on a busy machine wait for their slowest thread."""
    torch.set_num_threads(1)


def drive(seed: int, count: int, boxes: bool) -> Iterator[Frame]:
    """`count` frames of a texture that drifts left, and a blue car that grows and drives right."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(40, 216, (HEIGHT // 8, 2 * WIDTH // 8, 3), np.uint8)
    texture = cv2.resize(noise, (2 * WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for t in range(count):
        image = np.roll(texture, -t, 1)[:, :WIDTH].copy()
        side, x = 12 + t // 8, min(20 + t, WIDTH - 30)
        image[30 : 30 + side, x : x + side] = (30, 60, 200)
        corners = (x / WIDTH, 30 / HEIGHT, (x + side) / WIDTH, (30 + side) / HEIGHT)
        labels = {"night": float(seed % 2), "vehicles": 1.0} if boxes else {}
        yield Frame(image, [Box(1, "car", corners, visibility=1.0)] if boxes else [], **labels)


@pytest.fixture(scope="session")
def make_store() -> Callable[..., ClipStore]:
    """make_store(root, [(split, frames, fps), ...], boxes=True): clips c0, c1, ... in this order."""

    def make(root: Path, clips: list[tuple[str, int, float]], boxes: bool = True) -> ClipStore:
        for i, (split, frames, fps) in enumerate(clips):
            clip = RawClip(f"c{i}", f"r{i}", fps, "test", "CC0-1.0", boxes, drive(i, frames, boxes))
            write_clip(root, clip, split)
        merge(root, {"source": "test"})
        return ClipStore(root)

    return make


@pytest.fixture(scope="session")
def small_store(make_store, tmp_path_factory) -> ClipStore:
    """Two full-rate and one sparse training clip, one of each held out."""
    clips = [("train", 36, 30), ("train", 44, 30), ("train", 6, 1.875), ("val", 36, 30), ("val", 4, 1.875)]
    return make_store(tmp_path_factory.mktemp("store"), clips)
