import cv2
import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from eval.similarity import PSNR_CAP, SimilarityMeter, psnr, stlpips


@pytest.fixture
def frame(drive) -> np.ndarray:
    return drive(0, frames=1, size=(128, 256))[0]


def noisy(frame: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(frame + np.random.default_rng(0).normal(0, sigma, frame.shape), 0, 255).astype(np.uint8)


def test_psnr_equals_torchmetrics(frame):
    other = noisy(frame, 20)
    expected = peak_signal_noise_ratio(torch.tensor(other).float(), torch.tensor(frame).float(), data_range=255.0)
    assert psnr(frame, other) == pytest.approx(float(expected), rel=1e-5)


def test_equal_frames_are_at_distance_zero(frame):
    assert psnr(frame, frame) == float("inf")
    assert stlpips(frame, frame) == 0


def test_stlpips_minds_blur_and_noise_and_hardly_a_shift(frame):
    shift = stlpips(frame, np.roll(frame, 1, 1))
    blur = stlpips(frame, cv2.GaussianBlur(frame, (0, 0), 6))
    assert shift < 0.02
    assert min(blur, stlpips(frame, noisy(frame, 60))) > 5 * shift


def test_stlpips_grows_with_noise_and_does_not_care_for_the_order(frame):
    distances = [stlpips(frame, noisy(frame, sigma)) for sigma in (10, 30, 90)]
    assert distances == sorted(distances)
    assert stlpips(noisy(frame, 30), frame) == pytest.approx(distances[1], rel=1e-5)


def test_curves_are_means_over_clips_in_order_of_time(frame):
    meter = SimilarityMeter()
    for name, sigma in (("a", 10), ("b", 40)):
        meter.add(name, 0.5, noisy(frame, sigma), frame, frame)
        meter.add(name, 0.0, frame, frame, frame)
    (start, first, n), (later, second, _) = meter.curve("psnr")
    assert (start, first, n, later) == (0.0, PSNR_CAP, 2, 0.5)
    assert second == pytest.approx((psnr(frame, noisy(frame, 10)) + psnr(frame, noisy(frame, 40))) / 2)


def test_the_start_frame_is_given_and_does_not_count_in_the_mean(frame):
    meter = SimilarityMeter()
    meter.add("a", 0.0, frame, frame, frame)
    meter.add("a", 1.0, noisy(frame, 20), frame, frame)
    assert meter.mean("psnr") == pytest.approx(psnr(noisy(frame, 20), frame))


def test_a_frozen_video_equals_the_start_frame_held_still(drive):
    clip, meter = drive(1, frames=3), SimilarityMeter()
    meter.add("a", 1.0, clip[0], clip[2], clip[0])
    assert meter.mean("psnr") == meter.mean("psnr_frozen")
    assert meter.mean("stlpips_start") == 0
