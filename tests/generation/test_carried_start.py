"""Windows sampled from what is carried into them."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from drivesim.clip import Layout
from drivesim.diffusion.sampler import window_noise
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import FLAGS, Predict
from drivesim.errors import UserError
from drivesim.generation.samplers import SamplerConfig, sample_window
from drivesim.models.denoiser import Denoiser, DenoiserConfig
from drivesim.models.inflation import TemporalConfig

TASK = Predict(frames=4)
TINY = DenoiserConfig(channels=3, block_out_channels=[16, 32], layers_per_block=[1, 1], attention=[False, True],
                      token_dim=16, head_dim=16, groups=8, context_width=8)  # fmt: skip


class Pixels:
    """An autoencoder whose latents are the pixels."""

    def encode(self, x):
        return x

    decode = encode


def denoiser(motion: str) -> Denoiser:
    torch.manual_seed(0)
    return TINY.build().inflate(3 + FLAGS, TemporalConfig(motion=motion)).carry_by(Pixels()).eval()


@pytest.fixture
def layout() -> Layout:
    """[1, 4]: a car that goes from left to right past a camera that stands still."""
    empty = Layout.unknown(1, 4, slots=2).driven(torch.zeros(1, 4), 0.0)
    for t in range(4):
        empty.boxes[0, t, 0] = torch.tensor([0.1 + 0.2 * t, 0.25, 0.3 + 0.2 * t, 0.75])
    empty.classes[..., 0], empty.tracks[..., 0] = 0, 5
    return replace(empty, known=torch.ones(1, 4).bool())


@pytest.fixture
def latents() -> torch.Tensor:
    """[1, 4, 3, 16, 32], the first frame of them dark with a bright car."""
    frames = torch.zeros(1, 4, 3, 16, 32) - 0.5
    frames[0, 0, :, 4:12, 3:10] = 0.9
    return frames


def make(network, layout, latents, strength: float, guidance: bool = False) -> torch.Tensor:
    noise = window_noise(tuple(latents.shape), 0, 0)
    config = SamplerConfig(temperature=0.6, layout_guidance=1.0)
    return sample_window(
        network, ScheduleConfig(), layout, latents, TASK.known(torch.tensor([1])), noise, 10, config, guidance, strength
    )


def test_known_boxes_are_carried_to_where_they_are_asked_for(layout, latents):
    mask = torch.tensor([[1.0, 0, 0, 0]])
    still, tracked = (denoiser(motion).carry(latents, mask, layout)[0, 2, 0] for motion in ("mean", "tracks"))
    middle, old = 8, 6  # row; column of the car in the known frame
    column = int((0.1 + 0.4 + 0.1) * 32)  # of its middle two frames later
    assert still[middle, old] == pytest.approx(0.9, abs=0.05)
    assert still[middle, column] == pytest.approx(-0.5, abs=0.05)
    assert tracked[middle, column] == pytest.approx(0.9, abs=0.1)


def test_little_strength_stays_with_the_carried_frames_and_full_strength_does_not(layout, latents):
    network = denoiser("tracks")
    held = network.carry(latents, TASK.known(torch.tensor([1])).mask, layout)
    far = [float((make(network, layout, latents, s) - held)[:, 1:].abs().mean()) for s in (0.1, 0.4, 1.0)]
    assert far[0] < far[1] < far[2]


def test_known_frames_stay_as_they_were(layout, latents):
    made = make(denoiser("tracks"), layout, latents, 0.2, guidance=True)
    assert_close(made[:, 0], latents[:, 0], atol=0, rtol=0)
    assert made.isfinite().all()


def test_where_nothing_is_known_sampling_starts_from_noise_whatever_the_strength(layout, latents):
    network, known = denoiser("mean"), TASK.known(torch.tensor([0]))
    noise = window_noise(tuple(latents.shape), 0, 0)
    weak, full = (
        sample_window(network, ScheduleConfig(), layout, latents, known, noise, 4, SamplerConfig(), False, s)
        for s in (0.25, 1.0)
    )
    assert torch.equal(weak, full)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.5])
def test_strengths_beyond_0_and_1_are_refused(strength):
    with pytest.raises(UserError, match="keyframe_strength"):
        SamplerConfig(keyframe_strength=strength)
