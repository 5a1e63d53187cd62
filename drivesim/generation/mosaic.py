"""Several videos beside each other in one, each under its caption."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drivesim.data import video
from drivesim.generation.draw import PAPER, contact_sheet
from drivesim.generation.writer import VideoWriter

SCREEN = (1080, 1920)  # height and width that a mosaic is to fill, pixels


def write_mosaic(
    videos: Sequence[Path], captions: Sequence[str], out: Path, overwrite: bool = False, together: int = 1
) -> Path:
    """Stream videos of one size, rate and length into one, tile by tile; one frame of each is in memory at a time.

    captions  one a video; the time is added to each
    together  videos that belong in one row: there are so many columns, or a multiple
    raises    UserError for a video that cannot be read, an existing `out` without `overwrite`, or a full disk
    """
    info = video.probe(videos[0])
    columns, size = grid(len(videos), info.height, info.width, together)
    frames = tqdm(zip(*(video.iterate(path, size=size) for path in videos), strict=True), "mosaic", info.frames)
    pictures = tiled(frames, columns, captions, info.fps)
    first = next(pictures)
    height, width = first.shape[:2]
    with VideoWriter(out, info.fps, height, width, overwrite=overwrite, keep_partial=False) as writer:
        writer.write(first)
        for picture in pictures:
            writer.write(picture)
    return out


def grid(count: int, height: int, width: int, together: int = 1) -> tuple[int, tuple[int, int]]:
    """The number of columns, a multiple of `together`, with which `count` pictures of height x width fill a screen
    best, and the (height, width) of each there, even, never more than its own."""

    def scale(columns: int) -> float:
        rows = -(-count // columns)
        return min(SCREEN[0] / (rows * height), SCREEN[1] / (columns * width))

    columns = max(range(together, count + 1, together), key=lambda n: (scale(n), -n))
    shrink = min(1.0, scale(columns))
    return columns, (max(round(height * shrink / 2), 1) * 2, max(round(width * shrink / 2), 1) * 2)


def tiled(
    frames: Iterator[tuple[np.ndarray, ...]], columns: int, captions: Sequence[str], fps: float
) -> Iterator[np.ndarray]:
    """Each moment of several videos, [H, W, 3] uint8 of one size each, as one picture of even height and width."""
    for i, moment in enumerate(frames):
        named = [f"{caption}   {i / fps:.2f} s" for caption in captions]
        sheet = contact_sheet(moment, columns, named)
        height, width = (-(-side // 2) * 2 for side in sheet.shape[:2])
        picture = np.full((height, width, 3), PAPER, np.uint8)
        picture[: sheet.shape[0], : sheet.shape[1]] = sheet
        yield picture
