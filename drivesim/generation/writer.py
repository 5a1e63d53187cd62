"""Streaming H.264: frames go in one by one, what has gone in can be played at any moment, and a killed video goes on.

A video that was stopped and goes on at the end of a segment (generation/segment.py) is the same, byte for byte, as one
that was not.
"""

import errno
import fcntl
import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from torch import Tensor

from drivesim.errors import UserError
from drivesim.files import atomic_path, refuse_existing
from drivesim.generation.segment import Segment, segment_frames
from drivesim.tags import movflags

INDEXED = {"movflags": "faststart"}


@dataclass(frozen=True)
class Written:
    """What of a video is on disk, whole, at the end of a segment: frames, bytes, and the SHA-256 of these bytes."""

    frames: int = 0
    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class VideoWriter:
    """A context manager that streams frames into an H.264 mp4 (yuv420p, BT.709, limited range).

    path           the finished video; until then the frames are in `partial_path(path)`, playable at any moment
    fps            frames a second, kept exactly as a fraction (29.97003 becomes 30000/1001)
    height, width  pixels, even
    crf            x264's constant rate factor: 0 lossless, 18 visually lossless, 51 worst
    keep_partial   after Ctrl-C or an error inside the block, keep what was finished under `path`, with a line saying
                   how much; False drops it
    begun          what an earlier writer of the same video had `written`, to go on from there; `Written()` begins one
                   that can go on: after an error its finished segments stay under their partial name. None: it cannot
    tags           metadata of the container

    Memory does not grow with the length. When the disk is full the finished part stays under its partial name only.
    raises  UserError for odd sizes, an existing `path` without `overwrite`, or a full disk; on entering the block, if
            another process writes the same video, or the partial video is not the one that was `begun`
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
        begun: Written | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        if height % 2 or width % 2:
            raise UserError(f"video of {height}x{width} pixels: yuv420p needs an even height and width")
        self.path = refuse_existing(path, overwrite)
        self.partial = partial_path(self.path)
        self.rate = Fraction(fps).limit_denominator(1001)
        self.height, self.width, self.crf, self.keep_partial = height, width, crf, keep_partial
        self.resumable = begun is not None
        self.written = begun or Written()
        self.frames = self.written.frames
        self.tags = dict(tags or {})
        self.kept = False  # something is under `path`: the whole video, or after an error its first part
        self._disk_full = False
        self._segment: Segment | None = None

    @property
    def seconds(self) -> float:
        """Length of what was written so far."""
        return float(self.frames / self.rate)

    def __enter__(self) -> "VideoWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.partial, "ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when its holder dies
            self._hash = hash_written(self.partial, self.written)
            self._file.truncate(self.written.size)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(f"another process is writing {self.path}; wait for it or choose another out") from error
        except UserError:
            self._file.close()
            raise
        return self

    def write(self, frame: Tensor | np.ndarray) -> None:
        """Append one frame: a uint8 tensor [3, H, W] or array [H, W, 3], RGB. At the end of every segment all frames
        so far are on disk, which `written` then says.

        raises  ValueError for another shape or type, UserError when the disk is full
        """
        picture = frame.permute(1, 2, 0).cpu().numpy() if isinstance(frame, Tensor) else frame
        if picture.shape != (self.height, self.width, 3) or picture.dtype != np.uint8:
            raise ValueError(
                f"frame of shape {tuple(frame.shape)}, {frame.dtype}; expected uint8 of {self.height}x{self.width}"
            )
        if self._segment is None:
            self._segment = Segment(self.rate, self.height, self.width, self.crf, self.frames)
        self._segment.encode(picture)
        self.frames += 1
        if self.frames % segment_frames(self.rate) == 0:
            self.flush()

    def flush(self) -> None:
        """End the segment here, as at the end of the video. raises UserError when the disk is full"""
        if self._segment is None:
            return
        header, fragment = self._segment.finish()
        self._segment = None
        self._append(fragment if self.written.size else header + fragment)

    def _append(self, content: bytes) -> None:
        try:
            left = memoryview(content)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())  # what a checkpoint says is there has to be, after a power cut too
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._disk_full = True
            self._file.truncate(self.written.size)  # a part of a segment helps nobody
            again = "run the same command to go on" if self.resumable else "run again"
            raise UserError(
                f"disk full while writing {self.path} after {float(self.written.frames / self.rate):.1f} s of video; "
                f"the finished part plays from {self.partial}; free some room and {again}"
            ) from error
        self._hash.update(content)
        self.written = Written(self.frames, self.written.size + len(content), self._hash.hexdigest())

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Close the video; move it to its name when it is whole, or when the part of it is to be kept."""
        with self._file:
            if not self._disk_full and (error is None or not self.resumable):
                self.flush()
                if self.frames and (error is None or self.keep_partial):
                    self._finish()
        if self.kept or not self.written.frames or not (self.resumable or self._disk_full):
            self.partial.unlink(missing_ok=True)
        if error is not None and self.kept:
            kept = f"{self.seconds:.2f} s ({self.frames} frames)"
            print(f"drivesim: stopped early; the first {kept} are whole in {self.path}", file=sys.stderr)
        elif error is not None and self.resumable and self.written.frames and not self._disk_full:
            kept = f"{float(self.written.frames / self.rate):.2f} s ({self.written.frames} frames)"
            print(f"drivesim: stopped early; the first {kept} play from {self.partial}", file=sys.stderr)

    def _finish(self) -> None:
        try:
            with atomic_path(self.path) as temporary:
                _index(self.partial, temporary, self.tags)
                _check_whole(temporary, self.frames)
        except UserError:
            if self.resumable:
                raise
            # No room for the second copy: the fragmented file is as whole, and only slower to seek in.
            os.replace(self.partial, self.path)
        self.kept = True


def hash_written(path: Path, written: Written) -> "hashlib._Hash":
    """SHA-256 of the first bytes of a partial video, to be updated with those that follow.

    raises  UserError unless they are what was `written`
    """
    found, left = hashlib.sha256(), written.size
    with open(path, "rb") as file:
        while left and (part := file.read(min(left, 1 << 20))):
            found.update(part)
            left -= len(part)
    if found.hexdigest() != written.sha256:
        raise UserError(
            f"{path} is not what was written of it, {float(written.size / 2**20):.1f} MiB; "
            "add overwrite=true to begin anew"
        )
    return found


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
