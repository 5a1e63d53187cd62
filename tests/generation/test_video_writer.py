import errno
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from drivesim.errors import UserError
from drivesim.generation import writer as writer_module
from drivesim.generation.writer import VideoWriter, Written, partial_path

COLOURS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (120, 30, 200),
    (255, 255, 0),
    (90, 90, 90),
]


def grey(value: int) -> np.ndarray:
    return np.full((64, 128, 3), value, np.uint8)


def decode(path) -> list[np.ndarray]:
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def bt709_luma(rgb) -> float:
    """ITU-R BT.709, item 3.2 and 3.4: the 8-bit luma of limited range."""
    r, g, b = np.array(rgb) / 255
    return 16 + 219 * (0.2126 * r + 0.7152 * g + 0.0722 * b)


def test_colours_survive_the_round_trip_and_are_tagged_bt709(tmp_path):
    bars = np.repeat(np.array(COLOURS, np.uint8)[None], 16, 1).reshape(1, 128, 3).repeat(64, 0)
    with VideoWriter(tmp_path / "a.mp4", 30, 64, 128) as writer:
        writer.write(bars)
    with av.open(str(tmp_path / "a.mp4")) as video:
        frame = next(video.decode(video=0))
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
    luma, rgb = frame.reformat(format="yuv420p").to_ndarray()[:64], frame.to_ndarray(format="rgb24")
    for i, colour in enumerate(COLOURS):
        assert abs(float(luma[32, 16 * i + 8]) - bt709_luma(colour)) <= 1
        assert np.abs(rgb[32, 16 * i + 8].astype(int) - colour).max() <= 3


def test_a_tensor_and_an_array_give_the_same_bytes(tmp_path):
    pictures = [np.random.default_rng(i).integers(0, 255, (64, 128, 3), dtype=np.uint8) for i in range(5)]
    with VideoWriter(tmp_path / "array.mp4", 30, 64, 128) as writer:
        [writer.write(picture) for picture in pictures]
    with VideoWriter(tmp_path / "tensor.mp4", 30, 64, 128) as writer:
        [writer.write(torch.from_numpy(picture).permute(2, 0, 1)) for picture in pictures]
    assert (tmp_path / "array.mp4").read_bytes() == (tmp_path / "tensor.mp4").read_bytes()


@pytest.mark.parametrize(("fps", "rate"), [(30, 30), (29.97002997, Fraction(30000, 1001)), (7.5, Fraction(15, 2))])
def test_every_frame_is_there_at_its_time(tmp_path, fps, rate):
    with VideoWriter(tmp_path / "a.mp4", fps, 64, 128) as writer:
        for i in range(40):
            writer.write(grey(20 + 5 * i))
    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.average_rate, stream.frames) == (rate, 40)
        for i, frame in enumerate(video.decode(stream)):
            assert abs(frame.time - float(i / rate)) < 1e-3
            assert abs(frame.to_ndarray(format="rgb24").mean() - (20 + 5 * i)) < 2


def test_the_finished_file_has_its_index_first_and_leaves_nothing_beside_it(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 30, 64, 128) as writer:
        writer.write(grey(9))
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_what_is_there_plays_while_frames_still_go_in(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10, 64, 128) as writer:
        for i in range(125):
            writer.write(grey(i))
        frames = decode(partial_path(writer.path))
        assert len(frames) == writer.written.frames == 120
        assert not writer.path.exists()
    assert abs(frames[30].mean() - 30) < 3


def write(
    path, frames: int, error: type[BaseException] | None = None, before=lambda i, writer: None, **options
) -> None:
    """Write grey frames at 10 fps, calling `before` ahead of each and once after the last; then raise `error`."""
    with VideoWriter(path, 10, 64, 128, **options) as writer:
        for i in range(frames):
            before(i, writer)
            writer.write(grey(i))
        before(frames, writer)
        if error:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_is_kept_whole_and_says_how_long_it_is(tmp_path, capsys, error):
    with pytest.raises(error):
        write(tmp_path / "a.mp4", 25, error)
    assert len(decode(tmp_path / "a.mp4")) == 25
    assert "2.50 s (25 frames)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_interrupted_video_is_dropped_when_it_is_not_to_be_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.mp4", 25, KeyboardInterrupt, keep_partial=False)
    assert not list(tmp_path.iterdir())


def test_without_a_frame_there_is_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.mp4", 0, KeyboardInterrupt)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_leaves_no_file_under_the_final_name(tmp_path):
    def fill(i, writer):
        if i == 15:
            writer._file = FullDisk(writer._file)

    with pytest.raises(UserError, match=r"disk full while writing .*a\.mp4 after 1\.0 s"):
        write(tmp_path / "a.mp4", 25, before=fill)
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial.mp4"]
    assert len(decode(tmp_path / "a.partial.mp4")) == 10


def lose_the_end(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 20])


@pytest.mark.parametrize("begun", [None, Written()])
def test_without_room_for_an_index_only_a_video_that_can_go_on_waits_for_it(tmp_path, monkeypatch, begun):
    """FFmpeg does not report a failed write at the end of a file; here it is cut off after it was written."""
    index = writer_module._index
    monkeypatch.setattr(
        writer_module, "_index", lambda source, path, tags: (index(source, path, tags), lose_the_end(path))
    )
    if begun is None:
        write(tmp_path / "a.mp4", 9)
        assert len(decode(tmp_path / "a.mp4")) == 9
        return
    with pytest.raises(UserError, match=r"disk full while writing .*a\.mp4"):
        write(tmp_path / "a.mp4", 9, begun=begun)
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial.mp4"]


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (64, 128, 3), dtype=np.uint8)


def test_a_video_that_goes_on_at_a_segment_has_the_bytes_of_an_unbroken_one(tmp_path):
    unbroken, stopped = tmp_path / "a.mp4", tmp_path / "b.mp4"
    with VideoWriter(unbroken, 10, 64, 128) as writer:
        for i in range(31):
            writer.write(noise(i))
    begun = Written()
    while not stopped.exists():
        with suppress(KeyboardInterrupt), VideoWriter(stopped, 10, 64, 128, begun=begun) as writer:
            for i in range(begun.frames, 31):
                writer.write(noise(i))
                if i == begun.frames + 13:
                    raise KeyboardInterrupt
        assert writer.written.frames == (31 if stopped.exists() else begun.frames + 10)
        begun = writer.written
    assert stopped.read_bytes() == unbroken.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}


@pytest.mark.parametrize("frames", [1, 2, 3, 11, 12, 13])
def test_frames_of_a_short_last_segment_are_at_their_times(tmp_path, frames):
    write(tmp_path / "a.mp4", frames)
    with av.open(str(tmp_path / "a.mp4")) as video:
        times = [frame.time for frame in video.decode(video=0)]
    assert np.allclose(times, np.arange(frames) / 10)


def test_a_video_that_can_go_on_and_was_stopped_plays_up_to_its_last_segment(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.mp4", 25, KeyboardInterrupt, begun=Written())
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial.mp4"]
    assert len(decode(tmp_path / "a.partial.mp4")) == 20


def test_a_partial_video_that_is_another_one_is_left_alone(tmp_path):
    partial = partial_path(tmp_path / "a.mp4")
    partial.write_bytes(b"another")
    with pytest.raises(UserError, match=r"a\.partial\.mp4 is not what was written of it, .*overwrite=true"):
        write(tmp_path / "a.mp4", 25, begun=Written(10, 5000, "0" * 64))
    assert partial.read_bytes() == b"another"


def test_two_at_once_do_not_write_the_same_video(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10, 64, 128) as writer:
        writer.write(grey(1))
        with pytest.raises(UserError, match=r"another process is writing .*a\.mp4"):
            write(tmp_path / "a.mp4", 5)
    assert len(decode(tmp_path / "a.mp4")) == 1


@pytest.mark.parametrize("size", [(63, 128), (64, 127)])
def test_odd_sizes_are_refused(tmp_path, size):
    with pytest.raises(UserError, match="even height and width"):
        VideoWriter(tmp_path / "a.mp4", 30, *size)


def test_an_existing_file_is_kept_unless_overwrite_is_given(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="overwrite=true"):
        VideoWriter(path, 30, 64, 128)
    assert path.read_bytes() == b"mine"
    with VideoWriter(path, 30, 64, 128, overwrite=True) as writer:
        writer.write(grey(5))
        assert path.read_bytes() == b"mine"  # replaced only by a whole video
    assert len(decode(path)) == 1


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected uint8 of 64x128"), VideoWriter(tmp_path / "a.mp4", 30, 64, 128) as w:
        w.write(grey(1)[:32])


class FullDisk:
    """A file with room for a few bytes more."""

    def __init__(self, file):
        self.file, self.fileno, self.truncate = file, file.fileno, file.truncate

    def write(self, content):
        if len(content) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(content[:-99])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()
