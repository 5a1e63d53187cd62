"""The upsampler's two stages, in pixels as in the paper and in the latents of a pretrained upscaler, to video."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from drivesim import cli
from drivesim.bundle import Bundle
from drivesim.config import parse
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig, check_upsampling
from drivesim.models.upscaler import UpsamplerConfig, load_upscaler
from drivesim.training.stages import load_denoiser
from drivesim.training.train import TrainConfig

PAPER = ["filters=false", "beside=bicubic", "target=picture", "patch=1", "max_level=250", "crop=[32,64]"]
TILED = SamplerConfig(
    image_steps=1,
    keyframe_steps=1,
    interpolate_steps=1,
    upsample_steps=2,
    upsample_tile=16,
    upsample_overlap=8,
    upsample_portion_overlap=2,
)


@pytest.fixture(scope="module")
def words(upscaler_folder) -> dict[str, list[str]]:
    """The options of each kind of upsampler. The clips are of 64x128."""
    upscaler = [f"pretrained={upscaler_folder}", "prompt=a street"]
    return {
        "paper": [f"config.upsample.{word}" for word in PAPER],
        "latents": [
            *(f"config.upsampler.{word}" for word in upscaler),
            "config.upsample.factor=4",
            "config.data.height=16",
            "config.data.width=32",
        ],
    }


@pytest.fixture(scope="module")
def runs(trained, run_in, tmp_path_factory, words):
    """By kind, a run with both stages trained that way. Not to be changed by a test."""
    made = {kind: run_in(tmp_path_factory.mktemp(kind) / "out") for kind in words}
    shutil.copytree(trained.out, made["paper"].out)
    for stage in ("upsample", "upsample_temporal"):
        made["paper"].train(f"stage={stage}", "overwrite=true", *words["paper"])
    made["latents"].train(*words["latents"])  # of another working resolution, so all of it
    return made


@pytest.mark.parametrize("kind", ["paper", "latents"])
def test_the_temporal_stage_trains_temporal_layers_alone(runs, kind):
    denoiser = load_denoiser(Bundle(runs[kind].bundle), "upsample_temporal")
    assert runs[kind].weights("upsample_temporal").keys() == denoiser.temporal.state_dict().keys()
    image = runs[kind].weights("upsample")
    assert all(torch.equal(denoiser.state_dict()[name], weight) for name, weight in image.items())
    record = json.loads((runs[kind].bundle / "upsample_temporal" / "training.json").read_text())
    assert record["steps"] == 3
    assert denoiser.temporal.layers["conv_out"].conv_out.weight.abs().max() > 0


def test_a_pretrained_upscaler_goes_into_the_bundle_as_it_is(runs, upscaler_folder, tmp_path):
    given = load_upscaler(UpsamplerConfig(pretrained=str(upscaler_folder), prompt="a street"))
    kept = runs["latents"].weights("upsample")
    assert kept.keys() == given.state_dict().keys()
    assert all(torch.equal(kept[name], weight) for name, weight in given.state_dict().items())
    record = json.loads((runs["latents"].bundle / "upsample" / "training.json").read_text())
    assert (record["steps"], record["parameters_trained"]) == (0, 0)


def test_a_bundle_does_not_need_the_folder_any_more(runs, tmp_path):
    bundle = Bundle(shutil.copytree(runs["latents"].bundle, tmp_path / "bundle"))
    path = bundle.root / "upsample" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["pretrained"] = "/nowhere"
    path.write_text(json.dumps(config))
    assert load_denoiser(bundle, "upsample_temporal").codec.factor == 4


@pytest.mark.parametrize("kind", ["paper", "latents"])
def test_video_comes_out_whole_tiled_and_from_the_same_seed_the_same(runs, kind):
    pipeline = replace(DrivingPipeline.from_pretrained(runs[kind].bundle), config=TILED)
    low = list(torch.rand(11, 3, pipeline.low_height, pipeline.low_width) * 2 - 1)
    first, again = (torch.stack(list(pipeline.upsampled(iter(low), seed=1))) for _ in range(2))
    assert first.shape == (11, 3, 64, 128)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)


def test_a_pretrained_upscaler_makes_a_video_through_the_command_line(runs, tmp_path):
    out = tmp_path / "a.mp4"
    steps = ["keyframe_steps=1", "interpolate_steps=1", "upsample_steps=1"]
    words = ["upsample_tile=16", "upsample_overlap=4", "upsample_portion=4", "upsample_portion_overlap=1"]
    cli.main(["generate", f"bundle={runs['latents'].bundle}", "seconds=0.2", f"out={out}", *steps, *words])
    assert out.exists()


def test_the_paper_s_experiment_has_an_upsampler_that_fits_its_task():
    config = parse(TrainConfig, ["experiment=rds_512x1024", "data=none"], "drivesim train").config
    config.upsample.check(config.data.height, config.data.width)
    with torch.device("meta"):
        denoiser = config.upsample.network(config.upsampler).build()
        x, planes, one = torch.empty(1, 1, 3, 320, 320), torch.empty(1, 1, 3, 320, 320), torch.ones(1)
        assert denoiser(x, one, planes, level=one.long()).shape == x.shape
    check_upsampling(denoiser, config.upsample, config.data.height, config.data.width, config.sampler)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["config.upsample.factor=2"], "upsamples by 4, config.upsample.factor is 2; set 4"),
        (["config.upsampler.pretrained=/nowhere"], "model_index.json is missing; give the folder of a"),
        (
            ["config.sampler.upsample_level=351"],
            "upsample_level=351, the upsampler knows levels of noise from 0 to 350",
        ),
        (["config.upsample.target=edges"], "config.upsample.target=edges, expected one of residual, picture"),
        (["config.sampler.upsample_tile=7"], "upsample_tile=7, expected a multiple of 2"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(run_in, tmp_path, capsys, words, extra, told):
    run = run_in(tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        cli.main(run.words("stage=upsample", *words["latents"], *extra))
    assert stop.value.code == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(run.out.rglob("*.safetensors"))
