"""The types that flow everywhere."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.testing import assert_close

from drivesim.clip import NO_BOX, Camera, Layout, from_uint8, to_uint8
from drivesim.data.store import ego_motion


def layout(sides: list[float], classes: list[int] | None = None) -> Layout:
    """One frame of squares at the origin with these sides; track i belongs to box i."""
    n = len(sides)
    boxes = torch.tensor([[0, 0, side, side] for side in sides])[None]
    kinds = torch.tensor([classes or [0] * n])
    known = torch.ones(1).bool()
    return replace(Layout.unknown(1, slots=n), boxes=boxes, classes=kinds, tracks=torch.arange(n)[None], known=known)


def test_where_nobody_says_how_it_was_driven_it_goes_straight_on_at_the_given_speed():
    known = replace(Layout.unknown(3), travel=torch.tensor([0.0, 5, 9]), heading=torch.tensor([0.0, 0.1, 0.2]))
    times = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(known.driven(times, 8.0).travel, known.travel)
    assert torch.equal(known.driven(times, 8.0).heading, known.heading)
    assert Layout.unknown(3).driven(times, 8.0).travel.tolist() == [0, 4, 8]
    assert Layout.unknown(3).driven(times, 8.0).heading.tolist() == [0, 0, 0]


def test_in_a_mirror_boxes_change_sides_and_empty_slots_stay_empty():
    boxes = torch.tensor([[[0.1, 0.2, 0.4, 0.5], [0.0, 0, 0, 0]]])
    seen = replace(layout([0.1, 0.1], [0, NO_BOX]), boxes=boxes).mirrored()
    assert_close(seen.boxes, torch.tensor([[[0.6, 0.2, 0.9, 0.5], [0.0, 0, 0, 0]]]))
    assert seen.classes.tolist() == [[0, NO_BOX]]
    assert_close(seen.mirrored().boxes, boxes)


def test_in_a_mirror_a_bend_goes_the_other_way_as_poses_in_a_mirror_do():
    rng = np.random.default_rng(0)
    turns = Rotation.from_euler("yxz", np.cumsum(rng.normal(0, 0.1, (9, 3)), 0)).as_matrix()
    places = np.cumsum(rng.normal(0, 1, (9, 3)), 0)
    mirror = np.diag([-1.0, 1, 1])

    def driven(turns: np.ndarray, places: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        poses = np.hstack([places, Rotation.from_matrix(turns).as_quat()])
        frames = pd.DataFrame(poses, columns=["x_m", "y_m", "z_m", "qx", "qy", "qz", "qw"])
        return tuple(torch.from_numpy(part) for part in ego_motion(frames))

    travel, heading = driven(turns, places)
    seen = replace(Layout.unknown(9), travel=travel, heading=heading).mirrored()
    expected = driven(mirror @ turns @ mirror, places @ mirror)
    assert_close((seen.travel, seen.heading), expected, atol=1e-5, rtol=1e-5)


def test_in_a_mirror_cars_and_the_wheel_turn_the_other_way():
    solids = torch.tensor([[[10.0, 4, 2, 1.5, 0.3]]])
    one = replace(layout([0.1]), solids=solids, turn=torch.tensor([0.2]), steering=torch.tensor([1.0]))
    seen = one.mirrored()
    assert_close(seen.solids, torch.tensor([[[10, 4, 2, 1.5, -0.3]]]))
    assert (seen.turn.item(), seen.steering.item()) == (-one.turn.item(), -1)
    assert_close(vars(seen.mirrored()), vars(one), equal_nan=True)


def test_speed_and_turn_are_the_slope_of_the_way_driven_where_they_are_not_known():
    times = torch.tensor([0.0, 0.5, 1.5, 2.0])
    way = replace(Layout.unknown(4), travel=3 + 5 * times, heading=0.2 * times)
    assert_close(way.moving(times).speed, torch.full((4,), 5.0))
    assert_close(way.moving(times).turn, torch.full((4,), 0.2))
    said = replace(way, speed=torch.tensor([1.0, float("nan"), 2, 3]))
    assert_close(said.moving(times).speed, torch.tensor([1.0, 5, 2, 3]))
    assert Layout.unknown(4).moving(times).speed.isnan().all()
    assert Layout.unknown(1).moving(torch.zeros(1)).speed.isnan().all()


def test_boxes_in_space_follow_their_boxes_when_slots_are_cropped_or_padded():
    solids = torch.arange(15.0).view(1, 3, 5)
    three = replace(layout([0.1, 0.5, 0.3]), solids=solids)
    assert_close(three.pad(2).solids, solids[:, [1, 2]])
    assert_close(three.pad(4).solids[:, :3], solids)
    assert three.pad(4).solids[:, 3].isnan().all()
    part = three.cropped(0.2, 0.2, 0.5, 0.5)
    assert part.solids.isnan().all(-1).tolist() == [[True, False, True]]
    assert_close(part.solids[0, 1], solids[0, 1])


def test_boxes_follow_a_crop_and_those_that_leave_it_are_emptied():
    boxes = torch.tensor([[[0.5, 0.5, 0.7, 0.6], [0.1, 0.5, 0.5, 0.7], [0.0, 0.0, 0.2, 0.2], [0.22, 0.5, 0.26, 0.7]]])
    part = replace(layout([0.1] * 4, [0, 1, 2, 3]), boxes=boxes).cropped(0.25, 0.5, 0.5, 0.5)
    assert part.classes.tolist() == [[0, 1, NO_BOX, 3]]
    assert part.tracks.tolist() == [[0, 1, NO_BOX, 3]]
    expected = [[0.5, 0, 0.9, 0.2], [0, 0, 0.5, 0.4], [0, 0, 0, 0], [0, 0, 0.02, 0.4]]
    assert_close(part.boxes[0], torch.tensor(expected))
    assert part.crowdedness.isnan().all()


def test_a_sliver_of_a_box_is_no_box():
    boxes = torch.tensor([[[0.0, 0, 0.2, 0.2], [0.0, 0, 0.2, 0.2]]])
    whole = replace(layout([0.2, 0.2]), boxes=boxes)
    assert whole.cropped(0.16, 0, 0.5, 1).classes.tolist() == [[0, 0]]  # a fifth is left
    assert whole.cropped(0.18, 0, 0.5, 1).classes.tolist() == [[NO_BOX, NO_BOX]]  # a tenth


def test_padding_to_fewer_slots_keeps_the_largest_boxes():
    small = layout([0.1, 0.5, 0.3, 0.4]).pad(2)
    assert small.tracks.tolist() == [[1, 3]]
    assert_close(small.boxes[0, :, 2], torch.tensor([0.5, 0.4]))


def test_padding_drops_empty_slots_before_boxes():
    kept = layout([0.9, 0.1, 0.2], [NO_BOX, 0, 3]).pad(2)
    assert kept.tracks.tolist() == [[2, 1]]
    assert kept.classes.tolist() == [[3, 0]]


def test_padding_to_more_slots_adds_empty_ones():
    grown = layout([0.1]).pad(3)
    assert grown.classes.tolist() == [[0, NO_BOX, NO_BOX]]
    assert grown.tracks.tolist() == [[0, NO_BOX, NO_BOX]]
    assert grown.boxes.shape == (1, 3, 4)
    assert grown.pad(1).boxes.equal(layout([0.1]).boxes)


def test_indexing_stacking_and_joining_move_all_tensors_together():
    frames = Layout.cat([layout([0.1]), layout([0.2]), layout([0.3])])
    assert frames.num_frames == 3
    assert_close(frames[torch.tensor([2, 0])].boxes[:, 0, 2], torch.tensor([0.3, 0.1]))
    batch = Layout.stack([frames, frames])
    assert batch.classes.shape == (2, 3, 1)
    assert batch.num_frames == 3
    assert Layout.cat([batch, batch], 1).night.shape == (2, 6)


def test_every_8_bit_value_survives_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    floats = from_uint8(values)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert to_uint8(floats).equal(values)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_one_metre_at_ten_metres_is_a_tenth_of_the_focal_length():
    camera = Camera(torch.tensor([[500.0, 0, 512], [0, 500, 256], [0, 0, 1]]).numpy(), 512, 1024)
    points = torch.tensor([[0.0, 0, 10], [1, 0, 10], [0, -2, 10]]).numpy()
    assert_close(torch.from_numpy(camera.project(points)), torch.tensor([[512.0, 256], [562, 256], [512, 156]]))
    with pytest.raises(ValueError, match="1 of 3 points"):
        camera.project(points - [[0, 0, 0], [0, 0, 10], [0, 0, 0]])
