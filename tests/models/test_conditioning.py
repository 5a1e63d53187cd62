"""Layouts as planes and tokens."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from drivesim.clip import CLASSES, NO_BOX, Layout
from drivesim.models.conditioning import CROWD_SCALE, PLANES, LayoutTokens, drop, positions, rasterise
from drivesim.models.denoiser import DenoiserConfig

CAR, PERSON = CLASSES.index("car"), CLASSES.index("pedestrian")


def layout(boxes: list[tuple[float, float, float, float]], classes: list[int], night=0.25, crowd=5.0) -> Layout:
    """One frame."""
    return replace(
        Layout.unknown(1, slots=len(boxes)),
        boxes=torch.tensor(boxes)[None],
        classes=torch.tensor(classes)[None],
        tracks=torch.arange(len(boxes))[None],
        night=torch.tensor([night]),
        crowdedness=torch.tensor([crowd]),
        known=torch.tensor([True]),
    )


def brute_force(one: Layout, height: int, width: int, samples: int = 40) -> torch.Tensor:
    """Cover of every cell counted at points of a fine grid: vehicles, persons, vehicle size."""
    planes = torch.zeros(3, height, width)
    points = (torch.arange(samples) + 0.5) / samples
    for box, kind in zip(one.boxes[0].tolist(), one.classes[0].tolist(), strict=True):
        for i in range(height):
            for j in range(width):
                y, x = (i + points) / height, (j + points) / width
                inside_y = ((y > box[1]) & (y < box[3])).float().mean()
                inside = float(inside_y * ((x > box[0]) & (x < box[2])).float().mean())
                if kind in (0, 1, 2):
                    planes[0, i, j] = max(planes[0, i, j], inside)
                    planes[2, i, j] = max(planes[2, i, j], inside * (box[3] - box[1]))
                elif kind != NO_BOX:
                    planes[1, i, j] = max(planes[1, i, j], inside)
    return planes


def test_planes_equal_a_count_of_covered_points():
    torch.manual_seed(0)
    corners = torch.rand(6, 4)
    boxes = torch.cat([torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])], 1)
    one = layout([tuple(b) for b in boxes.tolist()], [0, 1, 2, 3, 4, NO_BOX])
    planes = rasterise(one, 5, 9)[0]
    assert planes.shape == (PLANES, 5, 9)
    assert_close(planes[:3], brute_force(one, 5, 9), atol=0.03, rtol=0)


def test_a_box_on_cell_borders_covers_exactly_its_cells():
    planes = rasterise(layout([(0.25, 0.5, 0.75, 1.0)], [CAR]), 4, 4)[0]
    expected = torch.zeros(4, 4)
    expected[2:, 1:3] = 1
    assert_close(planes[0], expected)
    assert_close(planes[2], 0.5 * expected)
    assert planes[1].abs().sum() == 0


def test_labels_are_constant_planes_and_nan_says_unknown():
    known = rasterise(layout([(0, 0, 1, 1)], [PERSON]), 2, 3)[0, 3:, 0, 0]
    assert_close(known, torch.tensor([1, -0.5, 1, 5 / CROWD_SCALE, 1]))
    unknown = rasterise(layout([(0, 0, 1, 1)], [PERSON], math.nan, math.nan), 2, 3)[0, 3:, 0, 0]
    assert_close(unknown, torch.tensor([1.0, 0, 0, 0, 0]))


def test_an_unknown_layout_gives_planes_of_zeros_and_one_token_for_all():
    nothing = Layout.unknown(2, 3, slots=4)
    assert rasterise(nothing, 4, 8).abs().sum() == 0
    boxes = replace(nothing, boxes=torch.rand(2, 3, 4, 4), classes=torch.zeros(2, 3, 4).long())
    assert rasterise(boxes, 4, 8).abs().sum() == 0  # boxes that are not known are not drawn
    tokens = LayoutTokens(8)
    assert_close(tokens(boxes), tokens(nothing))


def test_no_cars_is_not_the_same_as_unknown():
    empty = layout([(0, 0, 0, 0)], [NO_BOX], math.nan, math.nan)
    assert not torch.equal(rasterise(empty, 4, 8), rasterise(Layout.unknown(1), 4, 8))
    tokens = LayoutTokens(8)
    assert not torch.allclose(tokens(empty), tokens(Layout.unknown(1)))


def test_tokens_do_not_depend_on_what_lies_in_empty_slots():
    tokens = LayoutTokens(8)
    one, other = layout([(0, 0, 0, 0)], [NO_BOX]), layout([(0.1, 0.2, 0.3, 0.9)], [NO_BOX])
    assert_close(tokens(one), tokens(other))


def batch(clips: int, frames: int = 3) -> Layout:
    one = layout([(0.1, 0.1, 0.4, 0.4)], [CAR])
    return Layout.stack([Layout.cat([one] * frames)] * clips)


@pytest.mark.parametrize(("boxes", "labels"), [(0.0, 0.0), (1.0, 1.0)])
def test_dropping_never_or_always(boxes, labels):
    rates = {"boxes": boxes, "night": labels, "crowdedness": labels}
    dropped = drop(batch(5), rates, torch.Generator().manual_seed(0))
    assert dropped.known.all() == (boxes == 0)
    assert dropped.known.any() == (boxes == 0)
    assert bool(dropped.night.isnan().all()) == bool(dropped.crowdedness.isnan().all()) == (labels == 1)


def test_dropping_takes_whole_clips_each_condition_by_itself_at_its_rate():
    rates = {"boxes": 0.3, "night": 0.1, "crowdedness": 0.1}
    dropped = drop(batch(4000), rates, torch.Generator().manual_seed(0))
    columns = torch.stack([~dropped.known, dropped.night.isnan(), dropped.crowdedness.isnan()]).float()
    assert (columns == columns[..., :1]).all()  # alike in all frames of a clip
    rates = columns[..., 0].mean(1)
    sigma = torch.tensor([0.3 * 0.7, 0.1 * 0.9, 0.1 * 0.9]).div(4000).sqrt()
    assert ((rates - torch.tensor([0.3, 0.1, 0.1])).abs() < 4 * sigma).all()
    assert columns[..., 0].corrcoef().sub(torch.eye(3)).abs().max() < 4 / 4000**0.5


def test_position_planes_tell_the_middle_of_every_cell_and_its_square():
    y, x, y2, x2 = positions(2, 4)
    assert_close(y, torch.tensor([[-0.5] * 4, [0.5] * 4]))
    assert_close(x, torch.tensor([[-0.75, -0.25, 0.25, 0.75]] * 2))
    assert_close(torch.stack([y2, x2]), torch.stack([y, x]) ** 2)


def test_the_image_network_sees_the_layout_and_the_positions():
    model = DenoiserConfig(channels=4, block_out_channels=[16, 16], layers_per_block=[1, 1], groups=8,
                           attention=[False, False], token_dim=0).build()  # fmt: skip
    layout = Layout.unknown(2, 3)
    planes, tokens = model.condition(layout, 4, 8)
    assert tokens is None
    assert_close(planes[:, :, :PLANES], rasterise(layout, 4, 8))
    assert_close(planes[1, 2, PLANES:], positions(4, 8))
