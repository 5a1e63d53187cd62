"""Balanced sampling against the frequencies that it promises."""

import cv2
import numpy as np
import pytest
import torch

from data_prep.source import Box, Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.data.balance import EDGES, groups
from drivesim.data.store import ClipStore
from drivesim.data.windows import WindowDataset, WindowSpec
from drivesim.errors import UserError


class Clips:
    """A reader that notes which clips it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def window(self, clip, start, count, stride, rng) -> torch.Tensor:
        self.asked.append(clip)
        return torch.zeros(count)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> ClipStore:
    """Ten clips, of which one is at night, two in rain, and three show a pedestrian; the last has no boxes."""
    root = tmp_path_factory.mktemp("tagged")
    rng = np.random.default_rng(0)
    for i in range(10):
        picture = cv2.resize(rng.integers(0, 255, (4, 8, 3), np.uint8), (64, 32))
        boxes = [Box(1, "pedestrian" if i in (2, 5, 6) else "car", (0.1, 0.1, 0.5, 0.5))] if i < 9 else []
        frames = [Frame(picture, boxes, night=float(i == 0), vehicles=i) for _ in range(8 + i)]
        weather = "rain" if i in (3, 4) else "clear"
        write_clip(root, RawClip(f"t{i}", f"r{i}", 10.0, "test", "", i < 9, iter(frames), weather=weather), "train")
    merge(root, {})
    return ClipStore(root)


BALANCED = {
    "night": [{0}, set(range(1, 10))],
    "weather": [{3, 4}, {0, 1, 2, 5, 6, 7, 8, 9}],
    "cars": [{0}, {1, 2, 3}, {4, 5, 6, 7, 8, 9}],
    "class:pedestrian": [{2, 5, 6}, {0, 1, 3, 4, 7, 8}, {9}],
    "class:bus": [set(range(9)), {9}],
}


@pytest.mark.parametrize("tag", BALANCED)
def test_every_value_of_a_tag_is_drawn_alike_and_every_moment_within_one(tagged, tag):
    reader, count = Clips(), 4000
    windows = WindowDataset(tagged, reader, "train", [WindowSpec(5, 10)], 0, balance=tag)
    for i in range(count):
        windows[i]
    drawn = np.bincount([int(clip[1:]) for clip in reader.asked], minlength=10) / count
    starts = 4 + np.arange(10)
    for group in BALANCED[tag]:
        for clip in group:
            expected = starts[clip] / starts[list(group)].sum() / len(BALANCED[tag])
            assert abs(drawn[clip] - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


def test_a_value_that_serves_no_window_is_left_out_of_the_balance(tagged):
    reader = Clips()
    windows = WindowDataset(
        tagged, reader, "train", [WindowSpec(10, 10)], 0, balance="night"
    )  # the night is 8 frames long
    for i in range(200):
        windows[i]
    assert set(reader.asked) == {f"t{i}" for i in range(2, 10)}


@pytest.mark.parametrize(("tag", "told"), [("nigth", "did you mean night?"), ("class:tram", "is no tag")])
def test_an_unknown_tag_is_refused(tagged, tag, told):
    with pytest.raises(UserError) as refused:
        WindowDataset(tagged, Clips(), "train", [WindowSpec(5, 10)], 0, balance=tag)
    assert f"balance={tag} is no tag" in str(refused.value)
    assert told in str(refused.value)


def test_a_selection_is_all_that_windows_are_drawn_from(tagged):
    reader = Clips()
    chosen = tagged.select("rain or night")
    windows = WindowDataset(chosen, reader, "train", [WindowSpec(2, 10)], 0, balance="class:pedestrian")
    for i in range(100):
        windows[i]
    assert set(reader.asked) == {"t0", "t3", "t4"}


def test_an_unknown_number_is_a_group_of_its_own(tagged):
    assert np.isnan(tagged.index["speed_mps"]).all()
    assert set(groups(tagged, "speed")) == {len(EDGES["speed_mps"]) + 1}


def test_without_a_tag_all_clips_are_one_group(tagged):
    assert set(groups(tagged, "")) == {0}
