"""From a trained bundle to video: every kind of start and upsampler, and bundles that something is wrong with."""

import json
import shutil
from dataclasses import replace

import av
import pytest
import torch

from benchmarks import closed_forms
from drivesim import cli
from drivesim.bundle import Bundle, sha256
from drivesim.errors import UserError
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig
from drivesim.training.stages import STAGES

FEW = SamplerConfig(image_steps=2, keyframe_steps=2, interpolate_steps=2, upsample_steps=2)


@pytest.fixture(scope="module")
def pipeline(trained) -> DrivingPipeline:
    return replace(DrivingPipeline.from_pretrained(trained.bundle), config=FEW)


@pytest.fixture
def copy(trained, tmp_path) -> Bundle:
    """A bundle that a test may spoil."""
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    return Bundle(tmp_path / "bundle")


def change(bundle: Bundle, file: str, edit) -> None:
    path = bundle.root / file
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("start", "upsampler", "size"), [(0, "diffusion", (64, 128)), (1, "bicubic", (64, 128)), (2, "none", (32, 64))]
)
def test_a_trained_bundle_makes_a_second_of_video(pipeline, small_store, start, upsampler, size):
    pictures = torch.rand(start, 3, 64, 128) * 2 - 1 if start else None
    layout = small_store.layout("c0", slots=6)
    frames = list(pipeline(start=pictures, layout=layout, seconds=1, seed=0, upsampler=upsampler))
    assert len(frames) == 30
    assert all(f.shape == (3, *size) and f.dtype == torch.uint8 for f in frames)
    assert len({f.float().mean().item() for f in frames}) > 5


def test_what_is_asked_for_changes_what_is_made(pipeline, small_store):
    layout = small_store.layout("c0", slots=6)
    made = [torch.stack(list(pipeline(start=None, layout=asked, seconds=0.2, seed=0, upsampler="none")))
            for asked in (layout, None)]  # fmt: skip
    assert not torch.equal(*made)


def test_the_command_line_makes_the_same_video_from_the_same_seed(trained, small_store, tmp_path, capsys):
    found = []
    for name in ("a.mp4", "b.mp4"):
        words = [f"bundle={trained.bundle}", f"start={small_store.root}:c0", f"layout={small_store.root}:c0",
                 "keyframe_steps=2", "interpolate_steps=1", "upsample_steps=1"]  # fmt: skip
        cli.main(["generate", *words, "seconds=0.5", f"out={tmp_path / name}"])
        with av.open(str(tmp_path / name)) as video:
            found.append([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    assert len(found[0]) == 15
    assert found[0][0].shape == (64, 128, 3)
    assert all((a == b).all() for a, b in zip(*found, strict=True))


def test_a_pipeline_loads_without_its_upsampler_and_says_so_when_it_is_asked_for(trained):
    pipeline = DrivingPipeline.from_pretrained(trained.bundle, upsampler=False)
    with pytest.raises(UserError, match="without its upsampler; use upsampler=bicubic"):
        pipeline(start=None, layout=None, seconds=1, seed=0)


@pytest.mark.parametrize("name", ["height", "width", "key_fps", "slots"])
def test_a_bundle_without_its_sizes_is_refused(copy, name):
    change(copy, "model_index.json", lambda index: index["data"].pop(name))
    with pytest.raises(UserError, match=rf"model_index.json: data.{name} is None"):
        DrivingPipeline.from_pretrained(copy.root)


def test_a_bundle_without_data_is_refused(copy):
    change(copy, "model_index.json", lambda index: index.pop("data"))
    with pytest.raises(UserError, match=r"model_index.json: data.height is None"):
        DrivingPipeline.from_pretrained(copy.root)


@pytest.mark.parametrize("stage", STAGES)
def test_a_bundle_that_lacks_a_stage_names_it(copy, stage):
    change(copy, "model_index.json", lambda index: index["stages"].pop(stage))
    with pytest.raises(UserError, match=f"no stage '{stage}'"):
        DrivingPipeline.from_pretrained(copy.root)


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_stage_is_named(copy, stage):
    path = copy.weights(stage)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{stage}/{path.name} is damaged"):
        DrivingPipeline.from_pretrained(copy.root)


@pytest.mark.parametrize("key", ["model", "task", "schedule"])
def test_a_config_that_lacks_a_part_is_named(copy, key):
    stage = {"model": "autoencoder", "task": "keyframes", "schedule": "image"}[key]
    change(copy, f"{stage}/config.json", lambda config: config.pop(key))
    with pytest.raises(UserError, match=rf"{stage}/config.json: {key}"):
        DrivingPipeline.from_pretrained(copy.root)


def test_temporal_layers_of_another_shape_are_refused(copy):
    for file in ("temporal.safetensors", "config.json"):
        shutil.copy(copy.root / "upsample_temporal" / file, copy.root / "keyframes" / file)
    new = sha256(copy.weights("keyframes"))
    change(copy, "model_index.json", lambda index: index["stages"]["keyframes"].update(sha256=new))
    with pytest.raises(UserError, match=r"keyframes/"):
        DrivingPipeline.from_pretrained(copy.root)


def test_settings_that_make_no_sense_together_are_refused(copy):
    change(copy, "model_index.json", lambda index: index["data"].update(height=34))
    with pytest.raises(UserError, match="34x64 is no multiple of the autoencoder's factor of 8"):
        DrivingPipeline.from_pretrained(copy.root)


def test_closed_forms_are_compared_with_what_was_trained(pipeline, small_store):
    errors = dict(closed_forms.denoising(pipeline, small_store, seed=0))
    assert len(errors) == 5  # the spreads alone, three Gaussians, the network
    assert all(0 < error < float("inf") for error in errors.values())
    rows = list(closed_forms.driving(pipeline, small_store))
    assert [round(seconds, 2) for seconds, *_ in rows] == [0.13, 0.53, 1.07, 2.13]  # the longest clip holds 3.2 s
    assert all(still > 0 and driven > 0 for _, still, driven in rows)
