"""The upsampler's task: what is denoised in every space, what is laid beside it, how strongly that is augmented."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drivesim.clip import Layout
from drivesim.data.windows import Batch
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tiles import Tiles
from drivesim.diffusion.upsample import Pixels, Upsample, fold, unfold
from drivesim.errors import UserError
from drivesim.models.denoiser import DenoiserConfig

NETWORK = DenoiserConfig(
    block_out_channels=[8, 8], layers_per_block=[1, 1], attention=[False] * 2, token_dim=0, groups=4
)
PAPER = Upsample(patch=1, target="picture", filters=False, beside="bicubic", max_level=250)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def batch(high: torch.Tensor) -> Batch:
    return Batch(high, Layout.unknown(*high.shape[:2]), torch.zeros(len(high)))


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator()) * 2 - 1


@pytest.mark.parametrize("patch", [1, 4, 8])
def test_folding_pixels_loses_nothing(patch):
    x = torch.randn(2, 3, 3, 16, 32)
    folded = fold(x, patch)
    assert folded.shape == (2, 3, 3 * patch**2, 16 // patch, 32 // patch)
    assert torch.equal(unfold(folded, patch), x)


@pytest.mark.parametrize("target", ["residual", "picture"])
@pytest.mark.parametrize(("patch", "beside"), [(8, "folded"), (4, "folded"), (4, "bicubic"), (1, "bilinear")])
@pytest.mark.parametrize("max_level", [0, 250])
def test_what_is_denoised_gives_back_the_picture_and_fits_the_network(target, patch, beside, max_level):
    task = Upsample(patch=patch, target=target, beside=beside, max_level=max_level, residual_std=0.13, filters=False)
    denoiser, high = task.network(NETWORK).build(), pictures(2, 2, 3, 32, 64)
    problem = task.pose(batch(high), denoiser, generator())
    low = F.avg_pool2d(high.flatten(0, 1), 4).unflatten(0, (2, 2))
    assert_close(Pixels(task, None).decode(problem.x, low, Tiles(8, 16)), high)
    assert problem.x.shape == (2, 2, task.channels, 32 // patch, 64 // patch)
    assert problem.planes.shape == (2, 2, task.planes, 32 // patch, 64 // patch)
    with torch.no_grad():
        out = denoiser(problem.x, torch.tensor([3, 900]), problem.planes, level=problem.level)
    assert out.shape == problem.x.shape


def test_the_residual_is_what_bicubic_enlargement_misses():
    task, high = Upsample(residual_std=0.13, filters=False), pictures(1, 2, 3, 32, 64)
    problem = task.pose(batch(high), task.network(NETWORK).build(), generator())
    low = F.avg_pool2d(high[0], 4)
    assert_close(unfold(problem.x, 8)[0] * 0.13, high[0] - F.interpolate(low, (32, 64), mode="bicubic"))


def test_the_picture_is_denoised_itself_where_that_is_asked_for():
    high = pictures(2, 1, 3, 16, 16)
    problem = PAPER.pose(batch(high), PAPER.network(NETWORK).build(), generator())
    assert torch.equal(problem.x, high)


def test_filters_that_were_fitted_leave_less_residual():
    task = Upsample(factor=2, patch=4)
    high = (F.interpolate(torch.rand(4, 3, 12, 12), (32, 32), mode="bilinear") * 2 - 1).unflatten(0, (4, 1))
    low = task.shrink(high)
    denoiser, plain = task.network(NETWORK).build(), replace(task, filters=False).network(NETWORK).build()
    denoiser.filters.fit(low[:, 0], (high - task.enlarge(low))[:, 0])
    with_filters, without = (task.pose(batch(high), d, generator()).x for d in (denoiser, plain))
    assert with_filters.std() < 0.9 * without.std()
    assert_close(Pixels(task, denoiser.filters).decode(with_filters, low, Tiles(16, 16)), high)


def test_the_network_is_told_the_noisy_low_resolution_its_detail_and_the_level_of_the_noise():
    task, low = Upsample(factor=2, patch=4, max_noise=0.1), torch.rand(2, 1, 3, 8, 8)
    noise, level = torch.randn_like(low), torch.tensor([0.0, 0.05])
    planes = task.condition(low, level, noise, Pixels(task, None))
    seen = F.pixel_shuffle(planes[:, 0, :-1], 2)  # pixels and detail, [2, 6, 8, 8]
    assert_close(seen[0, :3], low[0, 0])
    assert_close(seen[1, :3], (low + 0.05 * noise)[1, 0])
    middle = low[0, 0, :, 4, 4] - low[0, 0, :, 2:7, 2:7].mean((1, 2))
    assert_close(seen[0, 3:, 4, 4], 8 * middle)
    assert_close(planes[:, 0, -1, 0, 0], torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize("beside", ["bicubic", "bilinear"])
def test_the_low_resolution_is_resized_after_noise_was_added_by_the_forward_process(beside):
    task, low = replace(PAPER, beside=beside), pictures(2, 1, 3, 4, 6)
    noise, level = torch.randn_like(low), torch.tensor([0, 200])
    planes = task.condition(low, level, noise, Pixels(task, None))
    share = ScheduleConfig(zero_snr=False).alphas_cumprod()[level].view(-1, 1, 1, 1, 1)
    expected = (share.sqrt() * low + (1 - share).sqrt() * noise)[:, 0]
    assert_close(planes[:, 0], F.interpolate(expected, (16, 24), mode=beside))


def test_levels_of_training_are_spread_over_all_that_there_are_and_told():
    shares = torch.linspace(0, 1, 100_000)[:-1]
    level = PAPER.level(shares)
    assert (level.min(), level.max()) == (0, 250)
    assert level.bincount().float().std() / level.bincount().float().mean() < 0.01
    problem = PAPER.pose(batch(pictures(5, 1, 3, 8, 8)), PAPER.network(NETWORK).build(), generator())
    assert problem.level.shape == (5,)
    assert len(problem.level.unique()) > 1


def test_a_level_that_is_told_changes_what_the_network_says():
    denoiser = PAPER.network(NETWORK).build()
    x, planes = torch.randn(1, 1, 3, 16, 16), torch.randn(1, 1, 3, 16, 16)
    said = [denoiser(x, torch.tensor([500]), planes, level=torch.tensor([level])) for level in (0, 0, 200)]
    assert torch.equal(said[0], said[1])
    assert (said[0] - said[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patch": 6}, "patch=6 must be a multiple of config.upsample.factor=4 and divide 512x1024"),
        ({"patch": 3, "beside": "bicubic"}, "patch=3 must divide 512x1024"),
        ({"target": "edges"}, "target=edges, expected one of residual, picture"),
        ({"beside": "nearest"}, "beside=nearest, expected one of folded, bicubic, bilinear"),
        ({"max_level": 1000}, "max_level=1000, expected 0 to 999"),
        ({"max_noise": 0.0}, "max_noise=0, expected more than 0"),
        ({"crop": [100, 128]}, r"crop=\[100, 128\], expected a height and a width, multiples of 8"),
        ({"crop": [128]}, r"crop=\[128\]"),
        ({"crop": [0, 128]}, r"crop=\[0, 128\]"),
    ],
)
def test_a_task_that_makes_no_sense_is_told(changes, told):
    with pytest.raises(UserError, match=told):
        replace(Upsample(), **changes).check(128, 256)


def test_the_paper_s_task_and_that_of_the_town_make_sense():
    replace(PAPER, crop=[320, 320]).check(128, 256)
    Upsample().check(128, 256)
