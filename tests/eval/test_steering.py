"""Counts of boxes found, with a finder that is told what it sees, so that every number can be worked out by hand."""

import numpy as np
import pytest
import torch

from drivesim.clip import CLASSES, Layout
from eval.layout import GRID
from eval.steering import LayoutMeter, boxes_at

LEFT, MIDDLE, RIGHT = [0.0, 0.5, 0.2, 0.8], [0.4, 0.5, 0.6, 0.8], [0.8, 0.5, 1.0, 0.8]


class Told:
    """Sees the boxes that a frame is, and occupancy in the left half."""

    def find(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        occupancy = np.zeros(GRID)
        occupancy[:, : GRID[1] // 2] = 1
        return frame, occupancy


def boxes(*chosen: list[float]) -> np.ndarray:
    return np.array(chosen, float).reshape(-1, 4)


def meter(seen: dict[str, np.ndarray], asked: dict[str, np.ndarray]) -> LayoutMeter:
    made = LayoutMeter(Told())
    for clip, frame in seen.items():
        made.add(frame, clip, asked)
    return made


ASKED = {"a": boxes(LEFT, MIDDLE), "b": boxes(MIDDLE), "c": boxes(RIGHT), "d": boxes()}


def test_found_is_the_share_of_asked_boxes_and_chance_that_of_all_other_clips_boxes():
    result = meter({"a": boxes(LEFT, MIDDLE), "b": boxes(MIDDLE), "c": boxes(LEFT)}, ASKED).result()
    assert result["boxes_asked"] == 4
    assert result["boxes_found"] == pytest.approx(3 / 4)  # not c's
    # In a: b's is met, c's not. In b: a's middle is met, its left and c's not. In c: a's left is met, its middle and
    # b's not. Clip d asks for nothing.
    assert result["boxes_found_shuffled"] == pytest.approx(3 / 8)
    assert result["boxes_ratio"] == pytest.approx(2)


def test_finds_are_right_where_a_box_was_asked_for_and_false_elsewhere():
    result = meter({"a": boxes(LEFT, RIGHT), "b": boxes(MIDDLE), "d": boxes(LEFT)}, ASKED).result()
    assert result["boxes_precision"] == pytest.approx(2 / 4)
    assert result["boxes_false"] == pytest.approx(2 / 3)


def test_occupancy_is_the_mean_inside_the_boxes():
    result = meter({"a": boxes(), "c": boxes()}, ASKED).result()
    assert result["boxes_occupancy"] == pytest.approx((1 + occupied(MIDDLE) + 0) / 3)
    assert result["boxes_occupancy_shuffled"] == pytest.approx((occupied(MIDDLE) + 0 + 1 + 2 * occupied(MIDDLE)) / 5)


def occupied(box: list[float]) -> float:
    columns = np.arange(int(box[0] * GRID[1]), int(np.ceil(box[2] * GRID[1])))
    return float((columns < GRID[1] // 2).mean())


def test_one_clip_alone_has_no_chance_level():
    result = meter({"a": boxes(LEFT)}, {"a": boxes(LEFT)}).result()
    assert result["boxes_found"] == 1
    assert np.isnan(result["boxes_found_shuffled"])
    assert np.isnan(result["boxes_ratio"])


def test_tiny_boxes_are_not_judged():
    assert meter({"a": boxes()}, {"a": boxes([0.5, 0.5, 0.52, 0.52])}).result()["boxes_asked"] == 0


def test_the_error_of_a_mean_of_clips_is_its_standard_error():
    found = [1, 0, 0, 1, 1]  # a box a clip, so what is found is a mean over clips, whose jackknife is known exactly
    asked = {f"clip{i}": boxes(LEFT) for i in range(5)}
    seen = {f"clip{i}": boxes(LEFT) if hit else boxes() for i, hit in enumerate(found)}
    errors = meter(seen, asked).errors()
    assert errors["boxes_found"] == pytest.approx(np.std(found, ddof=1) / np.sqrt(5))


def test_a_moment_has_the_boxes_of_the_clips_that_are_known_then():
    def layout(frames: int) -> Layout:
        made = Layout.unknown(frames, slots=1)
        made.classes[:] = CLASSES.index("car")
        made.boxes[..., :] = torch.arange(frames)[:, None, None] / 10
        made.known[:] = True
        return made

    unknown = layout(9)
    unknown.known[4] = False
    layouts = {"slow": (layout(3), 1.0), "fast": (layout(9), 2.0), "short": (layout(2), 1.0), "unknown": (unknown, 2.0)}
    found = boxes_at(layouts, 2.0)
    assert {clip: round(float(box[0, 0]), 3) for clip, box in found.items()} == {"slow": 0.2, "fast": 0.4}
