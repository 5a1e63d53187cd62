"""What conditions are worth: numbers of a network of which it is known."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from benchmarks import conditions
from benchmarks.conditions import Frames, looks, worth
from drivesim.clip import Layout
from drivesim.diffusion.schedule import ScheduleConfig


class Knowing:
    """Knows what night decides, latents of -1 by day and 1 by night, and nothing else; its answer is the velocity."""

    config = SimpleNamespace(conditions=["night", "crowdedness"])
    prior, latent_std = None, torch.ones(2)

    def condition(self, layout: Layout, height: int, width: int):
        guess = (2 * layout.night - 1).nan_to_num(0.0)[..., None, None, None]
        return guess.expand(-1, -1, 2, height, width), None

    def __call__(self, z, timestep, planes, *rest):
        return planes


def test_a_condition_is_worth_what_the_network_makes_of_it_and_one_it_ignores_nothing(monkeypatch):
    layout = Layout.unknown(16)
    layout.night[:], layout.crowdedness[:] = (torch.arange(16) // 2 % 2).float(), torch.arange(16)
    held_out = Frames(torch.zeros(16, 3, 8, 8), layout, torch.arange(16) // 2)
    latents = (2 * layout.night - 1)[:, None, None, None].expand(16, 2, 4, 4)
    # The network predicts latents; so is it judged here.
    monkeypatch.setattr(conditions, "predict_velocity", lambda denoiser, d, z, t, planes, tokens: planes)
    monkeypatch.setattr(conditions.Diffusion, "velocity", lambda self, x, noise, timestep: x + 0.5)
    found = {name: whole for name, whole, _ in worth(Knowing(), ScheduleConfig(), latents, held_out, seed=0)}
    # Of an error of 0.25 everywhere: left out it is off by 1.5 or 0.5, swapped (clips alternate) by 2.5 or 1.5.
    assert found["night left out"][0] == pytest.approx(100 * ((2.25 + 0.25) / 2 - 0.25) / 0.25)
    assert found["night of another clip"][0] == pytest.approx(100 * ((6.25 + 2.25) / 2 - 0.25) / 0.25)
    assert found["night of another clip"][1] > 0
    assert found["crowdedness left out"] == found["crowdedness of another clip"] == (0, 0)


def test_looks_are_the_brightness_of_the_road_and_the_contrast_of_the_distance():
    pictures = torch.zeros(2, 3, 64, 128) - 1
    pictures[:, :, 40:] = 0.5
    road, far = looks(pictures)
    assert (road, far) == (pytest.approx(0.75), pytest.approx(0))
    pictures[:, :, 20:31, 48:64] = 1  # half of the distance
    assert_close(torch.tensor(looks(pictures)[1]), torch.tensor(0.5), atol=0.01, rtol=0)
    assert all(torch.tensor(looks(pictures[:0])).isnan())
