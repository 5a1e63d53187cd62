"""The closed-form start of the upsampler."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drivesim.models import filters
from drivesim.models.filters import EdgeFilters, gradients


def drawn(count: int, seed: int, size: int = 96) -> torch.Tensor:
    """Pictures [count, 3, size, size] of half planes one over another, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    pictures = np.zeros((count, 3, size, size), np.float32)
    for picture in pictures:
        for _ in range(6):
            angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-size / 3, size / 3)
            half = np.cos(angle) * (x - size / 2) + np.sin(angle) * (y - size / 2) > offset
            picture[:, half] = rng.uniform(-1, 1, (3, 1))
    return torch.from_numpy(pictures)


def shrunk(high: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The low resolution and what its bicubic enlargement misses."""
    low = F.avg_pool2d(high, factor)
    return low, high - F.interpolate(low, scale_factor=factor, mode="bicubic")


@pytest.fixture(scope="module")
def fitted() -> EdgeFilters:
    made = EdgeFilters(4)
    made.fit(*shrunk(drawn(200, 0), 4))
    return made


def test_filters_of_every_class_are_those_of_least_squares_by_numpy():
    low, missing = shrunk(drawn(8, 1, 32), 2)
    made = EdgeFilters(2, size=3)
    made.fit(low, missing)
    near = F.unfold(F.pad(low, [1] * 4, mode="replicate"), 3).unflatten(1, (3, 9)) - low.flatten(2)[:, :, None]
    x = near.permute(0, 3, 1, 2).reshape(-1, 27).double().numpy()
    y = F.pixel_unshuffle(missing, 2).flatten(2).transpose(1, 2).reshape(-1, 12).double().numpy()
    kind = made.classes(low).flatten().numpy()

    def ridge(x: np.ndarray, y: np.ndarray, towards: np.ndarray) -> np.ndarray:
        root = np.sqrt(len(x) * filters.NOISE**2 + filters.RARE)
        rows, wanted = np.concatenate([x, root * np.eye(27)]), np.concatenate([y, root * towards])
        return np.linalg.lstsq(rows, wanted, rcond=None)[0]

    shared = ridge(x, y, np.zeros((27, 12)))
    for i in range(len(made.weight)):
        expected = ridge(x[kind == i], y[kind == i], shared)
        assert_close(made.weight[i].double().numpy(), expected, atol=2e-5, rtol=1e-3)


def test_on_drawn_pictures_the_filters_undo_a_quarter_of_what_bicubic_enlargement_misses(fitted):
    low, missing = shrunk(drawn(6, 7), 4)
    assert (missing - fitted(low)).square().mean() < 0.75 * missing.square().mean()


def test_a_flat_picture_stays_flat(fitted):
    assert fitted(torch.full((1, 3, 8, 8), 0.3)).abs().max() < 1e-6


def test_the_negative_of_a_picture_has_the_same_classes(fitted):
    low, _ = shrunk(drawn(2, 3), 4)
    _, strength, *_ = gradients(low)
    same = fitted.classes(low) == fitted.classes(-low)
    assert same[strength > 1e-3].float().mean() > 0.99


def test_the_direction_of_a_ramp_is_that_of_its_brightness():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    for angle in (0.1, 0.25, 0.5, 0.8):
        ramp = 0.1 * (x * np.cos(angle * np.pi) + y * np.sin(angle * np.pi))
        direction, strength, coherence, side = (values[0, 4, 4] for values in gradients(ramp.expand(1, 3, 9, 9)))
        assert_close(direction, torch.tensor(angle))
        assert_close(strength, torch.tensor(0.1))
        assert_close(coherence, torch.tensor(1.0))
        assert abs(side) < 1e-4


def test_before_a_fit_nothing_is_added():
    assert torch.equal(EdgeFilters(2)(torch.rand(2, 3, 4, 6)), torch.zeros(2, 3, 8, 12))
