"""Pieces of an H.264 video of about a second, each encoded by itself: their bytes follow from their frames alone, and
one after the other they are a fragmented mp4."""

import io
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

# A segment is one fragment, which says itself where in the video it lies: playing needs no index.
FRAGMENTED = {"movflags": "frag_custom+delay_moov+default_base_moof+frag_discont"}
THREADS = 1  # x264's bytes depend on their number, and one encodes 512x1024 faster than a GPU makes it
DELAY_FRAMES = 2  # from decoding to showing, of x264 with its default B-frames
HEADER, FRAGMENT = (b"ftyp", b"moov"), (b"moof", b"mdat")  # boxes of an mp4: how to play it, and some of its frames
BOX_BYTES = 8  # of a box before what is in it: its length and its name


class Segment:
    """A piece of a video, encoded by itself into a piece of a fragmented mp4.

    first  number of its first frame; other arguments as those of the whole video
    """

    def __init__(self, rate: Fraction, height: int, width: int, crf: int, first: int) -> None:
        frames = segment_frames(rate)
        self._content, self._rate, self._next = io.BytesIO(), rate, first
        self._early: int | None = None  # how far packets lie before their place, in units of their time base
        options = FRAGMENTED | {"fragment_index": str(first // frames + 1)}
        self._container = av.open(self._content, "w", format="mp4", options=options)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": str(crf), "g": str(frames)})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        codec = self._stream.codec_context
        codec.time_base, codec.thread_count = 1 / rate, THREADS
        # Untagged video is guessed by size (BT.601 when small), so every player must be told.
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709

    def encode(self, picture: np.ndarray) -> None:
        """picture  uint8 [H, W, 3], RGB"""
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        yuv = rgb.reformat(
            format="yuv420p",
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND,
        )
        yuv.pts, yuv.time_base = self._next, 1 / self._rate
        self._next += 1
        self._mux(self._stream.encode(yuv))

    def finish(self) -> tuple[bytes, bytes]:
        """What says how to play the video, for its beginning; and the frames."""
        self._mux(self._stream.encode(None))
        self._container.close()
        boxes = list(_boxes(self._content.getvalue()))
        frames = b"".join(box for name, box in boxes if name in FRAGMENT)
        return b"".join(box for name, box in boxes if name in HEADER), frames

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            assert packet.pts is not None
            assert packet.dts is not None
            if self._early is None:
                # Of one or two frames x264 delays none, which would show them earlier than those of other segments.
                self._early = int(DELAY_FRAMES / self._rate / packet.time_base) - (packet.pts - packet.dts)
            packet.dts -= self._early
            self._container.mux(packet)


def segment_frames(rate: Fraction) -> int:
    """Frames of a segment: about a second."""
    return max(1, round(rate))


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and whole bytes of the boxes that an mp4 is made of (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + BOX_BYTES], content[at : at + size]
        at += size
