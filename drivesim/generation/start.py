"""The start of a video: a picture, or the end of a video or of a stored clip to go on from, at the pipeline's size."""

import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from drivesim.clip import from_uint8
from drivesim.data import video
from drivesim.data.store import ClipStore, is_store
from drivesim.errors import UserError

# Formats by name: Pillow would otherwise also "open" MPEG, PDF and EPS files, which it cannot draw.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
MAX_PIXELS = 100_000_000  # a 100-megapixel camera; a small file can claim far more and fill the memory
SMALL_PIXELS = 64
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)  # what Pillow raises on a damaged file


def load_start(
    path: Path | str, height: int, width: int, key_fps: float, start_time: float | None = None
) -> Tensor | None:
    """The context frames a rollout starts from, [S, 3, height, width] in [-1, 1]; None for "none".

    A picture gives S = 1. A video gives the frame at `start_time` (seconds; its last frame by default) and, if the
    video reaches that far back, the frame 1/key_fps seconds earlier before it: S = 2, so that motion goes on.
    Another aspect is cropped about the centre, then resized; a line on stderr says so when it is off by over 1 %.
    raises  UserError for what is missing, unreadable, too large, or a time outside the video
    """
    pictures = read_start(path, start_time, 1 / key_fps)
    if not pictures:
        return None
    _tell(path, pictures[-1], height, width)
    return torch.stack([_fit(picture, height, width) for picture in pictures])


def read_start(path: Path | str, start_time: float | None = None, spacing_s: float | None = None) -> list[Image.Image]:
    """The RGB pictures at `path` in their own size, earliest first: none for "none", else one or two (`load_start`).

    Without `spacing_s` only the last one is read, which is enough to tell a good input from a bad one.
    """
    if str(path) == "none":
        return []
    stored = _stored(str(path))
    if stored is not None:
        return _video(stored, start_time, spacing_s)
    path = Path(path)
    if not path.exists():
        raise UserError(f"start {path} does not exist; give a picture, a video, STORE:CLIP, or none")
    if not path.is_file():
        raise UserError(f"start {path} is a folder; give one picture or video file, or none")
    picture = _picture(path)
    if picture is None:
        if path.suffix.lower() not in video.SUFFIXES:
            known = ", ".join((*SUFFIXES, *video.SUFFIXES))
            raise UserError(f"start {path} is neither a picture nor a video; known: {known}")
        return _video(path, start_time, spacing_s)
    if start_time is not None:
        raise UserError(f"start_time={start_time} chooses a moment of a video, but start {path} is a picture")
    return [picture]


def _picture(path: Path) -> Image.Image | None:
    """The picture in `path` as RGB, turned upright as its EXIF says; None if the file is of no picture format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter
            image = Image.open(path, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
        return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        limit = f"{MAX_PIXELS / 1e6:.0f} megapixels"
        raise UserError(f"start {path} is too large ({error}); the limit is {limit}, save it smaller") from error
    except Image.UnidentifiedImageError as error:
        if path.suffix.lower() in SUFFIXES:
            raise UserError(f"start {path} is named like a picture but holds none; save it as PNG or JPEG") from error
        return None
    except PermissionError as error:
        raise UserError(f"start {path} may not be read (permission denied)") from error
    except BROKEN as error:
        raise UserError(f"start {path} is a damaged picture ({error}); save it again") from error


def _stored(spec: str) -> video.ClipFile | None:
    """The video of STORE:CLIP, or None if no store is there. raises UserError if it has no such clip"""
    root, _, clip = spec.rpartition(":")
    return ClipStore(root).video(clip) if "://" in root or (root and is_store(root)) else None


def _video(path: video.Source, start_time: float | None, spacing_s: float | None) -> list[Image.Image]:
    """One picture of the video in `path`, or two that are `spacing_s` apart, the last at `start_time` or the end."""
    info = video.probe(path)
    last = max(0.0, info.duration_s - 1 / info.fps) if info.fps else 0.0
    if start_time is not None and not 0 <= start_time < info.duration_s:
        raise UserError(f"start_time={start_time:g} lies outside {path}; choose a time from 0 to {last:.2f} s")
    time = last if start_time is None else min(start_time, last)
    earlier = [] if spacing_s is None or time < spacing_s else [time - spacing_s]
    return [_frame_at(path, moment, info.fps) for moment in (*earlier, time)]


def _frame_at(path: video.Source, time_s: float, fps: float) -> Image.Image:
    frame = next(video.iterate(path, fps=fps or 1.0, start=time_s), None)
    if frame is None:
        raise UserError(f"start {path} does not decode at {time_s:.2f} s; choose an earlier start_time or re-encode it")
    return Image.fromarray(frame)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB: 16-bit greys are scaled, palettes looked up, transparent parts shown on black.

    raises  ValueError for pixels without a known range (floating point, 32-bit)
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} have no known range; 8 or 16 bits are expected")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _crop(size: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
    """The largest centred box (left, upper, right, lower; pixels) of the aspect width:height in a picture of `size`."""
    w, h = size
    scale = min(w / width, h / height)
    left, upper = (w - width * scale) / 2, (h - height * scale) / 2
    return left, upper, w - left, h - upper


def _fit(picture: Image.Image, height: int, width: int) -> Tensor:
    """Crop about the centre and resize (Lanczos, antialiased): [3, height, width] in [-1, 1]."""
    box = _crop(picture.size, height, width)
    resized = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return from_uint8(torch.from_numpy(np.array(resized)).permute(2, 0, 1))


def _tell(path: Path | str, picture: Image.Image, height: int, width: int) -> None:
    """Say on stderr what the user would want to know: a crop, or a picture too small to look sharp."""
    w, h = picture.size
    left, upper, right, lower = _crop(picture.size, height, width)
    kept = (right - left) * (lower - upper) / (w * h)
    if kept < 0.99:
        used = f"the centre {right - left:.0f}x{lower - upper:.0f} of {w}x{h} pixels ({kept:.0%})"
        print(f"drivesim: start {path}: using {used} to get the aspect {width}:{height}", file=sys.stderr)
    if min(w, h) < SMALL_PIXELS:
        print(f"drivesim: start {path} has only {w}x{h} pixels and will look blurred", file=sys.stderr)
