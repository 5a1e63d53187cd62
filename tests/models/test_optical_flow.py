"""Optical flow depends on its two pictures alone."""

import cv2
import numpy as np

from drivesim.models.optical_flow import flow


def test_flow_does_not_depend_on_the_pictures_before():
    noise = np.random.default_rng(0).integers(0, 255, (16, 32, 3), np.uint8)
    first = cv2.resize(noise, (64, 32), interpolation=cv2.INTER_CUBIC)
    second = np.roll(first, 4, 1)
    expected = flow(first, second)
    flow(*(cv2.resize(picture, (16, 8)) for picture in (first, second)))
    np.testing.assert_array_equal(flow(first, second), expected)
