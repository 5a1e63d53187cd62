"""Cutting a video into clips."""

import numpy as np
import pytest

from data_prep.generated.clips import PieceOptions, pieces
from drivesim.errors import UserError


def cut(kept: list[int], clip_seconds: float = 20, min_seconds: float = 1) -> list[tuple[int, int]]:
    options = PieceOptions(clip_seconds, min_seconds)
    return [(piece.start, piece.stop) for piece in pieces(np.array(kept, bool), 10.0, options)]


def test_a_clip_is_a_stretch_of_frames_that_are_all_kept():
    assert cut([1] * 30) == [(0, 30)]
    assert cut([0] * 5 + [1] * 20 + [0] * 10 + [1] * 15) == [(5, 25), (35, 50)]
    assert cut([0] * 30) == []


def test_short_stretches_are_dropped_and_long_ones_cut_into_equal_parts():
    assert cut([1] * 9 + [0] + [1] * 10) == [(10, 20)]
    assert cut([1] * 25, clip_seconds=1) == [(0, 8), (8, 17), (17, 25)]


def test_lengths_that_contradict_are_refused():
    with pytest.raises(UserError, match="min_seconds is 3, clip_seconds 2"):
        PieceOptions(2, 3).check()
