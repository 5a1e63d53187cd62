"""Pictures moved as driving would, against a camera that really drives over a plane."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from drivesim.clip import Layout
from drivesim.models.motion import GRID, STEPS, Carrier, SceneFlow, centres, gaps, measured_flow

FOCAL, HEIGHT_M = 1.25, 1.5  # of a camera over flat ground; focal length in half pictures of width


def ground(seed: int = 0):
    """A smooth function of the place on the ground, metres: something to look at."""
    a, b, c, d = np.random.default_rng(seed).uniform(0.5, 1.0, 4)
    return lambda x, z: torch.sin(a * z + c * x) * 0.5 + torch.cos(b * x - d * z) * 0.5


def view(travel: float, heading: float, height: int = 64, width: int = 128) -> torch.Tensor:
    """The ground [1, 3, height, width] seen from a camera that looks down on it all over the picture, after it drove
    `travel` straight on and then turned."""
    place = centres(height, width)
    x, y = place[..., 0] / FOCAL, (place[..., 1] + 2.0) / FOCAL  # every pixel lies below the horizon
    depth = HEIGHT_M / y
    side = x * depth
    forward = travel + depth * math.cos(heading) - side * math.sin(heading)
    right = depth * math.sin(heading) + side * math.cos(heading)
    return ground()(right, forward)[None, None].expand(1, 3, -1, -1).contiguous()


def exact_fields() -> torch.Tensor:
    """The flow of the plane from the later to the earlier view, per metre and per radian, by hand: a point (u, v) at
    depth d was at (u, v) * d / (d + 1 metre) a metre earlier; turning right moves what is seen to the left."""
    place = centres(*GRID).double()
    u, v = place[..., 0], place[..., 1] + 2.0
    depth = HEIGHT_M * FOCAL / v
    per_metre = torch.stack([-u / depth, -v / depth])
    per_radian = torch.stack([FOCAL * (1 + (u / FOCAL) ** 2), u * v / FOCAL])
    return torch.stack([per_metre, per_radian]).float()


@pytest.fixture
def flow() -> SceneFlow:
    model = SceneFlow()
    model.fields.copy_(exact_fields())
    return model


def test_before_fitting_everything_stands_still():
    pictures = torch.rand(2, 3, 32, 64)
    moved, seen = SceneFlow()(pictures, torch.tensor([3.0, -5.0]), torch.tensor([0.1, 0.0]))
    assert_close(moved, pictures, atol=1e-5, rtol=0)
    assert (seen == 1).all()


@pytest.mark.parametrize(("travel", "heading"), [(0.3, 0.0), (-0.2, 0.0), (0.0, 0.1), (0.2, -0.05)])
def test_a_moved_picture_is_what_a_camera_sees_that_drove_there(flow, travel, heading):
    before, after = view(0, 0), view(travel, heading)
    moved, seen = flow(before, torch.tensor([travel]), torch.tensor([heading]))
    inside = seen.bool().expand_as(after)
    assert 0.4 < seen.mean() <= 1
    error, still = (moved - after)[inside].abs().mean(), (before - after)[inside].abs().mean()
    assert error < 0.15 * still


def test_the_way_of_a_pixel_over_metres_is_that_of_the_plane_not_that_of_its_first_step(flow):
    travel = 0.5
    place = flow.trace(torch.tensor([travel]), torch.zeros(1))[0]
    here = centres(*GRID)
    depth = HEIGHT_M * FOCAL / (here[..., 1] + 2.0)
    there = torch.stack([here[..., 0], here[..., 1] + 2.0], -1) * (depth / (depth + travel))[..., None]
    there = there - torch.tensor([0.0, 2.0])
    inside = (there.abs() < 0.9).all(-1)
    assert inside.float().mean() > 0.2
    first_step = here + travel * flow.fields[0].permute(1, 2, 0)
    error, naive = ((place - there)[inside].norm(dim=-1).mean(), (first_step - there)[inside].norm(dim=-1).mean())
    assert error < 2 / STEPS * naive


def test_fitting_finds_the_fields_that_made_the_flows():
    generator = torch.Generator().manual_seed(0)
    fields, motions = exact_fields(), torch.randn(50, 2, generator=generator) * torch.tensor([1.0, 0.1])
    flows = torch.einsum("nm,mchw->nchw", motions, fields)
    expected = np.linalg.lstsq(motions.numpy(), flows.flatten(1).numpy(), rcond=None)[0]
    fitted = SceneFlow().fit(motions, flows).fields
    assert_close(fitted, torch.from_numpy(expected).view_as(fitted), atol=1e-3, rtol=1e-3)  # the ridge's share


def test_where_nobody_turns_the_field_of_turning_is_nought():
    motions = torch.stack([torch.rand(20) + 0.5, torch.zeros(20)], 1)
    fitted = SceneFlow().fit(motions, torch.einsum("nm,mchw->nchw", motions, exact_fields())).fields
    assert_close(fitted[0], exact_fields()[0], atol=1e-2, rtol=1e-2)
    assert fitted[1].abs().max() < 1e-3


def test_measured_flow_of_a_shifted_picture_is_the_shift():
    noise = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 32) * 2 - 1, (64, 160), mode="bicubic").clamp(-1, 1)[0]
    earlier, later = noise[..., 10:138], noise[..., 14:142]  # what is at x in the later one was at x + 4
    cells = measured_flow(earlier, later)
    assert cells.shape == (2, *GRID)
    inner = cells[:, 4:-4, 8:-8].mean((1, 2))
    assert_close(inner, torch.tensor([4 * 2 / 128, 0.0]), atol=0.01, rtol=0)


def driven(travel: torch.Tensor) -> Layout:
    """Nothing asked for, `travel` [B, T] metres driven straight on."""
    layout = Layout.unknown(*travel.shape)
    return replace(layout, travel=travel, heading=torch.zeros_like(travel))


class Pixels:
    """An autoencoder whose latents are the pixels."""

    def encode(self, x):
        return x

    decode = encode


def test_unknown_frames_take_the_known_ones_before_and_after_by_nearness():
    mask = torch.tensor([[1.0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    latents = torch.arange(20.0).view(4, 5, 1, 1, 1).expand(4, 5, 3, 8, 16)
    carried = Carrier(Pixels(), SceneFlow().move)(latents, mask, driven(torch.zeros(4, 5)))
    expected = [[0.0, 1, 2, 3, 4], [5, 6, 6, 6, 6], [0, 0, 0, 0, 0], [16, 16, 16, 16, 16]]
    assert_close(carried[:, :, 0, 3, 3], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_what_leaves_the_picture_on_the_way_back_comes_from_the_other_end_alone(flow):
    drive = torch.stack([view(0.4 * t, 0.0)[0] for t in range(3)])[None]
    mask = torch.tensor([[1.0, 0, 1]])
    travel = torch.tensor([[0.0, 0.4, 0.8]])
    carried = Carrier(Pixels(), flow.move)(drive, mask, driven(travel))
    truth, blend = drive[0, 1], (drive[0, 0] + drive[0, 2]) / 2
    assert (carried[0, 1] - truth).abs().mean() < 0.2 * (blend - truth).abs().mean()
    assert torch.equal(carried[0, 0], drive[0, 0])
    assert torch.equal(carried[0, 2], drive[0, 2])


def test_carrying_looks_at_known_frames_alone(flow):
    mask = torch.tensor([[1.0, 1, 0, 0]])
    one = torch.rand(1, 4, 3, 32, 64)
    two = torch.where(mask[..., None, None, None].bool(), one, torch.rand(1, 4, 3, 32, 64))
    layout, carrier = driven(torch.arange(4.0)[None] * 0.1), Carrier(Pixels(), flow.move)
    assert torch.equal(carrier(one, mask, layout), carrier(two, mask, layout))


def test_gaps_name_the_nearest_known_frames():
    assert list(gaps(torch.tensor([[1, 0, 0, 0, 1]]))) == [
        (0, 1, [(0, 0.75), (4, 0.25)]),
        (0, 2, [(0, 0.5), (4, 0.5)]),
        (0, 3, [(0, 0.25), (4, 0.75)]),
    ]
    assert list(gaps(torch.tensor([[0, 0], [0, 1]]))) == [(1, 0, [(1, 1.0)])]
