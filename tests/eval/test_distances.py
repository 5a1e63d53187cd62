import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.kid import poly_mmd

from eval.distances import frechet, kernel, spread


def sample(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 0.3 + shift).astype(np.float32)


def frechet_by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a.astype(float), rowvar=False), np.cov(b.astype(float), rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


@pytest.mark.parametrize(("n", "m"), [(200, 200), (300, 60), (40, 200)])
def test_frechet_equals_the_textbook_formula(n, m):
    a, b = sample(n, 24, 0), sample(m, 24, 1, shift=0.5)
    assert frechet(a, b) == pytest.approx(frechet_by_sqrtm(a, b), rel=1e-5)


def test_frechet_with_fewer_rows_than_features_equals_the_formula_with_a_regularised_root():
    a, b = sample(20, 64, 0), sample(30, 64, 1)
    cov_a, cov_b = np.cov(a.astype(float), rowvar=False), np.cov(b.astype(float), rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = vectors * np.sqrt(values.clip(0)) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * common
    assert frechet(a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [10, 100])
def test_frechet_of_a_set_with_itself_is_zero(n):
    a = sample(n, 32, 0)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9 * (a**2).sum())


def test_frechet_does_not_care_which_set_comes_first():
    a, b = sample(50, 16, 0), sample(80, 16, 1)
    assert frechet(a, b) == pytest.approx(frechet(b, a))


def test_frechet_of_a_pure_shift_is_its_squared_length():
    a = sample(100, 8, 0)
    assert frechet(a, a + np.float32(2)) == pytest.approx(8 * 2**2, rel=1e-4)


def test_kernel_equals_torchmetrics():
    a, b = sample(60, 16, 0), sample(60, 16, 1, shift=0.3)
    expected = float(poly_mmd(torch.from_numpy(a).double(), torch.from_numpy(b).double()))
    assert kernel(a, b) == pytest.approx(expected, rel=1e-6)


def test_kernel_of_two_draws_of_one_kind_is_zero_on_average_at_any_n():
    for n in (10, 40):
        values = [kernel(sample_normal(n, 2 * i), sample_normal(n, 2 * i + 1)) for i in range(100)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 10


def sample_normal(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 8))


def test_the_spread_from_halves_is_that_of_fresh_draws():
    def shift(a, b):
        return float(a.mean() - b.mean())

    fresh = np.std([shift(sample_normal(60, 2 * i), sample_normal(60, 2 * i + 1)) for i in range(200)])
    names = np.arange(60).astype(str)
    halves = [spread(shift, sample_normal(60, i), sample_normal(60, 999 + i), names, names, 30) for i in range(10)]
    assert np.mean(halves) == pytest.approx(fresh, rel=0.25)


def test_the_spread_of_three_videos_is_unknown():
    names = np.array(["a", "a", "b", "c"])
    assert np.isnan(spread(frechet, sample_normal(4, 0), sample_normal(4, 1), names, names))


def test_the_spread_repeats_with_its_seed():
    a, b, names = sample_normal(20, 0), sample_normal(20, 1), np.repeat(list("abcde"), 4)
    assert spread(frechet, a, b, names, names, seed=3) == spread(frechet, a, b, names, names, seed=3)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        frechet(sample(1, 4, 0), sample(5, 4, 1))


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="expected"):
        kernel(sample(5, 4, 0), sample(5, 3, 1))
