"""Distances between two sets of features. They know matrices [n, d] only; what made the rows is the caller's affair."""

from collections.abc import Callable

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], float]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to a [n, d] and b [m, d]; >= 0, smaller is closer.

    |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^1/2) with unbiased covariances (Heusel et al. 2017), float64.
    With S = X^T X, tr((S_a S_b)^1/2) is the sum of the singular values of X_a X_b^T. No root of a singular matrix is
    taken, so that n < d, where sqrtm turns unstable, is as exact as n > d.
    raises  ValueError with fewer than 2 rows or unequal columns
    """
    _check(a, b)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    shift = float(((a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)) ** 2).sum())
    common = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, shift + float((root_a**2).sum() + (root_b**2).sum() - 2 * common))


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """X [min(n, d), d] with X^T X the covariance."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    centred /= np.sqrt(len(features) - 1)
    return centred if len(features) <= features.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018, KID), of all rows at once.

    Its expectation does not depend on n, unlike the Frechet distance's; it can be slightly negative near 0.
    raises  ValueError with fewer than 2 rows or unequal columns
    """
    _check(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    return _off_diagonal_mean(_polynomial(a, a)) + _off_diagonal_mean(_polynomial(b, b)) - 2 * _polynomial(a, b).mean()


def _polynomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _off_diagonal_mean(matrix: np.ndarray) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


def spread(
    distance: Distance,
    a: np.ndarray,
    b: np.ndarray,
    groups_a: np.ndarray,
    groups_b: np.ndarray,
    repeats: int = 8,
    seed: int = 0,
) -> float:
    """Standard error of distance(a, b), from random halves (the delete-half jackknife, Shao and Wu 1989).

    The standard deviation over half-samples drawn without replacement estimates that of the full sample. A bootstrap
    would repeat rows, and repeated rows shrink the covariance.
    groups_a  [n] source of each row, of any kind: rows of one video are not independent, so they are drawn together
    returns   nan when a set has fewer than 4 groups
    """
    rng = np.random.default_rng(seed)
    if min(len(np.unique(groups_a)), len(np.unique(groups_b))) < 4:
        return float("nan")
    values = [distance(a[_half(groups_a, rng)], b[_half(groups_b, rng)]) for _ in range(repeats)]
    return float(np.std(values, ddof=1))


def _half(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    names = np.unique(groups)
    return np.isin(groups, rng.choice(names, len(names) // 2, replace=False))


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} rows; a distance needs at least 2 of each")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features of shapes {a.shape} and {b.shape}; expected [n, d] and [m, d]")
