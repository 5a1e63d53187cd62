"""The README's picture: a held-out drive with the asked boxes, and what a bundle made of its first frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks import start
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.generation.draw import draw_layout, save_png


@dataclass
class PictureConfig:
    """Two rows of frames at the same moments: real with boxes above, generated below."""

    store: str = option(help="clip store of the real drive")
    clip: str = option(help="its name there")
    video: str = option(help="the generated mp4")
    out: str = option("docs/pictures/demo.png", "the picture")
    times: list[float] = option([0.0, 0.27, 0.8, 1.6, 2.67, 3.73], "seconds")
    width: int = option(256, "pixels a frame")


def main(argv: Sequence[str]) -> None:
    config = parse(PictureConfig, argv, "picture")
    store, size = ClipStore(config.store), (config.width // 2, config.width)
    layout, fps = store.layout(config.clip), float(store.index.loc[config.clip].fps)
    asked = [draw_layout(frame, layout[i]) for i, frame in enumerate(iterate(store.video(config.clip)))]
    made = list(iterate(Path(config.video), fps=fps))
    rows = [[frames[min(round(t * fps), len(frames) - 1)] for t in config.times] for frames in (asked, made)]
    save_png(np.concatenate([np.concatenate([_shrunk(f, size) for f in row], 1) for row in rows], 0), config.out)


def _shrunk(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    start(main, "picture")
