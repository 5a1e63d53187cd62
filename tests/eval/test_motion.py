import numpy as np
import pytest

from eval.motion import MotionMeter, expansion, flicker, flow, shrink


def meter(clip: np.ndarray, truth: np.ndarray | None = None, fps: float = 10) -> dict[str, float]:
    gauge = MotionMeter()
    gauge.add(clip, fps, truth)
    return gauge.result()


@pytest.fixture
def forward(drive) -> np.ndarray:
    return drive(0, frames=6, step=1.03, size=(128, 256))


def test_a_known_shift_comes_out(forward):
    field = flow(forward[0], np.roll(forward[0], (2, 4), (0, 1)))[20:-20, 20:-20]
    np.testing.assert_allclose(np.median(field, (0, 1)), [4, 2], atol=0.1)


def test_speed_is_told_in_widths_a_second_whatever_the_size_and_the_rate(forward):
    slide = np.stack([np.roll(forward[0], 4 * t, 1) for t in range(4)])  # 4 pixels of 256 a frame
    speed = meter(slide, fps=10)["flow_speed_dis"]
    assert speed == pytest.approx(4 / 256 * 10, rel=0.1)
    large = np.stack([np.kron(frame, np.ones((2, 2, 1), np.uint8)) for frame in slide])
    assert meter(large, fps=10)["flow_speed_dis"] == pytest.approx(speed, rel=0.05)
    assert meter(slide, fps=20)["flow_speed_dis"] == pytest.approx(2 * speed)


def test_driving_forward_expands_and_driving_backward_contracts(forward):
    assert meter(forward)["expansion_dis"] > 0.9
    assert meter(forward[::-1])["expansion_dis"] < -0.9


def test_expansion_of_a_still_picture_is_unknown(forward):
    assert np.isnan(expansion(np.zeros((32, 64, 2), np.float32)))


def test_expansion_follows_the_vanishing_point():
    ys, xs = np.mgrid[:64, :128].astype(np.float32)
    field = np.stack([xs - 0.3 * 128, ys - 0.7 * 64], -1) * 0.1
    assert expansion(field, (0.3, 0.7)) == pytest.approx(1, abs=1e-3)
    assert expansion(field, (0.9, 0.2)) < 0.8


def test_the_true_motion_has_no_error_and_standing_still_has_error_one(forward):
    assert meter(forward, forward)["flow_error_dis"] == 0
    frozen = np.repeat(forward[:1], len(forward), 0)
    assert meter(frozen, forward)["flow_error_dis"] == pytest.approx(1, abs=0.02)
    assert meter(forward[::-1].copy(), forward)["flow_error_dis"] > 1.5


def test_without_a_truth_the_error_is_unknown(forward):
    assert np.isnan(meter(forward)["flow_error_dis"])


def test_noise_flickers_and_smooth_motion_does_not(forward):
    noisy = np.clip(forward + np.random.default_rng(0).normal(0, 30, forward.shape), 0, 255).astype(np.uint8)
    assert flicker(forward[0], forward[0]) == 0
    assert flicker(noisy[0], noisy[1]) > 3 * flicker(forward[0], forward[1])


def test_shrinking_keeps_the_aspect():
    assert shrink(np.zeros((512, 1024, 3), np.uint8)).shape == (128, 256, 3)
