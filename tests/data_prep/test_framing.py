import numpy as np
import pytest

from data_prep.framing import framed
from data_prep.source import Box, Frame
from drivesim.clip import Camera
from drivesim.geometry import corners, picture_box

K = np.array([[100.0, 0, 80], [0, 100.0, 60], [0, 0, 1]])


def recorded(*boxes: Box) -> Frame:
    return Frame(np.zeros((120, 160, 3), np.uint8), list(boxes), intrinsics=K)


@pytest.mark.parametrize("crop", ["top", "center", "bottom"])
def test_a_box_projected_after_cropping_is_the_box_projected_before_and_cropped(crop):
    solid = corners(np.array([[0.5, 0.2, 12.0]]), np.array([[4.0, 1.8, 1.5]]), np.array([0.3]))[0]
    before = picture_box(Camera(K, 120, 160), solid)
    after = framed(recorded(Box(1, "car", before)), (160, 320), crop)
    again = picture_box(Camera(after.intrinsics, 160, 320), solid)
    assert after.image.shape == (160, 320, 3)
    assert after.boxes[0].xyxy == pytest.approx(again, abs=1e-9)


def test_a_box_in_the_part_that_is_cropped_away_is_left_out():
    high, low = Box(1, "car", (0.4, 0.0, 0.6, 0.2)), Box(2, "car", (0.4, 0.5, 0.6, 0.7))
    assert [box.track for box in framed(recorded(high, low), (32, 64)).boxes] == [2]


def test_what_the_crop_hides_of_a_box_lowers_its_visibility():
    # 120 rows become the middle 80: of rows 10 to 30 half are left.
    box = Box(1, "car", (0.4, 10 / 120, 0.6, 30 / 120), visibility=0.8)
    assert framed(recorded(box), (80, 160)).boxes[0].visibility == pytest.approx(0.4)


def test_vehicles_are_counted_after_cropping_and_only_where_boxes_are_known():
    boxes = [Box(1, "car", (0.4, 0.5, 0.6, 0.7)), Box(2, "pedestrian", (0.1, 0.5, 0.2, 0.7))]
    assert framed(recorded(*boxes), (60, 120)).vehicles == 1
    assert np.isnan(framed(recorded(), (60, 120), has_boxes=False).vehicles)
