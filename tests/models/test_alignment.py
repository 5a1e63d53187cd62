"""Frames that correct each other: motion that is known, what a frame may depend on, and what must stay as it was."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drivesim.models.alignment import AlignedNeighbours, flow, move, neighbours

H, W = 64, 128


def texture(seed: int = 0) -> torch.Tensor:
    """A smooth random picture [1, 3, H + 40, W + 40] in [-1, 1]."""
    coarse = torch.rand(1, 3, 26, 42, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (H + 40, W + 40), mode="bicubic").clamp(-1, 1)


def pan(frames: int, dx: int = 3, dy: int = 1) -> torch.Tensor:
    """[T, 3, H, W]: a camera that moves right and down over the texture, by whole pixels a frame."""
    picture = texture()[0]
    return torch.stack([picture[:, t * dy : t * dy + H, t * dx : t * dx + W] for t in range(frames)])


def scrambled(**kwargs) -> AlignedNeighbours:
    torch.manual_seed(0)
    model = AlignedNeighbours(grid=8, **kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_flow_points_from_a_place_to_where_it_is_in_the_other_frame():
    a, b = pan(2)
    found = flow(a[None], b[None])[0, 8:-8, 8:-8]  # the camera moves right, so things move left
    assert_close(found.median(0).values.median(0).values, torch.tensor([-3.0, -1.0]), atol=0.1, rtol=0)


def test_a_moved_frame_is_the_frame_it_was_moved_onto():
    frames = pan(3)
    moved = move(frames[[0, 2]], frames[[1, 1]])
    inside = (moved - frames[[1, 1]])[..., 4:-4, 6:-6]
    assert inside.square().mean() < (frames[[0, 2]] - frames[[1, 1]]).square().mean() / 100


def test_moving_samples_as_cv2_does():
    a, b = pan(2)
    field = flow(b[None], a[None])[0].numpy()
    ys, xs = np.mgrid[:H, :W].astype(np.float32)
    at = xs + field[..., 0], ys + field[..., 1]
    expected = cv2.remap(a.permute(1, 2, 0).numpy(), *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = torch.from_numpy((at[0] >= 0) & (at[0] <= W - 1) & (at[1] >= 0) & (at[1] <= H - 1))
    moved = move(a[None], b[None])[0]
    # cv2 rounds places to 1/32 of a pixel
    assert_close(moved[:, inside], torch.from_numpy(expected).permute(2, 0, 1)[:, inside], atol=0.02, rtol=0)


def test_at_the_ends_of_a_clip_the_missing_neighbour_says_nothing():
    before, after = neighbours(torch.cat([pan(4), pan(4, dx=2)]), 4)
    assert before.shape == after.shape == (8, 3, H, W)
    assert not before[[0, 4]].any()
    assert not after[[3, 7]].any()
    assert all(before[t].any() and after[t - 1].any() for t in (1, 2, 3, 5, 6, 7))


@torch.no_grad()
def test_untrained_it_leaves_every_frame_bit_for_bit():
    frames = pan(4)
    assert torch.equal(AlignedNeighbours(grid=8)(frames, 4), frames)


@torch.no_grad()
def test_a_frame_depends_on_its_direct_neighbours_alone():
    # so a decoder that keeps, of each window, the frames whose neighbours it sees shows no border between windows
    model, frames = scrambled(), pan(6)
    whole = model(frames, 6)
    assert_close(model(frames[1:4], 3)[1], whole[2])
    assert not torch.allclose(model(frames[2:5], 3)[0], whole[2])


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other():
    model, first, second = scrambled(), pan(3), pan(3, dx=1, dy=2)
    both = model(torch.cat([first, second]), 3)
    assert_close(both, torch.cat([model(first, 3), model(second, 3)]))


@torch.no_grad()
def test_what_is_coarser_than_the_grid_of_latents_stays():
    model, frames = scrambled(), pan(4)
    change = model(frames, 4) - frames
    assert F.avg_pool2d(change, 32).square().mean() < change.square().mean() / 1000


def test_it_learns_to_average_out_errors_that_differ_from_frame_to_frame():
    torch.manual_seed(0)
    truth = pan(5)
    noisy = truth + 0.1 * torch.randn(truth.shape)
    model = AlignedNeighbours(grid=8, width=16)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = F.mse_loss(model(noisy, 5), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    unseen = truth + 0.1 * torch.randn(truth.shape)
    with torch.no_grad():
        assert F.mse_loss(model(unseen, 5), truth) < 0.7 * F.mse_loss(unseen, truth)
