"""The map of a scene: pixels of the picture against places in the world."""

import numpy as np
import pytest

from data_prep.export.roadmap import Layer, origin_of, road_mask

DRIVE = np.array([[100.0, -50.0], [130.0, -50.0], [130.0, -20.0]])


def at(mask: np.ndarray, x: float, y: float) -> int:
    """The map at a place of the world: 0.1 m a pixel, up is +y."""
    column, row = (np.array([x, y]) - origin_of(DRIVE)) / 0.1
    return int(mask[len(mask) - 1 - int(row), int(column)])


def test_one_lane_along_the_drive_is_known():
    mask = road_mask(DRIVE, [])
    assert [at(mask, 115, -50 + off) for off in (-2.0, -1.5, 0, 1.5, 2.0)] == [0, 255, 255, 255, 0]
    assert [at(mask, 130 + off, -35) for off in (-2.0, -1.5, 0, 1.5, 2.0)] == [0, 255, 255, 255, 0]
    assert origin_of(DRIVE).tolist() == [40, -110]
    assert mask.shape == (1500, 1500)


@pytest.mark.parametrize("metres_per_pixel", [0.1, 0.25, 0.5])
def test_a_known_drivable_area_is_drawn_where_it_is(metres_per_pixel):
    rows, columns = round(20 / metres_per_pixel), round(40 / metres_per_pixel)
    shape = np.zeros((rows, columns), np.uint8)
    shape[: rows // 2, : columns // 4] = 255  # the upper half, 10 m, of the left quarter, 10 m
    mask = road_mask(DRIVE, [Layer(shape, 95.0, -55.0, metres_per_pixel)])
    edge = 0.06 + metres_per_pixel / 2
    inside = [(95 + edge, -45 + edge), (105 - edge, -45 + edge), (95 + edge, -35 - edge), (105 - edge, -35 - edge)]
    outside = [(95 - edge, -40), (105 + edge, -40), (100, -45 - edge), (100, -35 + edge)]
    assert [at(mask, x, y) for x, y in inside] == [255] * 4
    assert [at(mask, x, y) for x, y in outside] == [0] * 4
    assert np.count_nonzero(mask) == pytest.approx(100 * 100, rel=0.03)


def test_a_drivable_area_reaches_no_further_than_the_map():
    mask = road_mask(DRIVE, [Layer(np.full((10, 10), 255, np.uint8), 0.0, -200.0, 50.0)])
    assert mask.shape == (1500, 1500)
    assert mask.all()
