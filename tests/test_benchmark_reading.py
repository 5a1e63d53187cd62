"""What makes the comparison of readers a fair one. No time is asserted."""

from itertools import islice

import numpy as np
import pytest

from benchmarks import reading
from benchmarks.reading import FRAMES, OURS, Moment
from drivesim.data.video import iterate
from drivesim.errors import UserError


def test_windows_lie_within_a_clip_and_are_the_same_frames_of_the_original(small_store):
    index = small_store.index
    begins = dict(zip(index.index, np.cumsum(index["frames"]) - index["frames"], strict=True))
    drawn = list(islice(reading.moments(small_store, 0), 200))
    for moment in drawn:
        assert 0 <= moment.start <= index.loc[moment.clip, "frames"] - FRAMES
        assert moment.at == begins[moment.clip] + moment.start
    assert {moment.clip for moment in drawn} == {"c0", "c1", "c3"}  # the others are shorter than a window
    assert drawn == list(islice(reading.moments(small_store, 0), 200))


def test_the_original_shows_the_clips_of_the_store_one_after_the_other_in_long_groups(small_store, tmp_path):
    path = tmp_path / "drive.mp4"
    reading.record(small_store, path, 1)
    frames = list(iterate(path))
    assert len(frames) == 30
    assert frames[0].shape == (*reading.CAMERA_SIZE, 3)
    first = next(iterate(small_store.video("c0"), size=reading.CAMERA_SIZE))
    assert np.abs(frames[0].astype(int) - first).mean() < 4
    shown = reading.opencv(path)(Moment("c0", 10, 10))
    # OpenCV takes every video for BT.601, so colours are a little off; the moment is right if no other is nearer.
    errors = [
        np.abs(shown.astype(int) - reading.resized(np.stack(frames[at : at + FRAMES]))).mean() for at in (9, 10, 11)
    ]
    assert min(errors) == errors[1] < 6


def test_a_reader_that_shows_other_pictures_is_refused():
    readers = {OURS: lambda moment: np.zeros((1, 2, 2, 3)), "theirs": lambda moment: np.full((1, 2, 2, 3), 99)}
    with pytest.raises(UserError, match="theirs shows other pictures than"):
        reading.check(readers, Moment("a", 0, 0))


def test_the_table_tells_every_round_against_ours():
    lines = reading.table({OURS: [0.1, 0.2, 0.1], "theirs": [0.2, 0.4, 0.5]}).splitlines()
    assert lines[-1].split() == ["theirs", "2.5", "400.00", "2", "2", "2", "5"]


@pytest.mark.parametrize("word", ["seconds=1", "rounds=0", "windows=0"])
def test_a_value_that_makes_no_sense_is_one_line(word):
    with pytest.raises(UserError, match="expected at least 2, 1 and 1"):
        reading.main(["store=nowhere", word])
