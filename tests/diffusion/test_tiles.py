"""Tiles and portions: they cover everything once, and where they meet nothing shows, in both spaces and in time."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tiles import Crop, Stitch, Tiles, intervals, windows
from drivesim.diffusion.upsample import Upsample
from drivesim.errors import UserError
from drivesim.generation import cascade
from drivesim.generation.samplers import SamplerConfig, sample_upsampled, upsampling_noise
from drivesim.models.denoiser import DenoiserConfig
from drivesim.models.upscaler import UpsamplerConfig, load_upscaler, read_schedules

SIZES = [(64, 16, 4, 1), (64, 16, 0, 1), (50, 16, 4, 2), (128, 48, 16, 8), (17, 16, 15, 1), (16, 16, 4, 1), (9, 16, 4, 1)]


@pytest.mark.parametrize(("size", "tile", "overlap", "align"), SIZES)
@pytest.mark.parametrize("scale", [0.5, 1, 4])
def test_windows_of_tiles_add_up_to_one_everywhere(size, tile, overlap, align, scale):
    parts = intervals(size, tile, overlap, align)
    total = torch.zeros(round(size * scale))
    for (start, end), weights in zip(parts, windows(parts, size, scale), strict=True):
        assert (weights >= 0).all()
        total[round(start * scale) : round(end * scale)] += weights
    assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(("size", "tile", "overlap", "align"), SIZES)
def test_tiles_are_aligned_and_bounded_and_overlap(size, tile, overlap, align):
    parts = intervals(size, tile, overlap, align)
    assert parts[0][0] == 0
    assert parts[-1][1] == size
    assert all(start % align == 0 and end - start < tile + align for start, end in parts)
    assert all(a[1] - b[0] > overlap - align for a, b in zip(parts, parts[1:], strict=False))


def test_a_crop_cuts_whatever_shows_the_same():
    crop, full = Crop(2, 4, 3, 9, 8, 12), torch.arange(32 * 48).view(32, 48)
    assert torch.equal(crop.of(full), full[8:16, 12:36])
    assert torch.equal(crop.of(full[::8, ::8]), full[::8, ::8][1:2, 1:4].narrow(1, 0, 3)[:, : crop.right // 2 - 1])


def test_what_does_not_depend_on_the_tile_is_what_the_whole_picture_would_be():
    x = torch.randn(2, 3, 40, 72)
    assert_close(Tiles(20, 36, 8, 4, 2).blend(lambda crop: 2 * crop.of(x)), 2 * x)


def test_one_tile_is_the_whole_picture_to_the_bit():
    x = torch.randn(3, 16, 16)
    assert torch.equal(Tiles(16, 16, 0).blend(lambda crop: crop.of(x) * 0.1), x * 0.1)
    assert torch.equal(Tiles(16, 16, 32, 8).blend(lambda crop: crop.of(x) * 0.1), x * 0.1)


@pytest.mark.parametrize(
    ("tile", "overlap", "told"),
    [
        (12, 4, "upsample_tile=12, expected a multiple of 8"),
        (-8, 4, "upsample_tile=-8, expected a multiple of 8"),
        (16, 16, "upsample_overlap=16, expected 0 to less than upsample_tile=16"),
        (16, -1, "upsample_overlap=-1, expected 0"),
    ],
)
def test_tiles_that_make_no_sense_are_told(tile, overlap, told):
    with pytest.raises(UserError, match=told):
        Tiles(64, 64, tile, overlap, 8)


def test_portions_share_the_predictions_of_the_frames_that_they_share():
    stitch, frames = Stitch(2), torch.zeros(1, 5, 1, 1, 1)
    first = [stitch.join(lambda x, t: x + 3)(frames, torch.zeros(1))]
    second = stitch.join(lambda x, t: x + 6)(frames, torch.zeros(1))
    assert first[0].flatten().tolist() == [3] * 5
    assert second.flatten().tolist() == [4, 5, 6, 6, 6]
    third = stitch.join(lambda x, t: x + 6)(frames, torch.zeros(1))
    assert third.flatten().tolist() == [6] * 5


# Seams, by networks of random weights: they pad with zeros and normalise over what they see, so their answer depends on
# where a tile ends.

FEW = SamplerConfig(upsample_steps=2, upsample_noise=0.0, upsample_level=0)
SPACES = {
    "folded": Upsample(patch=8, filters=False, residual_std=0.3),
    "pixels": Upsample(patch=1, target="picture", filters=False, beside="bicubic", max_level=250),
}


def randomised(module: torch.nn.Module) -> None:
    """Weights that say something where training starts with nought, and merge factors that let it through."""
    for name, weight in module.named_parameters():
        if name.endswith("merge.logit"):
            torch.nn.init.constant_(weight, -2.0)
        elif weight.dim() > 1:
            torch.nn.init.xavier_normal_(weight)


def upsampler(space: str, folder) -> tuple:
    """Denoiser with temporal layers, schedule, task."""
    torch.manual_seed(0)
    if space == "latents":
        schedule, augmentation, highest = read_schedules(folder)
        task = Upsample(patch=4, max_level=highest, augmentation=augmentation, filters=False)
        denoiser = load_upscaler(UpsamplerConfig(pretrained=str(folder)))
    else:
        schedule, task = ScheduleConfig(), SPACES[space]
        config = DenoiserConfig(
            block_out_channels=[16, 16], layers_per_block=[1, 1], attention=[False] * 2, token_dim=0, groups=8
        )
        denoiser = task.network(config).build()
        randomised(denoiser)
    denoiser.inflate(0)
    randomised(denoiser.temporal)
    return denoiser.eval(), schedule, task


def scene(frames: int, height: int = 32, width: int = 64) -> torch.Tensor:
    """Smooth low-resolution frames [1, T, 3, h, w] that hardly change."""
    y, x, t = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, torch.arange(frames) / 40, indexing="ij")
    waves = torch.stack([torch.sin(3 * x + y + t), torch.cos(2 * y - x + t), torch.sin(2 * x - y - t)])
    return (0.5 * waves).permute(3, 0, 1, 2)[None]


def step_across(picture: torch.Tensor, border: int, cell: int) -> float:
    """How much larger the step across column `border` is than those across the cells' borders around it, of a picture
    [..., H, W]; away from the left and right edge."""
    step = (picture[..., cell::cell] - picture[..., cell - 1 : -1 : cell]).abs().flatten(0, -2).mean(0)
    at = border // cell - 1
    near = torch.cat([step[at - 4 : at], step[at + 1 : at + 5]])
    return float(step[at] / near.mean())


@pytest.mark.parametrize("space", ["folded", "pixels", "latents"])
def test_no_seam_shows_where_tiles_overlap_and_one_does_where_they_do_not(space, upscaler_folder):
    denoiser, schedule, task = upsampler(space, upscaler_folder)
    low = scene(2)
    noise = upsampling_noise(denoiser, task, tuple(low.shape), 0, 0)
    noise = tuple(0.05 * part for part in noise)  # little of it, or it hides any step

    def made(**changes) -> torch.Tensor:
        return sample_upsampled(denoiser, schedule, task, low, *noise, replace(FEW, **changes))

    print(space, step_across(made(), 128, task.patch), step_across(made(upsample_tile=32, upsample_overlap=0), 128, task.patch),
        [step_across(made(upsample_tile=32, upsample_overlap=16), b, task.patch) for b in (64,128,192)])
    assert 0
