"""A rollout that is stopped between two frames and goes on by another pipeline makes what an unbroken one makes."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.testing import assert_close

from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import FLAGS, Interpolate, Predict
from drivesim.diffusion.upsample import Upsample
from drivesim.generation.costs import Cost
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig
from drivesim.generation.stage import Rollout, Stage, take
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.denoiser import DenoiserConfig
from drivesim.models.video_decoder import VideoDecoderConfig

FRAMES = 34


def network(channels: int, context: int | None = None, planes: int = 12):
    config = DenoiserConfig(channels, planes, [16, 16], [1, 1], [False, False], token_dim=0, groups=8, context_width=8)
    model = config.build()
    return model if context is None else model.inflate(context)


def build(keys: int = 2, **config) -> DrivingPipeline:
    """Always the same weights, in networks of its own."""
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig("patch", 4, 8, 16, 1).build()
    autoencoder.inflate_decoder(VideoDecoderConfig())
    steps = SamplerConfig(image_steps=2, keyframe_steps=2, interpolate_steps=1, upsample_steps=2, layout_guidance=2.0)
    return DrivingPipeline(
        autoencoder=autoencoder.requires_grad_(False),
        image=network(4),
        keyframes=network(4, 4 + FLAGS),
        interpolator=network(4, 4 + FLAGS),
        upsampler=network(48, 0, 25),
        schedule=ScheduleConfig(),
        predict=Predict(frames=3),
        interpolate=Interpolate(keys=keys),
        upsample=Upsample(factor=2, patch=4),
        low_height=32,
        low_width=64,
        key_fps=1.875,
        slots=3,
        config=replace(steps, **config),
    )


def make(pipeline: DrivingPipeline, upsampler: str = "diffusion", start: torch.Tensor | None = None) -> Rollout:
    return pipeline(start=start, layout=None, seconds=FRAMES / 30, seed=1, upsampler=upsampler)


KINDS = {
    "portions": {},
    "overlapping portions": {"upsample_portion_overlap": 3},
    "noise in every step": {"sampler": "ddpm", "eta": 1.0},
    "windows of three keyframes": {"keys": 3},
    "bicubic": {"upsampler": "bicubic"},
    "working resolution": {"upsampler": "none"},
    "from two frames": {"start": torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(3)) * 2 - 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_anywhere_it_goes_on_with_the_same_frames(kind):
    options = dict(KINDS[kind])
    making = {name: options.pop(name) for name in ("upsampler", "start") if name in options}
    unbroken = torch.stack(list(make(build(**options), **making)))
    assert len(unbroken) == FRAMES
    done = 0
    rollout = make(build(**options), **making)
    for more in (0, 1, 7, 9, 17):
        made = list(islice(rollout, more))
        assert all(map(torch.equal, made, unbroken[done : done + more]))
        done, state = done + more, rollout.state()
        rollout = make(build(**options), **making)
        rollout.restore(state, "cpu")
    assert done == FRAMES
    assert list(rollout) == []


def test_costs_are_told_for_each_stage_by_itself_and_go_on_too():
    rollout = make(build())
    list(islice(rollout, 20))
    again = make(build())
    again.restore(rollout.state(), "cpu")
    list(again)
    costs = again.costs()
    assert list(costs) == ["keyframes", "interpolate 1", "interpolate 2", "decode", "upsample"]
    whole = make(build())
    list(whole)
    answers = {name: cost.evaluations for name, cost in whole.costs().items()}
    assert answers == {name: cost.evaluations for name, cost in costs.items()}
    # Two steps of the image network and of each of three windows of keyframes, all guided by the layout.
    assert answers["keyframes"] == 2 * 2 + 3 * 2 * 2
    assert answers["interpolate 1"] == 4  # windows of one step, four at once
    assert answers["interpolate 2"] == 12
    assert answers["decode"] == 6  # windows of 8 frames that share two
    assert answers["upsample"] == 5 * 2  # portions of 8 frames
    assert sum(cost.seconds for cost in costs.values()) <= again.last.spent.seconds
    assert all(cost.seconds > 0 for cost in costs.values())


def test_seconds_of_a_stage_are_without_those_of_its_source():
    clock = iter(range(0, 1000, 10))
    source = Stage("source", lambda kept: [torch.zeros(3)])
    stage = Stage("stage", lambda kept: [next(source)], source)
    rollout = Rollout(stage, Ticking(clock))
    next(rollout)
    assert {name: cost.seconds for name, cost in rollout.costs().items()} == {"source": 10, "stage": 20}


class Ticking:
    """A meter whose every reading is a moment later."""

    evaluations = 0

    def __init__(self, moments) -> None:
        self.moments = moments

    def read(self) -> Cost:
        return Cost(next(self.moments))


def test_no_frame_is_taken_beyond_those_asked_for():
    source = iter([torch.zeros(1), torch.ones(1)])
    assert_close(torch.cat(list(take(source, 1))), torch.zeros(1))
    assert_close(next(source), torch.ones(1))
