"""`drivesim data view`: a clip as people see it, with what the store knows of it drawn on top."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate, read_window
from drivesim.errors import UserError
from drivesim.files import check_output
from drivesim.generation.draw import contact_sheet, draw_layout, save_png
from drivesim.generation.writer import VideoWriter

Draw = Callable[[np.ndarray, int], np.ndarray]  # (picture, frame number) -> the picture with boxes and labels


@dataclass
class ViewConfig:
    """Show a clip with its boxes, tracks, classes, labels and the speed of the camera car."""

    store: str = option(help="folder of the store, made by `drivesim prepare`")
    clip: str = option(help="name of the clip; `drivesim data query` lists them")
    out: str = option(help="a contact sheet (.png) or a video (.mp4)")
    frames: int = option(12, "frames on the sheet, evenly over the clip")
    columns: int = option(3, "frames a row of the sheet")
    width: int = option(512, "pixels a frame of the sheet is wide, at most; the video has the stored size")
    min_visibility: float = option(0.15, "leave out boxes seen less than this, as training does; 0 shows all")
    overwrite: bool = option(False, "replace a file that exists")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv` or a clip that cannot be read"""
    config = parse(ViewConfig, argv, "drivesim data view")
    video = Path(config.out).suffix.lower() == ".mp4"
    if not video and Path(config.out).suffix.lower() != ".png":
        raise UserError(f"out={config.out}, expected a name that ends in .png or .mp4")
    out = check_output(config.out, ".mp4" if video else ".png", config.overwrite)
    if min(config.frames, config.columns) < 1 or config.width < 16:
        found = f"frames={config.frames}, columns={config.columns}, width={config.width}"
        raise UserError(f"{found}; expected at least 1, 1 and 16")
    store = ClipStore(config.store)
    draw = drawing(store, store.row(config.clip).name, config.min_visibility)
    save_video(store, config.clip, draw, out) if video else save_sheet(store, config, draw, out)
    print(f"{out}: clip {config.clip}")


def drawing(store: ClipStore, clip: str, min_visibility: float) -> Draw:
    """What draws the store's knowledge of a clip. raises UserError if the tables disagree about its frames"""
    speeds = store.frames(clip)["speed_mps"].to_numpy()
    fullest = store.boxes(clip).groupby("frame").size().max() if len(store.boxes(clip)) else 1
    layout = store.layout(clip, int(fullest), min_visibility)

    def draw(picture: np.ndarray, frame: int) -> np.ndarray:
        speed = speeds[frame]
        return draw_layout(picture, layout[frame], "" if np.isnan(speed) else f"{speed:.1f} m/s")

    return draw


def save_sheet(store: ClipStore, config: ViewConfig, draw: Draw, out: Path) -> None:
    """`config.frames` frames as PNG, drawn at their final size so that labels stay legible."""
    info = store.index.loc[config.clip]
    scale = min(1.0, config.width / info.width)
    size = (max(16, round(info.height * scale)), round(info.width * scale))
    numbers = np.linspace(0, info.frames - 1, min(config.frames, info.frames)).round().astype(int).tolist()
    pictures = []
    with tqdm(numbers, "view", unit="frame") as bar:
        for number in bar:
            picture = read_window(store.video(config.clip), number, 1)[0]
            pictures.append(draw(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), number))
    captions = [f"{number / info.fps:.2f} s, frame {number}" for number in numbers]
    save_png(contact_sheet(pictures, config.columns, captions), out)


def save_video(store: ClipStore, clip: str, draw: Draw, out: Path) -> None:
    """Every frame, at the stored size and rate."""
    info = store.index.loc[clip]
    writer = VideoWriter(out, info.fps, int(info.height), int(info.width), overwrite=True, keep_partial=False)
    pictures = iterate(store.video(clip))
    with writer, tqdm(range(info.frames), "view", unit="frame") as bar:
        for number in bar:
            picture = next(pictures, None)
            if picture is None:
                found = f"{store.video(clip)} has {number} frames, the index says {info.frames}"
                raise UserError(f"{found}; see `drivesim data verify`")
            writer.write(draw(picture, number))
