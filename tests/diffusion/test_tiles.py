"""Tiles and portions: they cover everything once, and where they meet nothing shows, in both spaces and in time."""

import gc
import itertools
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

SIZES = [
    (64, 16, 4, 1),
    (64, 16, 0, 1),
    (50, 16, 4, 2),
    (128, 48, 16, 8),
    (17, 16, 15, 1),
    (16, 16, 4, 1),
    (9, 16, 4, 1),
]


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
    assert all(a[1] - b[0] > overlap - align for a, b in itertools.pairwise(parts))


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
    stitch, frames = Stitch(5, 2), torch.zeros(1, 5, 1, 1, 1)
    first = [stitch.join(lambda x, t: x + 3)(frames, torch.zeros(1))]
    second = stitch.join(lambda x, t: x + 6)(frames, torch.zeros(1))
    assert first[0].flatten().tolist() == [3] * 5
    assert second.flatten().tolist() == [4, 5, 6, 6, 6]
    third = stitch.join(lambda x, t: x + 6)(frames, torch.zeros(1))
    assert third.flatten().tolist() == [6] * 5


# Seams, by networks of random weights: they pad with zeros and normalise over what they see, so their answer depends on
# where a tile ends.

# No noise to start from: it would hide any step.
FEW = SamplerConfig(upsample_steps=2, upsample_noise=0.0, upsample_level=0, upsample_temperature=0.0)
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
    y, x, t = torch.meshgrid(
        torch.arange(height) / height, torch.arange(width) / width, torch.arange(frames) / 40, indexing="ij"
    )
    waves = torch.stack([torch.sin(3 * x + y + t), torch.cos(2 * y - x + t), torch.sin(2 * x - y - t)])
    return (0.5 * waves).permute(3, 0, 1, 2)[None]


def step_across(picture: torch.Tensor, border: int, cell: int) -> float:
    """How much larger the step from cell to cell across column `border` is than those around it, of [..., H, W]."""
    steps = (picture[..., cell:] - picture[..., :-cell]).abs().flatten(0, -2).mean(0).unflatten(0, (-1, cell)).mean(1)
    at = border // cell - 1
    return float(steps[at] / torch.cat([steps[at - 4 : at], steps[at + 1 : at + 5]]).mean())


# Pixels that are compared across a border: neighbours, but of folded ones those of neighbouring cells, since a random
# network's cells differ from each other within.
APART = {"folded": 8, "pixels": 1, "latents": 1}


@pytest.mark.parametrize("space", APART)
def test_no_seam_shows_where_tiles_overlap_and_one_does_where_they_do_not(space, upscaler_folder):
    denoiser, schedule, task = upsampler(space, upscaler_folder)
    low = scene(2)
    noise = upsampling_noise(denoiser, task, tuple(low.shape), 0, 0)

    def worst(borders: tuple[int, ...], **tiles) -> float:
        picture = sample_upsampled(denoiser, schedule, task, low, *noise, replace(FEW, **tiles))
        return max(step_across(picture, border, APART[space]) for border in borders)

    assert worst((128,), upsample_tile=32, upsample_overlap=0) > 1.3
    assert worst((64, 128, 192), upsample_tile=32, upsample_overlap=16) < 1.25  # tiles begin and end there


@pytest.mark.parametrize("space", APART)
def test_portions_that_overlap_hide_their_border_and_others_do_not(space, upscaler_folder):
    denoiser, schedule, task = upsampler(space, upscaler_folder)
    low = scene(24, 16, 16)[0]

    def worst(overlap: int) -> float:
        """The largest step from frame to frame where portions of 8 meet, in steps of the three before and after."""
        config = replace(FEW, upsample_portion_overlap=overlap)
        made = torch.stack(list(cascade.upsample(denoiser, schedule, task, iter(low), 0, config)))
        steps = made.diff(dim=0).abs().mean((1, 2, 3))
        borders = [(8 - overlap) * k - 1 + overlap // 2 for k in (1, 2)]
        return max(float(steps[b] / torch.cat([steps[b - 3 : b], steps[b + 1 : b + 4]]).mean()) for b in borders)

    apart, joined, well_joined = (worst(overlap) for overlap in (0, 2, 4))
    assert apart > 1.6
    assert joined < 0.9 * apart
    assert well_joined < 1.3


def test_portions_that_overlap_give_each_frame_once_at_any_length():
    denoiser, schedule, task = upsampler("folded", None)
    low, config = scene(23, 8, 8)[0], replace(FEW, upsample_portion_overlap=2, upsample_temperature=1.0)
    low = low + torch.arange(23)[:, None, None, None] / 50
    full = list(cascade.upsample(denoiser, schedule, task, iter(low), 0, config))
    for length in (0, 1, 6, 7, 8, 9, 14, 15, 20, 23):
        made = list(cascade.upsample(denoiser, schedule, task, iter(low[:length]), 0, config))
        assert len(made) == length
        whole = 6 * ((length - 8) // 6 + 1) if length >= 8 else 0  # a shorter last portion is another clip
        for a, b in zip(made[:whole], full[:whole], strict=True):
            assert_close(a, b, atol=1e-5, rtol=0)


def test_noise_belongs_to_a_frame_whatever_the_portions():
    denoiser, _, task = upsampler("pixels", None)
    noise = cascade.FrameNoise(denoiser, task, 3, 8)
    first, second = noise.of(0, torch.zeros(1, 8, 3, 8, 8)), noise.of(6, torch.zeros(1, 8, 3, 8, 8))
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before[:, 6:], after[:, :2])
        assert not torch.equal(before[:, :2], after[:, 2:4])


class Widest(torch.nn.Module):
    """Hooked onto a network: the most cells that it ever saw at once."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.cells, self.frames = 0, 0
        network.register_forward_pre_hook(self.see)

    def see(self, module: torch.nn.Module, inputs: tuple) -> None:
        self.cells = max(self.cells, inputs[0].shape[-2] * inputs[0].shape[-1])
        self.frames = max(self.frames, len(inputs[0]))


@pytest.mark.parametrize("space", ["pixels", "latents"])
def test_a_network_never_sees_more_than_a_tile_of_a_portion(space, upscaler_folder):
    denoiser, schedule, task = upsampler(space, upscaler_folder)
    seen, config = Widest(denoiser.unet), replace(FEW, upsample_tile=16, upsample_overlap=4, upsample_steps=1)
    decoded = Widest(denoiser.codec.vae.decoder) if space == "latents" else None
    for frames, height, width in ((8, 16, 32), (20, 16, 32), (8, 32, 32)):
        list(cascade.upsample(denoiser, schedule, task, iter(scene(frames, height, width)[0]), 0, config))
    assert seen.frames == 8
    assert seen.cells == (16 * 4 // task.patch) ** 2
    assert decoded is None or (decoded.frames, decoded.cells) == (1, 16**2)


def test_a_longer_video_holds_no_more_tensors():
    denoiser, schedule, task = upsampler("folded", None)
    config, most = replace(FEW, upsample_tile=8, upsample_overlap=4, upsample_portion_overlap=2), []
    for count in (20, 44):
        low = (torch.zeros(3, 16, 16) for _ in range(count))
        held = [live_bytes() for _ in cascade.upsample(denoiser, schedule, task, low, 0, config)]
        most.append(max(held))
    assert most[1] <= most[0] + 1000  # bytes; a full-resolution frame has 49 thousand


def live_bytes() -> int:
    """Bytes of all tensors that Python still reaches."""
    found = (o for o in gc.get_objects() if isinstance(o, torch.Tensor))
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in found)}.values())


@pytest.mark.parametrize(
    ("space", "size", "changes", "told"),
    [
        ("folded", (9, 16), {}, "9x16 does not become whole cells of 8 pixels at 4 times the size; crop it to mult"),
        ("folded", (2, 16), {}, "2x16 is too small for the upsampler; give 4 or more"),
        ("folded", (16, 16), {"upsample_tile": 6}, "upsample_tile=6, expected a multiple of 4"),
        ("folded", (16, 16), {"upsample_portion_overlap": 8}, "upsample_portion_overlap=8, expected 0 to less than"),
        ("pixels", (16, 16), {"upsample_level": 251}, "upsample_level=251, the upsampler knows levels"),
        ("latents", (1, 16), {}, "1x16 is too small for the upsampler; give 2 or more"),
        ("latents", (16, 16), {"upsample_tile": 16, "upsample_overlap": 16}, "upsample_overlap=16, expected 0 to less"),
    ],
)  # fmt: skip
def test_what_cannot_be_upsampled_is_told(space, size, changes, told, upscaler_folder):
    denoiser, schedule, task = upsampler(space, upscaler_folder)
    with pytest.raises(UserError, match=told):
        list(cascade.upsample(denoiser, schedule, task, iter(scene(2, *size)[0]), 0, replace(FEW, **changes)))
