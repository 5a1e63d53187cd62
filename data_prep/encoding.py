"""Pictures into the H.264 files of a store, at a constant rate, a key frame every few frames."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from data_prep.source import Refused
from drivesim.data.colour import UNBIASED
from drivesim.errors import UserError
from drivesim.tags import movflags

GOP_FRAMES = 8  # a training window starts anywhere: at most 7 frames are decoded in vain
# No B-frames: display order is file order, so a seek lands where it is asked to. One thread: x264 writes other bytes
# with another number of threads, and a store must not depend on the machine.
COMMON = {"preset": "ultrafast", "threads": "1", "x264-params": "scenecut=0:bframes=0:open-gop=0"}
# ultrafast at crf 16 gives the PSNR of veryfast at crf 14 in half the time (6 ms a frame of 512x1024), for files 1.4
# (few frames a second) to 1.7 times as large.
LOSSY = {"crf": "16"}
LOSSLESS = {"qp": "0"}


def encode(
    path: Path,
    pictures: Iterator[np.ndarray],
    rate: Fraction,
    name: str,
    lossless: bool = False,
    tags: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """Encode uint8 RGB pictures [H, W, 3]; returns (height, width).

    lossless  as RGB, bit for bit, which FFmpeg reads and browsers do not; else yuv420p, which everything plays
    tags      metadata of the container
    raises    UserError if a picture has an odd size or another than the first; Refused if there is none; OSError
    """
    first = next(pictures, None)
    if first is None:
        raise Refused("it has no frames")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise UserError(f"clip {name} is {height}x{width}; yuv420p video needs an even height and width")
    to_frame = _to_rgb if lossless else _to_yuv
    try:
        with av.open(str(path), "w", options={"movflags": movflags("faststart", tags)}) as container:
            container.metadata.update(tags or {})
            stream = _add_stream(container, rate, height, width, lossless)
            container.mux(stream.encode(to_frame(first, 0)))
            for number, picture in enumerate(pictures, start=1):
                if picture.shape != first.shape:
                    found = f"{picture.shape[0]}x{picture.shape[1]}"
                    raise UserError(f"clip {name}: frame {number} is {found}, the first is {height}x{width}")
                container.mux(stream.encode(to_frame(picture, number)))
            container.mux(stream.encode())
    except av.FFmpegError as error:  # not always an OSError, which is what `atomic_path` understands
        raise OSError(error.errno, error.strerror, str(path)) from error
    return height, width


def _add_stream(
    container: av.container.OutputContainer, rate: Fraction, height: int, width: int, lossless: bool
) -> av.VideoStream:
    codec, options, pix_fmt = ("libx264rgb", LOSSLESS, "rgb24") if lossless else ("libx264", LOSSY, "yuv420p")
    stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options=COMMON | options))
    stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
    context = stream.codec_context
    context.gop_size, context.time_base = GOP_FRAMES, 1 / rate
    if not lossless:
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _to_yuv(picture: np.ndarray, number: int) -> av.VideoFrame:
    """RGB to limited-range BT.709, the tag the stream carries: a reader that trusts the tag gets its colours back."""
    frame = _to_rgb(picture, number).reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=UNBIASED,
    )
    frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    frame.pts = number
    return frame


def _to_rgb(picture: np.ndarray, number: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame.pts = number
    return frame
