"""Poses and places of generated video against projection, and against the store's own reading of poses."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from data_prep.generated.space import LensOptions, centres, intrinsics, poses
from drivesim.clip import Camera
from drivesim.data.store import POSE, ego_motion
from drivesim.errors import UserError
from drivesim.generation.layout_file import Lens
from drivesim.geometry import corners, picture_box

LENS = Lens(0.63, 1.26, 0.48, 0.44)
CAMERA = Camera(intrinsics(LENS, 512, 1024), 512, 1024)


def things(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of random places, sizes and yaws before the camera: centres [n, 3] and solids [n, 5]."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 40, count)
    centre = np.stack([rng.uniform(-0.8, 0.8, count) * depth, rng.uniform(-0.2, 0.3, count) * depth, depth], 1)
    size, yaw = rng.uniform(0.5, 4.5, (count, 3)), rng.uniform(-np.pi, np.pi, count)
    return centre, np.column_stack([depth, size, yaw])


def outlines(centre: np.ndarray, solid: np.ndarray) -> np.ndarray:
    boxes = [picture_box(CAMERA, box) for box in corners(centre, solid[:, 1:4], solid[:, 4])]
    return np.array([(np.nan,) * 4 if box is None else box for box in boxes])


def test_boxes_are_placed_where_their_outline_was_projected_from():
    centre, solid = things(400)
    boxes = outlines(centre, solid)
    seen = np.isfinite(boxes).all(1)
    cut_both = ((boxes[:, :2] == 0) & (boxes[:, 2:] == 1)).any(1)
    found = centres(boxes[seen & ~cut_both], solid[seen & ~cut_both], LENS)
    np.testing.assert_allclose(found, centre[seen & ~cut_both], atol=1e-9)
    cut = ((boxes == 0) | (boxes == 1)).any(1)
    assert (seen & cut & ~cut_both).sum() > 20  # the other side is enough
    assert seen.sum() > 200


def test_a_car_beside_the_camera_is_placed_by_the_part_before_it():
    centre = np.array([[-2.2, 0.8, 2.0], [2.4, 0.7, 1.0]])
    solid = np.array([[2.0, 4.5, 1.8, 1.45, 0.02], [1.0, 4.2, 1.7, 1.5, np.pi]])
    boxes = outlines(centre, solid)
    assert (boxes[:, [0, 2]] == [[0, boxes[0, 2]], [boxes[1, 0], 1]]).all()  # it reaches out of the picture
    assert corners(centre, solid[:, 1:4], solid[:, 4])[..., 2].min() < 0
    np.testing.assert_allclose(centres(boxes, solid, LENS), centre, atol=1e-9)


def test_no_place_is_made_up_where_the_outline_does_not_tell():
    solid = np.array([[10.0, 4, 2, 1.5, 0], [10, 4, 2, 1.5, 0], [1.0, 4, 2, 1.5, 0], [10, np.nan, 2, 1.5, 0]])
    solid = np.vstack([solid, [-5.0, 4, 2, 1.5, 0]])
    boxes = np.array([[0, 0.4, 1, 0.6], [0.4, 0, 0.6, 1], [0, 0.4, 1, 0.9], [0.4, 0.4, 0.6, 0.6]])
    boxes = np.vstack([boxes, [0.2, 0.4, 0.6, 0.9]])
    assert np.isnan(centres(boxes, solid, LENS)).all()
    assert centres(boxes[:0], solid[:0], LENS).shape == (0, 3)


def test_the_way_driven_is_read_back_from_the_poses():
    rng = np.random.default_rng(1)
    travel = np.cumsum(rng.uniform(0, 0.6, 90))
    heading = np.cumsum(rng.uniform(-0.03, 0.03, 90))
    found = poses(travel, heading)
    turned = Rotation.from_matrix(found[:, :3, :3]).as_quat()
    table = pd.DataFrame(np.hstack([found[:, :3, 3], turned]), columns=POSE)
    again = ego_motion(table)
    np.testing.assert_allclose(again[0], travel - travel[0], atol=1e-5)
    np.testing.assert_allclose(again[1], heading - heading[0], atol=1e-6)


def test_a_steady_bend_to_the_right_is_a_circle():
    angle = np.linspace(0, np.pi / 2, 201)
    step = angle[1]
    forward = 20 * 2 * np.sin(step / 2) * np.cos(step / 2)  # what a chord of a circle of 20 m leads straight on
    found = poses(np.arange(201) * forward, angle)
    np.testing.assert_allclose(found[:, 0, 3], 20 * (1 - np.cos(angle)), atol=1e-9)  # to the east
    np.testing.assert_allclose(found[:, 1, 3], 20 * np.sin(angle), atol=1e-9)
    np.testing.assert_allclose(found[-1, :3, 2], [1, 0, 0], atol=1e-9)  # looks east in the end
    assert (found[:, 2, 3] == 1.5).all()


def test_an_unknown_way_has_no_poses():
    assert poses(np.array([0.0, np.nan]), np.zeros(2)) is None


def test_a_nominal_lens_has_square_pixels_and_the_field_of_view_that_is_asked_for():
    matrix = intrinsics(LensOptions(fov=90, horizon=0.4).lens(512, 1024), 512, 1024)
    np.testing.assert_allclose(matrix, [[512, 0, 512], [0, 512, 204.8], [0, 0, 1]])
    for options in (LensOptions(fov=180), LensOptions(horizon=9)):
        with pytest.raises(UserError, match="expected"):
            options.check()
