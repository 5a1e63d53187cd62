"""RGB of decoded pictures, against the matrices of ITU-R BT.601 and BT.709 as they are printed."""

import av
import cv2
import numpy as np
import pytest

from drivesim.data.colour import UNBIASED, rgb_matrix, to_rgb

# BT.709 and BT.601 for 8 bits: R, G, B of Y - 16, Cb - 128, Cr - 128 (limited) or of Y, Cb - 128, Cr - 128 (full).
LIMITED_709 = [[1.1644, 0, 1.7927], [1.1644, -0.2132, -0.5329], [1.1644, 2.1124, 0]]
LIMITED_601 = [[1.1644, 0, 1.5960], [1.1644, -0.3918, -0.8130], [1.1644, 2.0172, 0]]
FULL_601 = [[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]]


def smooth(height, width, low, high, seed=0):
    noise = np.random.default_rng(seed).uniform(low, high, (3, 4))
    return (
        np.clip(cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR), low, high).round().astype(np.uint8)
    )


def frame(format="yuv420p", height=64, width=96, space=1, color_range=1):
    """A smooth picture and its planes at full size, float [H, W, 3]."""
    made = av.VideoFrame(width, height, format)
    half = 1 if "444" in format else 2
    planes = [smooth(height, width, 90, 150)] + [smooth(-(-height // half), width // half, 110, 146, i) for i in (1, 2)]
    for plane, values in zip(made.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = values
        plane.update(padded.tobytes())
    made.colorspace, made.color_range = space, color_range
    return made, np.stack([cv2.resize(p.astype(float), (width, height)) for p in planes], -1)


@pytest.mark.parametrize(
    ("tags", "matrix", "black"),
    [
        ({"space": 1}, LIMITED_709, 16),
        ({"space": 5}, LIMITED_601, 16),
        ({"space": 6}, LIMITED_601, 16),
        ({"space": 2}, LIMITED_601, 16),
        ({"space": 2, "height": 720}, LIMITED_709, 16),
        ({"space": 6, "color_range": 2}, FULL_601, 0),
        ({"space": 6, "format": "yuvj420p"}, FULL_601, 0),
    ],
)
def test_colours_are_those_of_the_tagged_matrix_and_range(tags, matrix, black):
    made, planes = frame(**tags)
    expected = (planes - [black, 128, 128]) @ np.transpose(matrix)
    error = to_rgb(made) - expected.clip(0, 255)
    assert np.abs(error).max() < 3  # rounding of chroma, amplified by 2.1
    assert np.abs(error.mean((0, 1))).max() < 0.3


def test_the_matrix_is_the_printed_one():
    matrix = rgb_matrix(0.2126, 0.0722, full_range=False)
    np.testing.assert_allclose(matrix[:, :3], LIMITED_709, atol=1e-4)
    np.testing.assert_allclose(matrix @ [16, 128, 128, 1], 0, atol=1e-9)
    np.testing.assert_allclose(matrix @ [235, 128, 128, 1], 255, atol=1e-9)


def test_noise_is_neither_darkened_nor_tinted():
    made = av.VideoFrame(256, 128, "yuv420p")
    rng = np.random.default_rng(0)
    for plane, (low, high) in zip(made.planes, [(80, 170), (118, 138), (118, 138)], strict=True):
        plane.update(rng.integers(low, high, plane.buffer_size, np.uint8).tobytes())
    made.colorspace, made.color_range = 1, 1
    exact = made.to_ndarray(format="rgb24", interpolation=UNBIASED).astype(float)
    assert np.abs((to_rgb(made) - exact).mean((0, 1))).max() < 0.15


@pytest.mark.parametrize("tags", [{"format": "yuv444p"}, {"space": 9}, {"height": 65}])
def test_other_kinds_of_pictures_are_left_to_swscale(tags):
    made, _ = frame(**tags)
    np.testing.assert_array_equal(to_rgb(made), made.to_ndarray(format="rgb24", interpolation=UNBIASED))
