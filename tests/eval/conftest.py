"""Small drives made in memory: a textured road plane that expands from the vanishing point, and cars as boxes."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.media import mp4

SIZE = (64, 128)  # height, width, pixels


def make_drive(seed: int, frames: int = 16, step: float = 1.04, size: tuple[int, int] = SIZE) -> np.ndarray:
    """[T, H, W, 3] uint8: a random texture that grows by `step` a frame, as when driving at a far wall."""
    rng = np.random.default_rng(seed)
    height, width = size
    texture = cv2.GaussianBlur(rng.integers(0, 256, (height * 2, width * 2, 3)).astype(np.float32), (0, 0), 2.5)
    texture = np.clip((texture - texture.mean()) * 5 + 110 + rng.integers(-30, 30, 3), 0, 255).astype(np.uint8)
    middle = np.array([width - 0.5, height - 0.5])
    images = []
    for t in range(frames):
        scale = step**t
        matrix = np.array([[scale, 0, width / 2 - scale * middle[0]], [0, scale, height / 2 - scale * middle[1]]])
        images.append(cv2.warpAffine(texture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT))
    return np.stack(images)


def write_clip(folder: Path, name: str, frames: np.ndarray, fps: float = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.mp4"
    path.write_bytes(mp4(frames, fps, width=frames.shape[2]))
    return path


# Fixtures instead of imports, so that the tests run under every import mode of pytest.
@pytest.fixture
def drive() -> Callable[..., np.ndarray]:
    return make_drive


@pytest.fixture
def write() -> Callable[..., Path]:
    return write_clip


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Make a folder of drives: make_folder(path, range(4), change=lambda clip: clip)."""

    def make(folder: Path, seeds, change: Callable[[np.ndarray], np.ndarray] = lambda clip: clip, **kwargs) -> Path:
        for seed in seeds:
            write_clip(folder, f"drive{seed}", change(make_drive(seed, **kwargs)))
        return folder

    return make


@pytest.fixture
def folder_of(tmp_path: Path, make_folder) -> Callable[..., Path]:
    return lambda name, seeds, **kwargs: make_folder(tmp_path / name, seeds, **kwargs)
