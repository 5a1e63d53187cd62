"""Reading video files with PyAV: what is in one, its frames in order, and a window from the middle.

A video is a file, or a clip that lies in a shard. Every reader returns upright uint8 RGB pictures [H, W, 3]. Callers
run one process a core, so decoding takes one thread.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from drivesim.data.clip_file import SEE_VERIFY, ClipFile
from drivesim.data.colour import to_rgb
from drivesim.data.filters import deinterlaced, ordinary_colour
from drivesim.errors import UserError

Source = Path | str | ClipFile
SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")
KEPT_PART = {"top": 0.0, "center": 0.5, "bottom": 1.0}  # where a crop lies within what it may leave out
# Containers round times (Matroska to 1 ms): a frame this share of a period late still counts as on time.
LATE = 0.05
MOST_PIXELS = 50_000_000  # a picture that claims more is not decoded: a few bytes of header can ask for any memory
WIDEST_PIXEL = 3.0  # an aspect of pixels beyond 1:3 and 3:1 is a mistake in the file


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself.

    height, width  pixels, upright
    fps            mean frames a second
    frames         as the header promises; a truncated file holds fewer
    duration_s     seconds, as the header promises
    """

    height: int
    width: int
    fps: float
    frames: int
    duration_s: float


def probe(path: Source) -> VideoInfo:
    """Describe a video after decoding its first frame.

    raises  UserError if the file is missing, is no video, or not even one frame decodes
    """
    frames = iterate(path)
    height, width = next(frames).shape[:2]
    with _opened(path) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        duration = _duration(container, stream)
        return VideoInfo(height, width, fps, round(duration * fps) or stream.frames, duration)


def iterate(
    path: Source,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    start: float = 0.0,
    stop: float | None = None,
    crop: str = "center",
) -> "FrameIterator":
    """Frames in order, one in memory at a time.

    fps    constant rate to resample to: each instant k / fps shows the last frame that began by then; None: as stored
    size   (height, width) pixels to `fit` into; None: as stored
    start, stop  seconds after the first frame; stop is left out
    crop   part kept when the aspect changes: top, center or bottom
    raises UserError if the file cannot be opened (at once) or no frame decodes (at the first `next`)
    """
    return FrameIterator(path, fps, size, start, stop, crop)


@dataclass(frozen=True)
class Shown:
    """Which recorded frame a picture shows.

    time_s     when that frame began, seconds after the video's first
    recorded   (height, width) pixels of the recorded picture, upright
    displayed  (height, width) of the same with square pixels, before it was brought to a size
    """

    time_s: float
    recorded: tuple[int, int]
    displayed: tuple[int, int]


class FrameIterator(Iterator[np.ndarray]):
    """What `iterate` returns; once exhausted it knows what was lost.

    promised  frames the header announces for display, 0 if it does not say
    decoded   frames decoded so far
    shown     what the picture last given shows
    """

    shown: Shown

    def __init__(
        self,
        path: Source,
        fps: float | None,
        size: tuple[int, int] | None,
        start: float,
        stop: float | None,
        crop: str,
    ) -> None:
        if crop not in KEPT_PART:
            raise ValueError(f"crop is {crop!r}, expected one of {', '.join(KEPT_PART)}")
        self.path, self.decoded = path, 0
        self._fps, self._size, self._start, self._stop, self._crop = fps, size, start, stop, crop
        self._whole = start <= 0 and stop is None
        with _opened(path) as (_, stream):
            self.promised = stream.frames
        self._pictures = self._read()

    def __next__(self) -> np.ndarray:
        return next(self._pictures)

    @property
    def lost(self) -> int:
        """Promised frames that did not decode; 0 where the header does not say or only a part was asked for."""
        return max(self.promised - self.decoded, 0) if self._whole else 0

    def _read(self) -> Iterator[np.ndarray]:
        with _opened(self.path) as (container, stream):
            if self._start > 0:
                container.seek(int(self._start / _tick(stream)) + (stream.start_time or 0), stream=stream)
            timed = self._timed(container, stream)
            chosen = self._stored(timed) if self._fps is None else self._resampled(timed, 1 / self._fps)
            last, picture = None, None
            aspect = _pixel_aspect(stream)
            for begin, frame in chosen:
                if frame is not last:  # a held frame is converted once
                    last, picture = frame, self._converted(frame, aspect)
                    self.shown = Shown(begin, _upright(frame), (picture.shape[0], picture.shape[1]))
                    picture = picture if self._size is None else fit(picture, self._size, self._crop)
                yield picture  # type: ignore[misc]
        if not self.decoded:
            raise UserError(f"{self.path} holds no readable frame{_remedy(self.path)}")

    def _timed(self, container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """(begin, end, frame) in seconds after the video's first frame; damaged packets are passed over."""
        period = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        origin = (stream.start_time or 0) * _tick(stream)
        end = 0.0
        for frame in deinterlaced(self._counted(container, stream)):
            tick = float(frame.time_base or _tick(stream))
            begin = end if frame.pts is None else frame.pts * tick - origin  # some raw streams carry no times
            end = begin + (frame.duration * tick or period)
            yield begin, end, frame

    def _counted(self, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        for packet, frames in _decode(container, stream):
            # An edit list hides pre-roll: those packets feed the decoder and were never meant to be shown.
            self.promised -= bool(packet and packet.is_discard and self.promised)
            self.decoded += len(frames)
            yield from frames

    def _stored(self, timed: Iterator[tuple[float, float, av.VideoFrame]]) -> Iterator[tuple[float, av.VideoFrame]]:
        for begin, end, frame in timed:
            slack = LATE * (end - begin)
            if self._stop is not None and begin >= self._stop - slack:
                return
            if begin >= self._start - slack:
                yield begin, frame

    def _resampled(
        self, timed: Iterator[tuple[float, float, av.VideoFrame]], period: float
    ) -> Iterator[tuple[float, av.VideoFrame]]:
        held: av.VideoFrame | None = None
        held_begin, held_end, count = 0.0, 0.0, 0
        limit = float("inf") if self._stop is None else self._stop - LATE * period

        for begin, end, frame in chain(timed, [(float("inf"), 0.0, None)]):
            # The held frame shows at every instant before the next one begins; the last one until it ends.
            until = held_end if frame is None else begin
            while held and self._start + count * period < min(until - LATE * period, limit):
                count += 1
                yield held_begin, held
            if self._start + count * period >= limit:
                return
            held, held_begin, held_end = frame, begin, end

    def _converted(self, frame: av.VideoFrame, pixel_aspect: float) -> np.ndarray:
        try:
            return to_rgb(ordinary_colour(frame), pixel_aspect)
        except (av.FFmpegError, ValueError) as error:  # a pixel format or colour tag nobody has heard of
            what = f"{frame.format.name}, colour tags {frame.colorspace}/{frame.color_primaries}/{frame.color_trc}"
            raise UserError(f"{self.path}: a frame of {what} cannot be read as RGB ({error}); re-encode it") from error


def read_window(path: Source, start: int, count: int, stride: int = 1) -> np.ndarray:
    """Frames start, start + stride, ... as stored: uint8 [count, H, W, 3], decoded from the key frame before them.

    raises  UserError if the video is shorter than asked, or one of the frames does not decode
    """
    if start < 0 or count < 1 or stride < 1:
        raise ValueError(f"start {start}, count {count}, stride {stride}: start must be >= 0, the others >= 1")
    last = start + (count - 1) * stride
    window: np.ndarray | None = None
    with _opened(path) as (container, stream):
        times, keys = _timetable(path, container, stream)
        if last >= len(times):
            raise UserError(f"{path} has {len(times)} frames, frame {last} was asked for; shorten the window")
        wanted = {int(times[index]): row for row, index in enumerate(range(start, last + 1, stride))}
        container.seek(int(keys[start]), stream=stream)
        for frame in chain.from_iterable(frames for _, frames in _decode(container, stream)):
            if frame.pts is not None and frame.pts in wanted:
                row, picture = wanted.pop(frame.pts), to_rgb(frame)
                if window is None:
                    window = np.empty((count, *picture.shape), np.uint8)
                window[row] = picture
            if not wanted:
                break
    if window is None or wanted:
        row = min(wanted.values())
        raise UserError(f"{path}: frame {start + row * stride} does not decode{_remedy(path)}")
    return window


def count_frames(path: Source) -> int:
    """Frames that are in the file, counted without decoding. raises UserError if it is missing or no video"""
    with _opened(path) as (container, stream):
        return len(_times(container, stream)[0])


def frame_times(path: Path | str) -> np.ndarray:
    """When each frame that is in the file begins, in order: seconds after the first [n], read without decoding.

    raises  UserError if it is missing or no video
    """
    with _opened(path) as (container, stream):
        tick, origin = _tick(stream), (stream.start_time or 0) * _tick(stream)
        return _times(container, stream)[0] * tick - origin


def _timetable(path: Source, container: InputContainer, stream: VideoStream) -> tuple[np.ndarray, np.ndarray]:
    """For each frame in display order its time, and the time of the key frame to decode from [n], stream ticks.

    Clips of a store have no B-frames, so the index at the front of the file tells both; of other files all packets
    must be read, once.
    """
    if not isinstance(path, ClipFile):
        return _file_times(str(path), os.stat(path).st_mtime_ns)
    entries = [(entry.timestamp, entry.is_keyframe) for entry in stream.index_entries]
    if stream.codec_context.has_b_frames or not entries:
        return _times(container, stream)
    times, keys = (np.array(column) for column in zip(*entries, strict=True))
    return times, times[np.maximum.accumulate(np.where(keys, np.arange(len(keys)), 0))]


@lru_cache(maxsize=4096)
def _file_times(path: str, changed_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """`_times` of a file, read again only when the file has changed."""
    with _opened(path) as (container, stream):
        return _times(container, stream)


def _times(container: InputContainer, stream: VideoStream) -> tuple[np.ndarray, np.ndarray]:
    """What `_timetable` returns, from the packets, without decoding.

    The key frame must come before the frame in the file and on screen: with open GOPs a frame may be shown before the
    key frame that precedes it in the file.
    """
    times, keys = [], []
    key = before = None
    for packet in _packets(container, stream):
        if packet.pts is None:
            continue
        if packet.is_keyframe:
            before, key = key, packet.pts
        if not packet.is_discard and key is not None:
            times.append(packet.pts)
            keys.append(key if key <= packet.pts or before is None else before)
    order = np.argsort(times, kind="stable")
    return np.array(times, np.int64)[order], np.array(keys, np.int64)[order]


def fit(picture: np.ndarray, size: tuple[int, int], crop: str = "center") -> np.ndarray:
    """Crop [H, W, 3] to the aspect of `size` (height, width) and resize: by area when shrinking, cubic when growing."""
    if picture.shape[:2] == size:
        return picture
    top, left, height, width = kept(picture.shape[0], picture.shape[1], size, crop)
    part = picture[top : top + height, left : left + width]
    scale = max(size[0] / picture.shape[0], size[1] / picture.shape[1])
    return cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def kept(height: int, width: int, size: tuple[int, int], crop: str = "center") -> tuple[int, int, int, int]:
    """The part of a picture that `fit` keeps for `size` (height, width): top, left, height, width in pixels."""
    scale = max(size[0] / height, size[1] / width)
    kept_h, kept_w = min(round(size[0] / scale), height), min(round(size[1] / scale), width)
    return round((height - kept_h) * KEPT_PART[crop]), (width - kept_w) // 2, kept_h, kept_w


@contextmanager
def _opened(path: Source) -> Iterator[tuple[InputContainer, VideoStream]]:
    with path.for_ffmpeg() if isinstance(path, ClipFile) else nullcontext(str(path)) as opened:
        if not isinstance(path, ClipFile) and not Path(path).is_file():
            raise UserError(f"{path} is not a file; expected a video ({', '.join(s[1:] for s in SUFFIXES)})")
        try:
            # Without the limit FFmpeg may decode a frame on opening, to learn more about the stream.
            container = av.open(opened, "r", options={"max_pixels": str(MOST_PIXELS)})
        except (av.FFmpegError, OSError) as error:
            size = path.bytes if isinstance(path, ClipFile) else Path(path).stat().st_size
            reason = "it is empty" if size == 0 else (getattr(error, "strerror", None) or str(error))
            raise UserError(f"{path} is not a readable video ({reason}){_remedy(path)}") from error
        with container:
            yield container, _film(path, container)


def _film(path: Source, container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture, ready to be decoded by this thread alone."""
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        raise UserError(f"{path} holds no video stream (audio only?){_remedy(path)}")
    stream = films[0]
    if not 0 < stream.width * stream.height <= MOST_PIXELS:
        claim = f"{stream.width}x{stream.height} pixels" if stream.width else "no size"
        raise UserError(f"{path} claims {claim}; expected up to {MOST_PIXELS:,} pixels, so it is not decoded")
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # the size may change in the middle of a file
    return stream


def _remedy(path: Source) -> str:
    return SEE_VERIFY if isinstance(path, ClipFile) else "; leave it out or re-encode it"


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Packets up to the end of what is readable."""
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.FFmpegError:
        return  # the file is cut off here


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[tuple[av.Packet | None, list[av.VideoFrame]]]:
    """Each packet with the frames it completes; last None with those the decoder still held. Damage is passed over."""
    for packet in chain(_packets(container, stream), [None]):
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError:
            frames = []
        yield packet, [frame for frame in frames if not frame.is_corrupt]


def _upright(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) of the recorded pixels after turning."""
    lying = round(frame.rotation / 90) % 2
    return (frame.width, frame.height) if lying else (frame.height, frame.width)


def _pixel_aspect(stream: VideoStream) -> float:
    """Width of a pixel over its height; 1 where the file does not say, or says nonsense."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / WIDEST_PIXEL <= aspect <= WIDEST_PIXEL else 1.0


def _tick(stream: VideoStream) -> float:
    """Seconds of one unit of the stream's time stamps."""
    return float(stream.time_base or 1 / av.time_base)


def _duration(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration:
        return stream.duration * _tick(stream)
    return (container.duration or 0) / av.time_base
