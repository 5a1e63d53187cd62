"""Augmentation against Pillow and against boxes drawn into the pictures themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch.testing import assert_close

from drivesim.clip import Layout, from_uint8, to_uint8
from drivesim.data.augment import AugmentConfig, change_pixels, crop, recolour
from drivesim.data.windows import Mirrored, VideoPatches, WindowDataset, WindowSpec
from drivesim.errors import UserError

SPEC = WindowSpec(3, 30)


def picture(seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def as_window(*pictures: np.ndarray) -> torch.Tensor:
    return from_uint8(torch.from_numpy(np.stack(pictures))).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("place", "enhance"), enumerate([ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color])
)
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_brightness_contrast_and_saturation_are_those_of_pillow(place, enhance, factor):
    image = picture()
    factors = [1.0, 1.0, 1.0]
    factors[place] = factor
    found = to_uint8(recolour(as_window(image), *factors, 0.0))[0].permute(1, 2, 0).int()
    expected = torch.from_numpy(np.array(enhance(Image.fromarray(image)).enhance(factor))).int()
    assert (found - expected).abs().max() <= 2  # Pillow rounds greys and means to whole levels


def test_a_third_of_a_turn_of_hue_makes_red_green():
    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert_close(recolour(red, 1.0, 1.0, 1.0, 1 / 3), red.roll(1, 1), atol=1e-5, rtol=0)


def test_factors_of_one_change_nothing():
    window = as_window(picture(0), picture(1))
    assert_close(recolour(window, 1.0, 1.0, 1.0, 0.0), window, atol=1e-5, rtol=0)


def test_frames_of_a_window_change_alike_so_that_what_stands_still_does_not_flicker():
    window = as_window(picture(0), picture(0) // 2)
    window[1, :, :12] = window[0, :, :12]  # one half of the picture is the same in both
    changed, _ = change_pixels(AugmentConfig(jitter=0.5), window, Layout.unknown(2), np.random.default_rng(3))
    assert not torch.equal(changed, window)
    assert torch.equal(changed[0, :, :12], changed[1, :, :12])


@pytest.mark.parametrize(("size", "down", "right"), [(0.5, 0.0, 0.0), (0.5, 1.0, 1.0), (0.75, 0.3, 0.7)])
def test_boxes_lie_in_a_crop_where_their_objects_do(size, down, right):
    window = -torch.ones(2, 3, 64, 128)
    window[..., 26:38, 50:80] = 1
    layout = replace(
        Layout.unknown(2),
        boxes=torch.tensor([50 / 128, 26 / 64, 80 / 128, 38 / 64]).expand(2, 1, 4),
        classes=torch.zeros(2, 1, dtype=torch.long),
    )
    enlarged, moved = crop(window, layout, size, down, right)
    assert enlarged.shape == window.shape
    rows, columns = torch.where(enlarged[0, 0] > 0)
    found = [columns.min() / 128, rows.min() / 64, (columns.max() + 1) / 128, (rows.max() + 1) / 64]
    assert_close(moved.boxes[0, 0], torch.stack(found), atol=1 / 64, rtol=0)


def test_a_crop_is_drawn_within_its_bounds_and_everywhere():
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64).contiguous()
    rng = np.random.default_rng(0)
    seen = [change_pixels(AugmentConfig(crop=0.5), ramp, Layout.unknown(1), rng)[0] for _ in range(300)]
    spans = torch.stack([(x[0, 0, 0, -1] - x[0, 0, 0, 0]) / 2 for x in seen])
    assert 0.48 < spans.min() < 0.52
    assert 0.98 < spans.max() <= 1.0
    assert min(float(x.min()) for x in seen) < -0.95
    assert max(float(x.max()) for x in seen) > 0.95


def changed(store, **options) -> WindowDataset:
    reader = VideoPatches(store, 64, 128)
    return WindowDataset(store, reader, "train", [SPEC], 0, augment=AugmentConfig(**options))


def test_a_changed_window_is_a_function_of_seed_and_index_alone(small_store):
    options = {"flip": 0.5, "crop": 0.5, "jitter": 0.4}
    one, other = changed(small_store, **options), changed(small_store, **options)
    for i in (3, 1, 2):
        assert torch.equal(one[i][0], other[i][0])
        assert torch.equal(one[i][1].boxes, other[i][1].boxes)
    assert not torch.equal(one[0][0], changed(small_store)[0][0])


def test_half_of_the_windows_are_mirrored_with_their_boxes(small_store):
    plain, some = changed(small_store), changed(small_store, flip=0.5)
    mirrored = 0
    for i in range(100):
        (x, layout, *_), (y, seen, *_) = plain[i], some[i]
        if flipped := not torch.equal(x, y):
            assert torch.equal(x.flip(-1), y)
            assert torch.equal(seen.boxes, layout.mirrored().boxes)
            assert torch.equal(seen.heading, -layout.heading)
        mirrored += flipped
    assert abs(mirrored - 50) < 4 * 5


def test_mirrored_latents_come_from_a_reader_of_their_own(small_store):
    class Constant:
        def __init__(self, value: float) -> None:
            self.value = value

        def window(self, clip, start, count, stride, rng) -> torch.Tensor:
            return torch.full((count,), self.value)

    windows = WindowDataset(
        small_store, Constant(0), "train", [SPEC], 0, augment=AugmentConfig(flip=0.5), mirrored=Constant(1)
    )
    plain = WindowDataset(small_store, Constant(0), "train", [SPEC], 0)
    shown = [(windows[i], plain[i][1]) for i in range(40)]
    assert {float(x[0]) for (x, *_), _ in shown} == {0, 1}
    for (x, layout, *_), before in shown:
        assert torch.equal(layout.boxes, (before.mirrored() if x[0] else before).boxes)


def test_a_mirrored_reader_gives_its_pictures_left_to_right(small_store):
    reader = VideoPatches(small_store, 64, 128)
    plain, seen = (r.window("c0", 2, 3, 4, np.random.default_rng(0)) for r in (reader, Mirrored(reader)))
    assert torch.equal(seen, plain.flip(-1))


@pytest.mark.parametrize("options", [{"flip": 1.5}, {"flip": -0.1}, {"crop": 0}, {"crop": 2}, {"jitter": 1.1}])
def test_values_that_cannot_work_are_refused(options):
    with pytest.raises(UserError, match=r"here\.flip=.*expected 0 <= flip <= 1"):
        AugmentConfig(**options).check("here", pixels=True)


@pytest.mark.parametrize("options", [{"crop": 0.9}, {"jitter": 0.1}])
def test_latents_can_be_mirrored_only(options):
    with pytest.raises(UserError, match="this stage trains on latents, which can be mirrored only"):
        AugmentConfig(**options).check("here", pixels=False)
    AugmentConfig(flip=0.5).check("here", pixels=False)
