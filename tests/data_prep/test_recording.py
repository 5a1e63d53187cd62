import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.options import ClipOptions
from data_prep.recording import Shot, clips_of
from data_prep.source import Dropped, Frame, RawClip, Refused

OPTIONS = ClipOptions(height=32, width=64, fps=10.0, clip_seconds=2.0, min_seconds=0.5)
TEMPLATE = RawClip("drive", "drive", 0.0, "drive", "", False, iter(()))


def shots_of(folder: Path, times: list[float]) -> list[Shot]:
    """Pictures whose grey level is their number."""
    shots = []
    for number, time_s in enumerate(times):
        path = folder / f"{number:04d}.png"
        cv2.imwrite(str(path), np.full((32, 64, 3), number, np.uint8))
        shots.append(Shot(time_s, path, Frame))
    return shots


def read(shots: list[Shot], options: ClipOptions = OPTIONS) -> tuple[list[list[int]], list[str]]:
    """Grey levels of each clip that stands, and the reasons of what does not."""
    kept, reasons = [], []
    for piece in clips_of(TEMPLATE, shots, options):
        if isinstance(piece, Dropped):
            reasons.append(piece.reason)
            continue
        try:
            kept.append([int(frame.image[0, 0, 0]) for frame in piece.frames])
        except Refused as reason:
            reasons.append(str(reason))
    return kept, reasons


def test_each_frame_shows_the_picture_nearest_in_time(tmp_path):
    jitter = [0.0, 0.104, 0.197, 0.302, 0.396, 0.501]
    assert read(shots_of(tmp_path, jitter)) == ([[0, 1, 2, 3, 4, 5]], [])


def test_a_slow_recording_repeats_and_a_fast_one_leaves_out(tmp_path):
    slow, fast = read(shots_of(tmp_path, [0, 0.2, 0.4]))[0], read(shots_of(tmp_path, [0.05 * i for i in range(14)]))[0]
    assert [len(clip) for clip in slow + fast] == [6, 7]
    assert slow[0] == [0, 1, 1, 2, 2, 2]
    assert fast == [[0, 2, 4, 6, 8, 10, 12]]


def test_no_clip_runs_over_a_gap(tmp_path):
    times = [0.1 * i for i in range(8)] + [5 + 0.1 * i for i in range(6)]
    assert read(shots_of(tmp_path, times))[0] == [list(range(8)), list(range(8, 14))]


def test_a_long_recording_becomes_several_clips(tmp_path):
    assert [len(clip) for clip in read(shots_of(tmp_path, [0.1 * i for i in range(45)]))[0]] == [20, 20, 5]


@pytest.mark.parametrize(("times", "words"), [([0, 0.1, 0.1, 0.2], "repeats"), ([0, 0.2, 0.1, 0.3], "goes back")])
def test_times_that_repeat_or_go_back_are_refused_with_the_pictures_named(tmp_path, times, words):
    with pytest.raises(Refused, match=f"{words}.*000[12].png"):
        read(shots_of(tmp_path, times))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def huge(path: Path) -> None:
    """A PNG whose header claims 10000x10000 pixels."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", 10000, 10000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"0"))):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "missing"),
        (cut_off, "0007.png"),
        (huge, "10000x10000 pixels"),
        (lambda path: path.write_bytes(b""), "not a readable picture"),
        (lambda path: path.write_text("no picture"), "not a readable picture"),
    ],
)
def test_a_bad_picture_ends_a_clip_is_named_and_the_rest_is_used(tmp_path, spoil, words):
    shots = shots_of(tmp_path, [0.1 * i for i in range(15)])
    spoil(shots[7].image)
    kept, reasons = read(shots)
    assert kept == [list(range(7)), list(range(8, 15))]
    assert len(reasons) == 1
    assert words in reasons[0]
    assert "0007.png" in reasons[0]


def test_a_clip_that_is_not_read_leaves_the_following_ones_as_they_are(tmp_path):
    shots = shots_of(tmp_path, [0.1 * i for i in range(45)])
    shots[5].image.unlink()
    names = [piece.name if isinstance(piece, RawClip) else "bad" for piece in clips_of(TEMPLATE, shots, OPTIONS)]
    assert names == ["drive_0000", "bad", "drive_0001", "drive_0002", "drive_0003"]


def test_pieces_that_are_too_short_are_told(tmp_path):
    kept, reasons = read(shots_of(tmp_path, [0.1 * i for i in range(23)]))
    assert [len(clip) for clip in kept] == [20]
    assert "0.30 s" in reasons[0]
    assert "min_seconds=0.5" in reasons[0]


def test_clips_tell_when_they_start_also_after_a_bad_picture_and_a_gap(tmp_path):
    shots = shots_of(tmp_path, [100 + 0.1 * i for i in range(30)] + [110 + 0.1 * i for i in range(6)])
    shots[7].image.unlink()
    pieces = [piece for piece in clips_of(TEMPLATE, shots, OPTIONS) if isinstance(piece, RawClip)]
    assert [piece.start_s for piece in pieces] == pytest.approx([0.0, 0.8, 2.0, 10.0])
