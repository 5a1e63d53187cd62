"""A bundle that an earlier version saved is read by this one, to the bit, and makes video."""

import json
from itertools import islice

import pytest
import torch

from drivesim.bundle import Bundle
from drivesim.bundles.headers import Headers
from drivesim.bundles.verify import problems
from drivesim.bundles.versions import FORMAT, READ
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.denoiser import DenoiserConfig

SEVEN = ("autoencoder", "image", "keyframes", "interpolate", "decoder", "upsample", "upsample_temporal")


def test_nothing_is_wrong_with_it(golden):
    assert list(problems(Headers(golden))) == []
    assert tuple(Bundle(golden).index["stages"]) == SEVEN


def test_it_makes_video(golden):
    pipeline = DrivingPipeline.from_pretrained(golden)
    assert (pipeline.height, pipeline.width, pipeline.fps, pipeline.slots) == (64, 128, 30.0, 6)
    frames = torch.stack(list(islice(pipeline(start=None, layout=None, seconds=1, seed=0), 2)))
    assert frames.shape == (2, 3, 64, 128)
    assert frames.float().std() > 1


@pytest.mark.parametrize(("stage", "kind"), [("autoencoder", AutoencoderConfig), ("image", DenoiserConfig)])
def test_its_weights_are_those_that_were_saved(golden, golden_script, stage, kind):
    for name, tensor in Bundle(golden).network(stage, kind).state_dict().items():
        assert torch.equal(tensor, torch.from_numpy(golden_script.weight(name, list(tensor.shape)))), name


def test_its_sampler_is_the_one_it_was_saved_with(golden):
    sampler = DrivingPipeline.from_pretrained(golden).config
    assert (sampler.sampler, sampler.keyframe_steps, sampler.upsample_steps) == ("ddim", 16, 3)


def test_a_bundle_from_before_stages_said_what_they_are_made_of_makes_video(bundle, change):
    for stage in ("decoder", "keyframes", "interpolate", "upsample_temporal"):
        field = "model" if stage == "decoder" else "temporal"
        change(bundle / stage / "config.json", lambda config, field=field: config.pop(field))
    change(bundle / "model_index.json", lambda index: [entry.pop("built_on") for entry in index["stages"].values()])
    assert list(problems(Headers(bundle))) == []
    assert DrivingPipeline.from_pretrained(bundle).autoencoder.temporal is not None


def test_a_bundle_of_a_format_to_come_is_told(bundle, change):
    assert FORMAT in READ
    change(bundle / "model_index.json", lambda index: index.update(format=FORMAT + 1))
    (line,) = problems(Headers(bundle))
    assert f"has format {FORMAT + 1}, this version reads" in line


def test_a_description_of_a_bundle_makes_the_same_bundle_again(golden, golden_script, tmp_path):
    golden_script.describe(golden, tmp_path / "described")
    again = golden_script.make(tmp_path / "described", tmp_path / "again")
    assert json.loads((again / "model_index.json").read_text()) == json.loads((golden / "model_index.json").read_text())
