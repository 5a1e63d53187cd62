"""The paper's choices where `town` has others, trained for a few steps through the command line, and sampled."""

import json
import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch

from drivesim.bundle import Bundle
from drivesim.diffusion.solvers import SOLVERS
from drivesim.generation import generate
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig

PAPER = [
    "config.denoiser.prior=0", "config.temporal.carry=false", "config.interpolate.keys=3",
    "config.interpolate.drop_context=0.2", "config.interpolate.context_augmentation=250",
    "config.predict.context_noise=0", "config.predict.context_augmentation=250", "config.schedule.beta=linear",
    "config.schedule.beta_start=1e-4", "config.schedule.beta_end=2e-2", "config.schedule.zero_snr=false",
    "config.schedule.prediction=epsilon", "config.schedule.weighting=min_snr",
]  # fmt: skip
FEW = SamplerConfig(image_steps=2, keyframe_steps=2, interpolate_steps=2, upsample_steps=2)


@pytest.fixture(scope="module")
def pipeline(run_in, tmp_path_factory) -> DrivingPipeline:
    run = run_in(tmp_path_factory.mktemp("paper") / "out")
    run.train(*PAPER, steps=2)
    return DrivingPipeline.from_pretrained(run.bundle)


@pytest.fixture(scope="module")
def make(pipeline, small_store):
    """make(option=value, ...): keyframes with the frames between them, as latents, which no option can saturate."""

    def make(**options) -> torch.Tensor:
        changed = replace(pipeline, config=replace(FEW, **options))
        return torch.stack(list(islice(changed.coarse_latents(None, small_store.layout("c0", slots=6), seed=0), 9)))

    return make


def test_what_was_trained_is_in_the_bundle(pipeline):
    assert (pipeline.interpolate.keys, pipeline.interpolate.frames) == (3, 9)
    assert pipeline.predict.context_channels == pipeline.interpolate.context_channels == 4
    assert pipeline.schedule.prediction == "epsilon"
    assert not pipeline.keyframes.carries


@pytest.mark.parametrize("sampler", SOLVERS)
def test_every_sampler_makes_frames_the_same_from_the_same_seed(make, sampler):
    first = make(sampler=sampler)
    torch.manual_seed(5)
    assert torch.equal(make(sampler=sampler), first)
    assert first.shape == (9, 4, 4, 8)
    assert first.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"context_guidance": 3.0},
        {"interpolate_guidance": 3.0},
        {"layout_guidance": 3.0},
        {"context_guidance": 3.0, "guidance_rescale": 0.7},
        {"context_guidance": 3.0, "guidance_low": 0.6},
        {"context_augmentation": 200},
        {"eta": 1.0},
        {"spacing": "leading"},
    ],
)
def test_every_option_of_sampling_changes_what_is_made(make, options):
    assert not torch.equal(make(**options), make())


def test_guidance_in_one_call_or_in_several_makes_the_same_video(make):
    options = {"context_guidance": 2.0, "layout_guidance": 2.0}
    one, several = (make(guidance_batched=batched, **options) for batched in (True, False))
    assert (one - several).abs().mean() < 0.02 * one.abs().mean()  # bfloat16 rounds other batches otherwise


def test_the_command_line_knows_the_samplers_by_the_names_of_the_library():
    assert tuple(SOLVERS) == generate.SAMPLERS


def test_bundles_from_before_these_options_are_read_with_what_they_meant_then(trained, tmp_path):
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    new = {"prediction", "beta_start", "beta_end", "gamma", "keys", "drop_context", "context_noise",
           "context_augmentation"}  # fmt: skip
    for stage in ("image", "keyframes", "interpolate"):
        path = tmp_path / "bundle" / stage / "config.json"
        config = json.loads(path.read_text())
        for part in ("task", "schedule"):
            kept = {"context_noise"} if stage == "keyframes" else set()
            config[part] = {name: value for name, value in config[part].items() if name not in new - kept}
        path.write_text(json.dumps(config))
    old, now = (DrivingPipeline.from_pretrained(folder) for folder in (tmp_path / "bundle", trained.bundle))
    assert (old.schedule, old.predict, old.interpolate) == (now.schedule, now.predict, now.interpolate)
    assert Bundle(tmp_path / "bundle").sampler(SamplerConfig) == Bundle(trained.bundle).sampler(SamplerConfig)
