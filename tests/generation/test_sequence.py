"""Which frames the cascade makes, through its real samplers: a denoiser that paints the number of a frame into it."""

from itertools import islice

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from drivesim.clip import Layout
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import FLAGS, Interpolate, Predict
from drivesim.errors import UserError
from drivesim.generation import cascade
from drivesim.generation.samplers import SamplerConfig
from drivesim.models.denoiser import DenoiserConfig

SCHEDULE = ScheduleConfig()
CONFIG = SamplerConfig(keyframe_steps=2, interpolate_steps=2, layout_guidance=1.0)
C, H, W = 2, 2, 2


class Counting(nn.Module):
    """Makes of any noise the number that the layout tells of a frame; keeps what it was told of known frames."""

    prior, carries, reads = None, False, False
    config = DenoiserConfig()

    def __init__(self, schedule: ScheduleConfig = SCHEDULE) -> None:
        super().__init__()
        self.latent_std = nn.Parameter(torch.ones(C))
        self.diffusion = Diffusion(schedule)
        self.contexts: list[Tensor] = []
        self.batches: list[int] = []

    def condition(self, layout: Layout, height: int, width: int, captions=()) -> tuple[Tensor, None]:
        return layout.crowdedness[..., None, None, None].expand(-1, -1, C, height, width), None

    def carry(self, latents: Tensor, mask: Tensor, layout: Layout) -> Tensor:
        return latents * mask[..., None, None, None]

    def encode_context(self, context: Tensor) -> Tensor:
        self.contexts.append(context)
        return context

    def forward(self, z: Tensor, timestep: Tensor, planes: Tensor, *told) -> Tensor:
        self.batches.append(len(z))
        alpha, sigma = self.diffusion.coefficients(timestep, z)
        return (alpha * z - planes) / sigma  # the velocity of the latents that `planes` are

    def known(self) -> list[list[int]]:
        """Numbers painted into the known frames of every window."""
        windows = [(context[b], context[b, :, C, 0, 0]) for context in self.contexts for b in range(len(context))]
        return [[round(float(frame[0].mean())) for frame, m in zip(x, mask, strict=True) if m] for x, mask in windows]


def layout_at(index: Tensor) -> Layout:
    layout = Layout.unknown(len(index)).driven(index / 30, 8.0)
    layout.crowdedness[:] = index.float()
    return layout


def frame(value: float) -> Tensor:
    return torch.full((C, H, W), float(value))


def numbers(frames) -> list[int]:
    made = torch.stack(list(frames)).mean((1, 2, 3))
    assert_close(made, made.round(), atol=2e-2, rtol=0)
    return made.round().int().tolist()


def keyframes(start: list[int], frames: int, denoiser: nn.Module, factor: int = 4):
    latents = torch.stack([frame(value) for value in start])
    return cascade.keyframes(denoiser, SCHEDULE, Predict(frames=frames), latents, layout_at, factor**2, 0, CONFIG)


def twice(keys, task: Interpolate, denoiser: nn.Module, config: SamplerConfig = CONFIG):
    for level, spacing in ((0, task.factor**2), (1, task.factor)):
        keys = cascade.interpolate(denoiser, SCHEDULE, task, keys, layout_at, spacing, level, 0, config)
    return keys


@pytest.mark.parametrize(("count", "coarse", "fine"), [(2, 5, 17), (5, 17, 65), (8, 29, 113)])
@pytest.mark.parametrize("keys", [2, "all"])
@pytest.mark.parametrize("start", [[0], [-16, 0]])
def test_t_keyframes_become_4_t_minus_3_and_again_with_no_frame_twice_or_missing(count, coarse, fine, keys, start):
    task = Interpolate(keys=count if keys == "all" else keys)
    assert (task.frames_of(count), task.frames_of(task.frames_of(count))) == (coarse, fine)
    denoiser = Counting()
    frames = numbers(twice(islice(keyframes(start, max(count, 3), denoiser), count), task, denoiser))
    assert frames == list(range(fine))


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("keys", [2, 3, 5])
def test_other_factors_and_windows_leave_no_seam_either(factor, keys):
    task, denoiser = Interpolate(factor=factor, keys=keys), Counting()
    frames = twice(islice(keyframes([0], 4, denoiser, factor), 9), task, denoiser)
    assert numbers(frames) == list(range(8 * factor**2 + 1))


@pytest.mark.parametrize("keys", [2, 3, 8])
@pytest.mark.parametrize("start", [[0], [-16, 0]])
def test_an_endless_rollout_gives_every_frame_once_and_in_order(keys, start):
    denoiser = Counting()
    assert numbers(islice(twice(keyframes(start, 5, denoiser), Interpolate(keys=keys), denoiser), 300)) == list(
        range(300)
    )


@pytest.mark.parametrize(("start", "first"), [([0], [0]), ([-16, 0], [-16, 0])])
def test_a_rollout_goes_on_from_two_frames_after_the_first_window(start, first):
    denoiser = Counting()
    assert numbers(islice(keyframes(start, 4, denoiser), 8)) == [16 * k for k in range(8)]
    second = [32, 48] if len(start) == 1 else [16, 32]
    assert denoiser.known()[:3] == [first, second, [k + 32 for k in second]]


def test_a_window_of_several_keys_knows_them_all_and_shares_its_ends():
    denoiser, task = Counting(), Interpolate(keys=3)
    list(cascade.interpolate(denoiser, SCHEDULE, task, map(frame, (0, 16, 32, 48, 64)), layout_at, 16, 0, 0, CONFIG))
    assert denoiser.known() == [[0, 16, 32], [32, 48, 64]]
    assert denoiser.contexts[0].shape == (2, 9, C + FLAGS, H, W)


@pytest.mark.parametrize(("keys", "count", "near"), [(3, 8, "7 and 9"), (8, 10, "8 and 15"), (8, 2, "1 and 8")])
def test_a_number_of_frames_that_does_not_fill_windows_is_refused_with_the_nearest_that_do(keys, count, near):
    task = Interpolate(keys=keys)
    with pytest.raises(UserError, match=f"{count} frames do not fill windows of {keys} keys.*{near}"):
        task.frames_of(count)
    frames = cascade.interpolate(Counting(), SCHEDULE, task, map(frame, range(count)), layout_at, 16, 0, 0, CONFIG)
    with pytest.raises(UserError, match=near):
        list(frames)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_interpolation_is_guided_by_its_keyframes_with_a_scale_of_its_own(scale):
    denoiser, config = Counting(), SamplerConfig(interpolate_steps=1, interpolate_guidance=scale, context_guidance=3.0)
    frames = cascade.interpolate(denoiser, SCHEDULE, Interpolate(), map(frame, (0, 16)), layout_at, 16, 0, 0, config)
    assert numbers(frames) == [0, 4, 8, 12, 16]
    assert denoiser.batches == [1 if scale == 1 else 2]
    assert denoiser.known() == ([[0, 16]] if scale == 1 else [[0, 16], []])


def test_known_frames_are_noised_as_the_sampler_says_and_come_out_as_they_were():
    schedule = ScheduleConfig("linear", zero_snr=False)
    task = Predict(frames=3, context_augmentation=250)
    start = torch.stack([frame(-16), frame(0)])
    seen = {}
    for timestep in (0, 200):
        denoiser = Counting(schedule)
        config = SamplerConfig(keyframe_steps=2, layout_guidance=1.0, context_augmentation=timestep)
        made = cascade.keyframes(denoiser, schedule, task, start, layout_at, 16, 0, config)
        assert numbers(islice(made, 2)) == [0, 16]
        seen[timestep] = denoiser.contexts[0][0, :2]
        assert_close(seen[timestep][:, C + FLAGS, 0, 0], torch.full((2,), timestep / 1000))
    alpha, sigma = Diffusion(schedule).coefficients(torch.tensor([200]), start)
    off = (seen[200][:, :C] - alpha * start) / sigma
    assert 0.5 < off.std() < 1.6  # standard normal noise, 16 numbers of it
    assert (seen[0][:, :C] - start).abs().max() < 0.15
