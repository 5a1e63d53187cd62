"""Streaming H.264: frames go in one by one, and what has gone in can be played at any moment."""

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from torch import Tensor

from drivesim.errors import UserError
from drivesim.files import atomic_path, refuse_existing
from drivesim.tags import movflags

# A fragment is flushed at every key frame: a killed run loses a second or two, and playing it needs no index.
FRAGMENTED = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
INDEXED = {"movflags": "faststart"}


class VideoWriter:
    """A context manager that streams frames into an H.264 mp4 (yuv420p, BT.709, limited range).

    path           the finished video; until then the frames are in `partial_path(path)`, playable at any moment
    fps            frames a second, kept exactly as a fraction (29.97003 becomes 30000/1001)
    height, width  pixels, even
    crf            x264's constant rate factor: 0 lossless, 18 visually lossless, 51 worst
    keep_partial   after Ctrl-C or an error inside the block, keep what was finished under `path`, with a line saying
                   how much; False drops it
    tags           metadata of the container

    Memory does not grow with the length. When the disk is full the finished part stays under its partial name only.
    raises  UserError for odd sizes, an existing `path` without `overwrite`, or a full disk
    """

    def __init__(
        self,
        path: Path | str,
        fps: float,
        height: int,
        width: int,
        crf: int = 18,
        overwrite: bool = False,
        keep_partial: bool = True,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        if height % 2 or width % 2:
            raise UserError(f"video of {height}x{width} pixels: yuv420p needs an even height and width")
        self.path = refuse_existing(path, overwrite)
        self.partial = partial_path(self.path)
        self.rate = Fraction(fps).limit_denominator(1001)
        self.height, self.width, self.crf, self.keep_partial = height, width, crf, keep_partial
        self.tags = dict(tags or {})
        self.frames = 0
        self.kept = False  # something is under `path`: the whole video, or after an error its first part
        self._disk_full = False

    @property
    def seconds(self) -> float:
        """Length of what was written so far."""
        return float(self.frames / self.rate)

    def __enter__(self) -> "VideoWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = _create(self.partial, FRAGMENTED, self.tags)
        options = {"crf": str(self.crf), "g": str(max(1, round(self.rate)))}
        self._stream = self._container.add_stream("libx264", rate=self.rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = self.width, self.height, "yuv420p"
        codec = self._stream.codec_context
        codec.time_base = 1 / self.rate
        # Untagged video is guessed by size (BT.601 when small), so every player must be told.
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return self

    def write(self, frame: Tensor | np.ndarray) -> None:
        """Append one frame: a uint8 tensor [3, H, W] or array [H, W, 3], RGB.

        raises  ValueError for another shape or type, UserError when the disk is full
        """
        picture = frame.permute(1, 2, 0).cpu().numpy() if isinstance(frame, Tensor) else frame
        if picture.shape != (self.height, self.width, 3) or picture.dtype != np.uint8:
            raise ValueError(
                f"frame of shape {tuple(frame.shape)}, {frame.dtype}; expected uint8 of {self.height}x{self.width}"
            )
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        yuv = rgb.reformat(
            format="yuv420p",
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND,
        )
        yuv.pts, yuv.time_base = self.frames, 1 / self.rate
        with self._telling_disk_full():
            self._container.mux(self._stream.encode(yuv))
        self.frames += 1

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Close the video; move it to its name when it is whole, or when the part of it is to be kept."""
        if self._disk_full:
            with suppress(OSError):
                self._container.close()
            return
        with self._telling_disk_full():
            self._container.mux(self._stream.encode(None))
            self._container.close()
            _check_whole(self.partial, self.frames)
        if self.frames and (error is None or self.keep_partial):
            self._finish()
        self.partial.unlink(missing_ok=True)
        if error is not None and self.kept:
            kept = f"{self.seconds:.2f} s ({self.frames} frames)"
            print(f"drivesim: stopped early; the first {kept} are whole in {self.path}", file=sys.stderr)

    @contextmanager
    def _telling_disk_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._disk_full = True
            raise UserError(
                f"disk full while writing {self.path} after {self.seconds:.1f} s of video; "
                f"the finished part plays from {self.partial}; free some room and run again"
            ) from error

    def _finish(self) -> None:
        try:
            with atomic_path(self.path) as temporary:
                _index(self.partial, temporary, self.tags)
                _check_whole(temporary, self.frames)
        except UserError:  # no room for the second copy: the fragmented file is as whole, and only slower to seek in
            os.replace(self.partial, self.path)
        self.kept = True


def partial_path(path: Path | str) -> Path:
    """Where the video lies while it is being written: `out.mp4` -> `out.partial.mp4`, open to any player."""
    path = Path(path)
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def _create(path: Path, options: Mapping[str, str], tags: Mapping[str, str]) -> OutputContainer:
    container = av.open(
        str(path), "w", format="mp4", options={**options, "movflags": movflags(options["movflags"], tags)}
    )
    container.metadata.update(tags)
    return container


def _index(source: Path, target: Path, tags: Mapping[str, str]) -> None:
    """Copy the packets of a fragmented mp4 into one with its index at the front, without encoding again."""
    with av.open(str(source)) as fragments, _create(target, INDEXED, tags) as whole:
        video = fragments.streams.video[0]
        copy = whole.add_stream_from_template(video)
        for packet in fragments.demux(video):
            if packet.size:  # the demuxer ends with an empty one
                packet.stream = copy
                whole.mux(packet)


def _check_whole(path: Path, frames: int) -> None:
    """Raise "disk full" if `path` holds fewer than `frames`: FFmpeg passes over a failed write of a file's end."""
    intact = 0
    with suppress(av.FFmpegError), av.open(str(path)) as video:  # not even a header: nothing is intact
        for packet in video.demux(video=0):
            intact += packet.size > 0 and not packet.is_corrupt
    if intact < frames:
        raise OSError(errno.ENOSPC, "the end of the video is missing", str(path))
