import math

import cv2
import numpy as np
import pytest
import torch

from drivesim.clip import CLASSES, NO_BOX, Layout
from drivesim.errors import UserError
from eval.layout import (
    GRID,
    THRESHOLDS,
    CarFinder,
    _recall_precision,
    _to_boxes,
    overlap,
    targets,
    train_finder,
    vehicle_boxes,
)
from eval.steering import LayoutMeter


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey street with one or two toy cars, and their boxes."""
    rng = np.random.default_rng(seed)
    image = np.clip(rng.normal(95, 8, (128, 256, 3)), 0, 255).astype(np.uint8)
    image[:50] = (150, 180, 220)
    boxes = []
    for left in rng.permutation([10, 90, 170])[: rng.integers(1, 3)].tolist():
        width, top = int(rng.integers(30, 65)), int(rng.integers(50, 75))
        height = int(width * 0.7)
        colour = rng.integers(0, 255, 3).tolist()
        cv2.rectangle(image, (left, top), (left + width, top + height), colour, -1)
        cv2.rectangle(image, (left + 5, top + 4), (left + width - 5, top + height // 3), (30, 40, 50), -1)
        boxes.append([left / 256, top / 128, (left + width) / 256, (top + height) / 128])
    return image, np.array(boxes, np.float32)


@pytest.fixture(scope="module")
def finder() -> CarFinder:
    return train_finder(map(scene, range(30)), map(scene, range(100, 110)), math.inf, progress=False, max_steps=250)


def test_cells_carry_the_box_they_lie_in():
    box = np.array([[0.2, 0.3, 0.6, 0.8]], np.float32)
    wanted = targets(box)
    inside = wanted[6].bool()
    assert inside.float().mean() == pytest.approx(0.4 * 0.5, abs=0.02)
    boxes = _to_boxes(wanted[2:6].flatten(1).T)[inside.flatten()]
    torch.testing.assert_close(boxes, torch.from_numpy(box).expand_as(boxes), atol=1e-4, rtol=0)


def test_the_smaller_of_two_overlapping_boxes_owns_the_cell():
    large, small = [0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.6, 0.6]
    wanted = targets(np.array([small, large], np.float32))
    middle = wanted[2:6, GRID[0] // 2, GRID[1] // 2].exp()
    assert middle.sum() == pytest.approx(0.4, abs=0.01)


def test_no_boxes_want_nothing():
    assert targets(np.zeros((0, 4), np.float32)).abs().sum() == 0


def test_overlap_of_known_boxes():
    a = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1]], float)
    np.testing.assert_allclose(overlap(a, np.array([[0.5, 0, 1, 1]], float)), [[0.5], [0]])


def test_the_finder_finds_toy_cars_it_never_saw(finder):
    assert finder.recall > 0.7
    assert finder.precision > 0.5


def test_boxes_that_are_obeyed_score_above_chance(finder):
    meter = LayoutMeter(finder)
    scenes = {f"clip{seed}": scene(seed) for seed in range(200, 212)}
    for clip, (image, _) in scenes.items():
        meter.add(image, clip, {name: boxes for name, (_, boxes) in scenes.items()})
    result = meter.result()
    assert result["boxes_found"] > 0.7
    assert result["boxes_found"] > result["boxes_found_shuffled"]
    assert result["boxes_occupancy"] > result["boxes_occupancy_shuffled"]


def test_an_empty_street_shows_none_of_the_cars_it_was_asked_for(finder):
    street = scene(0)[0]
    street[50:] = 95
    meter = LayoutMeter(finder)
    meter.add(street, "clip", {"clip": np.array([[0.3, 0.5, 0.6, 0.9]], np.float32)})
    assert meter.result()["boxes_found"] == 0


def test_the_threshold_has_the_best_f1_on_the_frames_it_is_chosen_on(finder):
    frames = [scene(seed) for seed in range(100, 110)]  # those held out above
    seen = [(*finder.look(image)[:2], boxes) for image, boxes in frames]
    rates = [_recall_precision(seen, threshold) for threshold in THRESHOLDS]
    f1 = {round(t, 2): 2 * r * p / (r + p) for t, (r, p) in zip(THRESHOLDS, rates, strict=True) if r + p > 0}
    assert f1[round(finder.threshold, 2)] == max(f1.values())
    assert (finder.recall, finder.precision) in rates


def test_a_surer_finder_finds_a_part_of_what_a_less_sure_one_finds(finder):
    image = scene(301)[0]
    boxes, scores, _ = finder.look(image)
    found = finder.find(image)[0]
    np.testing.assert_array_equal(found, boxes[scores >= finder.threshold])
    assert len(found) <= len(boxes)


def test_a_saved_finder_answers_the_same(finder, tmp_path):
    finder.save(tmp_path / "finder.safetensors")
    loaded = CarFinder.load(tmp_path / "finder.safetensors")
    image = scene(300)[0]
    np.testing.assert_array_equal(loaded.find(image)[0], finder.find(image)[0])
    assert loaded.recall == pytest.approx(finder.recall)
    assert loaded.threshold == pytest.approx(finder.threshold)


def test_a_file_that_is_no_finder_is_told(tmp_path):
    (tmp_path / "finder.safetensors").write_bytes(b"something")
    with pytest.raises(UserError, match="no car finder"):
        CarFinder.load(tmp_path / "finder.safetensors")


def test_frames_without_vehicles_cannot_train_a_finder():
    with pytest.raises(UserError, match="no vehicle boxes"):
        train_finder([(scene(0)[0], np.zeros((0, 4), np.float32))], [], 1, progress=False)


def test_only_known_vehicles_are_asked_for():
    layout = Layout.unknown(2, slots=3)
    layout.classes[:] = torch.tensor([CLASSES.index("car"), CLASSES.index("pedestrian"), NO_BOX])
    layout.boxes[..., 2:] = 0.5
    layout.known[0] = True
    assert vehicle_boxes(layout, 0).shape == (1, 4)
    assert vehicle_boxes(layout, 1).shape == (0, 4)
