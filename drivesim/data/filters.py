"""FFmpeg filters between the decoder and RGB: whole pictures out of interlaced fields, ordinary colours out of HDR."""

import threading
from collections.abc import Iterator

import av
import av.filter
from av.video.reformatter import ColorPrimaries, ColorTrc

HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)  # PQ and HLG
# One picture a frame, in place of its first field; frames that are not flagged interlaced pass as they are.
DEINTERLACE = ("bwdif", "mode=send_frame:deint=interlaced")
# Perceptual: highlights are rolled off. The colorimetric intents cut off all above 203 cd/m2, which is the whole sky.
TO_BT709 = ("scale", "out_primaries=bt709:out_transfer=bt709:intent=perceptual:flags=bicubic+accurate_rnd")
_kept = threading.local()  # the first frame takes 5 s, for a table that serves all videos of this shape after it


def deinterlaced(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The frames of a decoder without combing. A video that flags no frame as interlaced is not touched.

    From the first interlaced frame on all go through the filter, whose time base is finer than the stream's.
    """
    graph, shape = None, None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if graph is None or shape != _shape(frame):
            yield from _flushed(graph)
            graph, shape = _graph(frame, DEINTERLACE), _shape(frame)
        graph.push(frame)
        yield from _ready(graph)
    yield from _flushed(graph)


def ordinary_colour(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame of wide gamut (BT.2020) or high dynamic range (PQ, HLG) in BT.709; others pass as they are."""
    if frame.color_trc not in HDR and frame.color_primaries != ColorPrimaries.BT2020:
        return frame
    shape = _shape(frame)
    if getattr(_kept, "shape", None) != shape:
        _kept.graph, _kept.shape = _graph(frame, TO_BT709, ("format", "rgb24")), shape
    _kept.graph.push(frame)
    return next(_ready(_kept.graph))


def _shape(frame: av.VideoFrame) -> tuple[object, ...]:
    """What a filter graph is made for; where it changes in a file, so must the graph."""
    colour = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    return (frame.width, frame.height, frame.format.name, *colour)


def _graph(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1  # the work is spread over processes
    entry = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    steps = [graph.add(name, options) for name, options in filters]
    graph.link_nodes(entry, *steps, graph.add("buffersink")).configure()
    return graph


def _ready(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    try:
        while True:
            yield graph.vpull()
    except (av.BlockingIOError, av.EOFError):
        return


def _flushed(graph: av.filter.Graph | None) -> Iterator[av.VideoFrame]:
    if graph is not None:
        graph.push(None)
        yield from _ready(graph)
