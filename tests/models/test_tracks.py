"""Boxes carried along their tracks, against the back of a car that a pinhole camera really sees."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from drivesim.clip import NO_BOX, Camera, Layout
from drivesim.models.motion import GRID, SceneFlow, centres
from drivesim.models.tracks import TrackedFlow, follow, pairs

HEIGHT, WIDTH = 64, 128
CAMERA = Camera(np.array([[100.0, 0, 64], [0, 100, 32], [0, 0, 1]]), HEIGHT, WIDTH)
CAR = np.array([[-0.9, -0.5], [0.9, 1.0]])  # metres: left top, right bottom of its flat back


def back_at(side: float, depth: float) -> list[float]:
    """The box of the car's back, fractions of the picture."""
    corners = CAMERA.project(np.array([[x + side, y, depth] for x, y in CAR]))
    return (corners / [WIDTH, HEIGHT]).flatten().tolist()


def layout(boxes: list[list[float]], tracks: list[int], slots: int = 4) -> Layout:
    """One frame [1] in which boxes of tracks are asked for."""
    empty = Layout.unknown(1, slots=slots)
    for slot, (box, track) in enumerate(zip(boxes, tracks, strict=True)):
        empty.boxes[0, slot], empty.tracks[0, slot], empty.classes[0, slot] = torch.tensor(box), track, 0
    empty.known[:] = True
    empty.travel[:], empty.heading[:] = 0.0, 0.0
    return empty


@pytest.fixture
def still() -> torch.Tensor:
    return centres(HEIGHT, WIDTH)[None]


def test_pixels_of_a_car_come_from_where_the_camera_saw_the_same_points_of_it(still):
    (side, depth), (new_side, new_depth) = (0.4, 9.0), (-0.7, 6.0)
    place = follow(still, layout([back_at(side, depth)], [7]), layout([back_at(new_side, new_depth)], [7]))
    offset = np.random.default_rng(0).uniform(0.1, 0.9, (50, 2)) * (CAR[1] - CAR[0]) + CAR[0]
    was, now = (
        CAMERA.project(np.column_stack([offset[:, 0] + x, offset[:, 1], np.full(50, z)]))
        for x, z in ((side, depth), (new_side, new_depth))
    )
    at = torch.tensor(now / [WIDTH, HEIGHT] * 2 - 1, dtype=torch.float32)[None, :, None]
    told = torch.nn.functional.grid_sample(place.permute(0, 3, 1, 2), at, align_corners=False)[0, :, :, 0].T
    assert_close(told, torch.tensor(was / [WIDTH, HEIGHT] * 2 - 1, dtype=torch.float32), atol=1e-4, rtol=0)


def test_outside_its_box_nothing_changes(still):
    source, target = layout([back_at(0.4, 9.0)], [7]), layout([back_at(-0.7, 6.0)], [7])
    x1, y1, x2, y2 = (target.boxes[0, 0] * 2 - 1).tolist()
    here = still[0]
    outside = (here[..., 0] < x1) | (here[..., 0] > x2) | (here[..., 1] < y1) | (here[..., 1] > y2)
    assert torch.equal(follow(still, source, target)[0][outside], here[outside])
    assert 0 < (~outside).sum() < outside.sum()


def test_the_nearer_of_two_cars_hides_the_other_in_whatever_order_they_are_asked_for(still):
    near, far = [0.3, 0.4, 0.6, 0.9], [0.4, 0.4, 0.7, 0.6]
    before = [0.1, 0.4, 0.4, 0.9], [0.6, 0.4, 0.9, 0.6]
    one = follow(still, layout(list(before), [1, 2]), layout([near, far], [1, 2]))
    two = follow(still, layout(list(before), [1, 2]), layout([far, near], [2, 1]))
    assert torch.equal(one, two)
    row, column = int(0.5 * HEIGHT), int(0.5 * WIDTH)  # in both boxes
    assert one[0, row, column, 0] == pytest.approx(float(still[0, row, column, 0]) - 0.4, abs=1e-5)


@pytest.mark.parametrize(
    ("box", "track", "why"),
    [
        ([0.0, 0.3, 0.2, 0.6], 7, "cut off by the edge"),
        ([0.2, 0.3, 0.4, 0.6], 8, "another car"),
        ([0.2, 0.3, 0.4, 0.6], NO_BOX, "of no track"),
    ],
)
def test_what_is_no_whole_box_of_the_same_track_moves_with_the_scene(still, box, track, why):
    target = layout([[0.5, 0.3, 0.7, 0.6]], [NO_BOX if track == NO_BOX else 7])
    assert torch.equal(follow(still, layout([box], [track]), target), still), why


def test_boxes_that_are_unknown_are_not_carried(still):
    source, target = layout([back_at(0, 9.0)], [7]), layout([back_at(0, 6.0)], [7])
    source.known[:] = False
    assert not pairs(source, target)[2].any()
    assert torch.equal(follow(still, source, target), still)


def test_a_car_is_carried_to_its_box_while_the_scene_moves_on():
    flow = SceneFlow()
    flow.fields[0, 0] = 0.1  # every metre, what is seen moves a twentieth of the picture to the left
    source, target = layout([[0.2, 0.25, 0.4, 0.75]], [3]), layout([[0.5, 0.25, 0.7, 0.75]], [3])
    target.travel[:] = 1.0
    columns = torch.linspace(-1, 1, WIDTH).expand(1, 3, HEIGHT, WIDTH)
    moved, seen = TrackedFlow(flow)(columns, source, target)
    middle = moved[0, 0, HEIGHT // 2]
    assert middle[int(0.6 * WIDTH)] == pytest.approx(float(columns[0, 0, 0, int(0.3 * WIDTH)]), abs=0.02)
    assert middle[int(0.1 * WIDTH)] == pytest.approx(float(columns[0, 0, 0, int(0.15 * WIDTH)]), abs=0.02)
    assert seen[0, 0, 0, -1] == 0
    assert seen.shape == (1, 1, HEIGHT, WIDTH)
    assert flow.fields.shape[-2:] == GRID
