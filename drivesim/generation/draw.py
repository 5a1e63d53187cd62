"""Pictures for people: boxes and labels drawn onto a frame, and frames laid out as a contact sheet."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path

import cv2
import numpy as np

from drivesim.clip import CLASSES, NO_BOX, NO_WEATHER, Layout
from drivesim.data.schema import WEATHERS
from drivesim.files import atomic_path

# Okabe & Ito's palette (2008), told apart by colour-blind eyes too; RGB, one a class.
COLOURS = ((230, 159, 0), (0, 158, 115), (86, 180, 233), (204, 121, 167), (240, 228, 66))
INK, PAPER = (20, 20, 20), (245, 245, 245)
FONT = cv2.FONT_HERSHEY_SIMPLEX
CAPITAL_PX, GLYPH_PX = 21, 28  # height of FONT at scale 1, without and with what hangs below the line
GAP_PX = 4


def draw_layout(frame: np.ndarray, layout: Layout, note: str = "") -> np.ndarray:
    """A copy of `frame` with its boxes in class colours, named by class and track, and a line of labels on top.

    frame   [H, W, 3] uint8 RGB
    layout  of this frame: no leading dimensions
    note    more words for the line of labels
    """
    there = layout.classes != NO_BOX
    kinds, tracks = layout.classes[there].tolist(), layout.tracks[there].tolist()
    words = [f"{CLASSES[kind]} {track}" for kind, track in zip(kinds, tracks, strict=True)]
    picture = draw_boxes(frame, layout.boxes[there].numpy(), kinds, words)
    if caption := ", ".join(filter(None, [describe(layout), note])):
        _label(picture, caption, 0, 0, PAPER)
    return picture


def draw_boxes(frame: np.ndarray, boxes: np.ndarray, kinds: Sequence[int], words: Sequence[str]) -> np.ndarray:
    """A copy of `frame` [H, W, 3] uint8 RGB with boxes [n, 4] (fractions) in the colours of their classes `kinds`,
    indices into CLASSES, each with its words on a plate."""
    picture = np.ascontiguousarray(frame).copy()
    height, width = picture.shape[:2]
    line = max(1, round(height / 256))
    for box, kind, text in zip(boxes, kinds, words, strict=True):
        x1, y1, x2, y2 = (box * (width - 1, height - 1, width - 1, height - 1)).round().astype(int).tolist()
        cv2.rectangle(picture, (x1, y1), (x2, y2), COLOURS[kind], line)
        _label(picture, text, x1, y1, COLOURS[kind])
    return picture


def describe(layout: Layout) -> str:
    """What the labels of one frame say: "night 0.80, 5 vehicles, boxes unknown"; what is not known is left out."""
    night, vehicles = float(layout.night), float(layout.crowdedness)
    words = [] if isnan(night) else [f"night {night:.2f}"]
    words += [] if isnan(vehicles) else [f"{vehicles:.0f} vehicles"]
    words += [] if layout.weather == NO_WEATHER else [WEATHERS[int(layout.weather)]]
    return ", ".join(words + ([] if layout.known else ["boxes unknown"]))


def contact_sheet(frames: Sequence[np.ndarray], columns: int, captions: Sequence[str] = ()) -> np.ndarray:
    """Frames row by row on one sheet, each with its caption below; uint8 RGB [H', W', 3].

    frames    n x [H, W, 3] uint8 RGB of one size; several videos are their frames one after the other, a row each
    captions  n lines, or none; a line too long for its frame is made smaller
    raises    ValueError for no frames, unequal sizes, or a number of captions that is neither 0 nor n
    """
    if not frames or columns < 1 or len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"{len(frames)} frames of shapes { ({f.shape for f in frames}) }; expected some of one size")
    if captions and len(captions) != len(frames):
        raise ValueError(f"{len(captions)} captions for {len(frames)} frames; give one each, or none")
    height, width = frames[0].shape[:2]
    strip = max(12, height // 10) if captions else 0
    step_y, step_x = height + strip + GAP_PX, width + GAP_PX
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * step_y + GAP_PX, columns * step_x + GAP_PX, 3), PAPER, np.uint8)
    for i, frame in enumerate(frames):
        y, x = GAP_PX + i // columns * step_y, GAP_PX + i % columns * step_x
        sheet[y : y + height, x : x + width] = frame
        if captions:
            _text(sheet[y + height : y + height + strip, x : x + width], captions[i])
    return sheet


def save_png(picture: np.ndarray, path: Path | str) -> Path:
    """Write [H, W, 3] uint8 RGB as PNG. raises UserError when the disk is full"""
    path = Path(path)
    encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
    return path


def _label(picture: np.ndarray, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """`text` on a plate of `colour`, above the point (x, y) if there is room and moved to lie within the picture."""
    height, width = picture.shape[:2]
    plate_h = min(max(10, height // 24), height)
    scale = (plate_h - 4) / GLYPH_PX
    plate_w = min(cv2.getTextSize(text, FONT, scale, 1)[0][0] + 4, width)
    x, y = min(max(x, 0), width - plate_w), max(y - plate_h, 0)
    plate = picture[y : y + plate_h, x : x + plate_w]
    plate[:] = colour
    _text(plate, text)


def _text(area: np.ndarray, text: str) -> None:
    """Write `text` into `area` ([h, w, 3], changed in place), as large as fits."""
    height, width = area.shape[:2]
    scale = (height - 4) / GLYPH_PX
    scale *= min(1.0, (width - 4) / max(1, cv2.getTextSize(text, FONT, scale, 1)[0][0]))
    canvas = np.ascontiguousarray(area)
    cv2.putText(
        canvas,
        text,
        (2, (height - round(scale * GLYPH_PX)) // 2 + round(scale * CAPITAL_PX)),
        FONT,
        scale,
        INK,
        1,
        cv2.LINE_AA,
    )
    area[:] = canvas
