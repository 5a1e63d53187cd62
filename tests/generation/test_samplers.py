"""Guidance of single conditions, against its formula written out."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from drivesim.clip import CLASSES, Layout
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import Predict
from drivesim.errors import UserError
from drivesim.generation.samplers import SamplerConfig, sample_frames, sample_window, unknown_like
from drivesim.models.conditioning import POSITIONS, plane_count
from drivesim.models.conditions import CONDITIONS, without
from drivesim.models.denoiser import Denoiser, DenoiserConfig

NAMES = ["boxes", "night", "crowdedness", "weather", "speed", "solids", "tracks"]
SCHEDULE = ScheduleConfig(zero_snr=False)
ONE = SamplerConfig(image_steps=1, keyframe_steps=1, layout_guidance=1.0)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(
        channels=4, planes=plane_count(NAMES) + POSITIONS, block_out_channels=[16, 16], layers_per_block=[1, 1],
        attention=[False, True], token_dim=16, head_dim=8, groups=8, conditions=NAMES,
    )  # fmt: skip
    return config.build().eval()


def layout() -> Layout:
    solids = torch.tensor([12.0, 4, 2, 1.5, 0.2]).expand(1, 1, 1, 5)
    return replace(
        Layout.unknown(1, 1, slots=1), boxes=torch.tensor([[[[0.2, 0.4, 0.6, 0.8]]]]), solids=solids,
        classes=torch.full((1, 1, 1), CLASSES.index("car")), tracks=torch.full((1, 1, 1), 4),
        known=torch.ones(1, 1).bool(), night=torch.ones(1, 1), crowdedness=torch.full((1, 1), 3.0),
        weather=torch.full((1, 1), 2), speed=torch.full((1, 1), 9.0),
    )  # fmt: skip


NOISE = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def made(denoiser: Denoiser, asked: Layout, **changes) -> torch.Tensor:
    """What one step makes: linear in the velocity, so guidance of velocities is guidance of what is made."""
    return sample_frames(denoiser, SCHEDULE, asked, NOISE, replace(ONE, **changes))


def test_each_condition_is_guided_by_its_own_scale_away_from_all_but_it(denoiser):
    scales = {name: 0.5 + number for number, name in enumerate(NAMES)}
    told = made(denoiser, layout())
    expected = told + 0.7 * (told - made(denoiser, unknown_like(layout())))
    for name, scale in scales.items():
        expected = expected + (scale - 1) * (told - made(denoiser, without(layout(), [name])))
    guided = made(denoiser, layout(), guidance=scales, layout_guidance=1.7)
    assert_close(guided, expected, atol=2e-2, rtol=2e-2)  # in half precision
    assert not torch.allclose(guided, told, atol=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_at_scale_0_is_as_if_it_were_left_out(denoiser, name):
    assert_close(
        made(denoiser, layout(), guidance={name: 0.0}), made(denoiser, without(layout(), [name])), atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_that_is_not_told_is_not_guided(denoiser, name):
    asked = without(layout(), [name])
    assert torch.equal(made(denoiser, asked, guidance={name: 5.0}), made(denoiser, asked))


def test_keyframes_are_guided_by_conditions_too(denoiser):
    class Same:
        """An autoencoder whose latents are its pixels."""

        def encode(self, x):
            return x

        decode = encode

    torch.manual_seed(0)
    task = Predict(frames=3)
    video = denoiser.config.build().eval().inflate(4 + task.context_channels).carry_by(Same())
    asked = Layout.cat([layout()] * 3, 1).driven(torch.arange(3)[None].float(), 8.0)
    noise = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def window(asked: Layout, guidance: dict[str, float]) -> torch.Tensor:
        config, known = replace(ONE, guidance=guidance), task.known(torch.tensor([1]))
        return sample_window(video, SCHEDULE, asked, noise, known, noise, 1, config, guidance=True)

    told, bare = window(asked, {}), window(without(asked, ["weather"]), {})
    assert_close(window(asked, {"weather": 3.0}), told + 2 * (told - bare), atol=3e-2, rtol=3e-2)
    assert not torch.allclose(told, bare)


def test_guidance_by_what_the_model_is_not_told_is_refused(denoiser):
    with pytest.raises(UserError, match="guidance: this model is not told steering; it is told boxes, night"):
        made(denoiser, layout(), guidance={"steering": 2.0})


def test_the_unconditional_layout_tells_nothing():
    nothing = unknown_like(layout())
    assert not any(condition.told(nothing).any() for condition in CONDITIONS.values())
