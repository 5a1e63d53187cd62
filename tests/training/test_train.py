"""`drivesim train` as a user meets it: all stages, resumed after a kill, repeated by its seed, mistakes in one line."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from drivesim import cli
from drivesim.bundle import Bundle
from drivesim.data.store import ClipStore
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.generation.samplers import SamplerConfig, sample_frames
from drivesim.models.conditions import CONDITIONS
from drivesim.training import train
from drivesim.training.callbacks import Budget, Checkpoints
from drivesim.training.latent import LatentVideoDiffusion
from drivesim.training.stages import STAGES, load_autoencoder, load_denoiser

TEMPORAL = {"keyframes": "image", "interpolate": "image", "upsample_temporal": "upsample"}


class Killed(Exception):
    """Stands in for a kill."""


@pytest.fixture
def kill_after(monkeypatch):
    """kill_after(n) ends training when n batches are done, with a checkpoint after each; kill_after(None) lets it."""
    real = Budget.on_train_batch_start
    monkeypatch.setattr(train, "Checkpoints", lambda path, seconds: Checkpoints(path, 0))

    def arm(batches: int | None) -> None:
        def start(self, trainer, *args):
            if trainer.fit_loop.epoch_loop.total_batch_idx == batches:
                raise Killed
            real(self, trainer, *args)

        monkeypatch.setattr(Budget, "on_train_batch_start", start)

    return arm


@pytest.fixture
def without(trained, run_in, tmp_path):
    """without(stage): a copy of the trained run that lacks one stage."""

    def copy(stage: str):
        run = run_in(tmp_path / "out")
        shutil.copytree(trained.out, run.out)
        shutil.rmtree(run.bundle / stage)
        index = json.loads((run.bundle / "model_index.json").read_text())
        del index["stages"][stage]
        (run.bundle / "model_index.json").write_text(json.dumps(index))
        return run

    return copy


def fails(capsys, *words: str) -> str:
    """The one line that a mistake of the user gives."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_stage_ends_in_the_bundle_with_its_record(trained):
    bundle = Bundle(trained.bundle).require()
    assert all(bundle.has(stage) for stage in STAGES)
    for stage in STAGES:
        record = json.loads((trained.bundle / stage / "training.json").read_text())
        assert record["steps"] == 3
        assert record["validation_loss"] > 0
        assert all(torch.isfinite(w).all() for w in trained.weights(stage).values())
        assert not (trained.out / stage / "last.ckpt").exists()
        assert list((trained.out / stage / "samples").glob("*.png"))
    assert {p.suffix for p in trained.bundle.rglob("*") if p.is_file()} == {".json", ".safetensors"}


def test_a_record_names_the_data_their_licences_and_the_command(trained):
    record = Bundle(trained.bundle).record("keyframes")
    told = {"name": trained.data.name, "source": "test", "clips": 3, "licences": {"CC0-1.0": 3}}
    assert record["dataset"] == told | {"hours": round((80 / 30 + 6 / 1.875) / 3600, 4)}
    assert record["command"] == shlex.join(["drivesim", *trained.words()])


@pytest.mark.parametrize(("stage", "image"), TEMPORAL.items())
def test_a_temporal_stage_saves_temporal_layers_alone_and_leaves_the_image_network(trained, stage, image):
    denoiser = load_denoiser(Bundle(trained.bundle), stage)
    assert trained.weights(stage).keys() == denoiser.temporal.state_dict().keys()
    network = {name: w for name, w in denoiser.state_dict().items() if not name.startswith("temporal.")}
    assert same(network, trained.weights(image))


def test_image_layers_that_are_trained_too_are_kept_with_the_stage(trained, without):
    run = without("keyframes")
    options = ("train_image=true", "checkpointing=true")
    run.train(
        "stage=keyframes",
        "config.temporal.attention=transformer",
        "config.temporal.noise_level=true",
        *(f"config.stages.keyframes.{option}" for option in options),
    )
    denoiser = load_denoiser(Bundle(run.bundle), "keyframes")
    assert run.weights("keyframes").keys() == denoiser.state_dict().keys()
    changed = [not torch.equal(w, denoiser.state_dict()[name]) for name, w in trained.weights("image").items()]
    assert sum(changed) > 0.8 * len(changed)
    assert same(load_denoiser(Bundle(run.bundle), "image").state_dict(), trained.weights("image"))
    frozen = load_denoiser(Bundle(run.bundle), "interpolate")  # is of the image network as it was
    assert torch.equal(frozen.unet.conv_in.weight, trained.weights("image")["unet.conv_in.weight"])


def test_the_decoder_stage_saves_temporal_layers_alone_and_leaves_the_image_decoder(trained):
    autoencoder = load_autoencoder(Bundle(trained.bundle), decoder=True)
    assert trained.weights("decoder").keys() == autoencoder.temporal.state_dict().keys()
    image = {name: w for name, w in autoencoder.state_dict().items() if not name.startswith("temporal.")}
    assert same(image, trained.weights("autoencoder"))


def test_finished_stages_are_skipped(trained, capsys):
    trained.train()
    told = capsys.readouterr().err
    assert all(f"{stage}: already in" in told for stage in STAGES)


def test_what_was_trained_on_a_stage_that_is_trained_again_is_refused_until_it_is_trained_again_too(
    trained, without, capsys
):
    run = without("image")
    run.train("stage=image", "seed=1")
    assert "out of date now: keyframes, interpolate; run the command with stage=all" in capsys.readouterr().err
    told = fails(capsys, "generate", f"bundle={run.bundle}", f"out={run.out}/a.mp4", "seconds=0.1")
    assert "stage keyframes was trained on an earlier image than the one that is there; run `drivesim train`" in told
    run.train("seed=1")
    told = capsys.readouterr().err
    for stage in STAGES:
        again = stage in ("keyframes", "interpolate")
        assert (f"{stage}: was trained on an earlier image, so it is trained again" in told) == again
        assert (f"{stage}: already in" in told) != again
    assert not same(run.weights("keyframes"), trained.weights("keyframes"))
    cli.main(["generate", f"bundle={run.bundle}", f"out={run.out}/a.mp4", "seconds=0.1"])


def test_a_checkpoint_begun_on_an_earlier_stage_is_not_gone_on_from(without, kill_after):
    run = without("keyframes")
    kill_after(1)
    with pytest.raises(Killed):
        run.train()
    assert (run.out / "keyframes" / "last.ckpt").exists()
    kill_after(None)
    run.train("stage=image", "seed=1", "overwrite=true")
    assert not (run.out / "keyframes" / "last.ckpt").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_stage_equals_an_uninterrupted_one_bit_for_bit(trained, without, kill_after, stage):
    run = without(stage)
    kill_after(2)
    with pytest.raises(Killed):
        run.train()
    assert (run.out / stage / "last.ckpt").exists()
    assert not Bundle(run.bundle).has(stage)
    kill_after(None)
    run.train()
    assert same(run.weights(stage), trained.weights(stage))
    records = [json.loads((r.bundle / stage / "training.json").read_text()) for r in (run, trained)]
    assert records[0]["validation_loss"] == records[1]["validation_loss"]
    assert records[0]["steps"] == 3


def test_an_autoencoder_with_critics_is_resumed_to_the_bit_statistics_of_their_norms_and_all(
    run_in, tmp_path, kill_after
):
    recipe = ["kl=1e-3", "perceptual=stlpips", "adversarial=0.5", "discriminator_width=8"]
    words = ["stage=autoencoder", "config.autoencoder.kind=kl", "config.autoencoder.width=8",
             *(f"config.stages.autoencoder.{word}" for word in recipe)]  # fmt: skip
    whole, resumed = run_in(tmp_path / "whole"), run_in(tmp_path / "resumed")
    whole.train(*words)
    kill_after(2)
    with pytest.raises(Killed):
        resumed.train(*words)
    kill_after(None)
    resumed.train(*words)
    assert same(resumed.weights("autoencoder"), whole.weights("autoencoder"))


@pytest.mark.parametrize("stage", ["image", "autoencoder"])
def test_a_stage_killed_after_its_last_step_still_gives_averaged_weights(
    trained, without, kill_after, monkeypatch, stage
):
    run = without(stage)
    kill_after(None)
    export = train.export

    def killed(*args):
        raise Killed

    monkeypatch.setattr(train, "export", killed)
    with pytest.raises(Killed):
        run.train()
    monkeypatch.setattr(train, "export", export)
    run.train()
    assert same(run.weights(stage), trained.weights(stage))


KL = ["stage=autoencoder", "config.autoencoder.kind=kl", "config.autoencoder.width=8",
      "config.stages.autoencoder.adversarial=0.1"]  # fmt: skip


def test_a_kl_autoencoder_with_a_discriminator_resumes_to_the_bit_and_has_latents_of_unit_size(
    run_in, tmp_path, kill_after
):
    whole, resumed = run_in(tmp_path / "whole"), run_in(tmp_path / "resumed")
    kill_after(None)
    whole.train(*KL)
    assert json.loads((whole.bundle / "autoencoder" / "training.json").read_text())["steps"] == 3
    kill_after(2)
    with pytest.raises(Killed):
        resumed.train(*KL)
    kill_after(None)
    resumed.train(*KL)
    assert same(whole.weights("autoencoder"), resumed.weights("autoencoder"))
    assert whole.weights("autoencoder")["scale"] != 1


def test_accumulated_batches_are_of_different_windows_with_different_noise(without, monkeypatch):
    numbers = []
    real = LatentVideoDiffusion.training_step
    monkeypatch.setattr(
        LatentVideoDiffusion, "training_step", lambda s, batch, i: (numbers.extend(batch.numbers), real(s, batch, i))[1]
    )
    without("image").train("stage=image", "config.stages.image.accumulate=2", "config.stages.image.batch_size=4")
    assert numbers == list(range(3 * 2 * 4))


def test_another_seed_gives_other_weights(trained, without):
    run = without("image")
    run.train("seed=1")
    assert not same(run.weights("image"), trained.weights("image"))


def test_a_run_that_is_killed_goes_on_from_its_checkpoint(without, monkeypatch, capsys):
    run = without("image")
    code = "import sys; from drivesim.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *run.words("checkpoint_seconds=1", steps=10**6)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    last = run.out / "image" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = torch.load(last, weights_only=False)["global_step"]
    assert done > 0
    batches = []
    real = LatentVideoDiffusion.training_step
    monkeypatch.setattr(
        LatentVideoDiffusion, "training_step", lambda s, batch, i: (batches.append(i), real(s, batch, i))[1]
    )
    run.train("stage=image", steps=done + 2)
    assert batches == [done, done + 1]
    told = capsys.readouterr().err
    assert f"image: {done + 2} steps" in told


def test_a_store_without_boxes_trains_and_one_line_says_what_that_means(make_store, run_in, tmp_path, capsys):
    from dataclasses import replace

    store = make_store(tmp_path / "store", [("train", 36, 30)], boxes=False)
    replace(run_in(tmp_path / "out"), data=store.root).train(steps=1)
    told = capsys.readouterr().err
    assert told.count("nothing will be steered by boxes") == 1
    assert all(Bundle(tmp_path / "out" / "bundle").has(stage) for stage in STAGES)


def test_a_checkpoint_of_another_configuration_is_refused(without, kill_after, capsys):
    run = without("image")
    kill_after(1)
    with pytest.raises(Killed):
        run.train()
    kill_after(None)
    told = fails(capsys, *run.words("config.denoiser.block_out_channels=[16,48]"))
    assert "last.ckpt is of another configuration" in told


def cached(folder: Path) -> set[str]:
    """Clips whose latents a cache holds."""
    return {clip for path in folder.glob("*.safetensors") for clip in load_file(path)}


def test_stages_train_on_the_clips_selected_and_on_no_other(run_in, tmp_path, capsys):
    run = run_in(tmp_path / "out")
    run.train("stage=autoencoder", "config.data.where=split == 'val' or frames > 40", steps=1)
    assert f"1 training clips of {run.data} where split == 'val' or frames > 40" in capsys.readouterr().err
    run.train("stage=image", "config.data.where=frames > 40", steps=1)
    latents = next((run.data / "cache").glob(f"latents_{Bundle(run.bundle).sha('autoencoder')[:16]}*"))
    assert cached(latents) == {"c1"}
    record = json.loads((run.bundle / "image" / "training.json").read_text())
    assert record["selection"] == {"where": "frames > 40", "balance": ""}
    capsys.readouterr()
    run.train("stage=autoencoder", steps=1)
    told = capsys.readouterr().err
    assert "trained with where=\"split == 'val' or frames > 40\" (now ''); overwrite=true trains it again" in told


def test_a_run_is_not_gone_on_with_on_other_clips(without, kill_after, capsys):
    run = without("image")
    kill_after(1)
    with pytest.raises(Killed):
        run.train()
    kill_after(None)
    told = fails(capsys, *run.words("config.data.where=frames > 40"))
    assert "this run was begun on other training windows (where was '', now 'frames > 40'" in told


def test_balanced_and_changed_windows_train_and_resume_to_the_bit(trained, without, kill_after):
    changed = ["config.data.balance=night", "config.stages.decoder.augment.flip=0.5",
               "config.stages.decoder.augment.crop=0.7", "config.stages.decoder.augment.jitter=0.3"]  # fmt: skip
    run = without("decoder")
    run.train(*changed)
    whole = run.weights("decoder")
    assert not same(whole, trained.weights("decoder"))
    kill_after(2)
    with pytest.raises(Killed):
        run.train("stage=decoder", "overwrite=true", *changed)
    kill_after(None)
    shutil.rmtree(run.bundle / "decoder")
    index = json.loads((run.bundle / "model_index.json").read_text())
    del index["stages"]["decoder"]
    (run.bundle / "model_index.json").write_text(json.dumps(index))
    run.train("stage=decoder", *changed)
    assert same(run.weights("decoder"), whole)


def test_mirrored_windows_of_latents_are_read_from_a_mirrored_cache(without):
    run = without("image")
    run.train("stage=image", "config.stages.image.augment.flip=0.5")
    mirrored = [folder for folder in (run.data / "cache").iterdir() if folder.name.endswith("_mirrored")]
    assert len(mirrored) == 1
    assert cached(mirrored[0]) == set(ClipStore(run.data).clips())


def test_an_image_network_is_trained_on_the_conditions_of_its_config_and_steered_by_each(without, small_store):
    run, names = without("image"), list(CONDITIONS)
    chosen = f"config.denoiser.conditions=[{','.join(names)}]"
    run.train("stage=image", chosen, "config.image.drop={boxes: 0.2, weather: 0.3}", steps=2)
    config = json.loads((run.bundle / "image" / "config.json").read_text())
    assert config["model"]["conditions"] == names
    assert config["task"]["drop"] == {"boxes": 0.2, "weather": 0.3}
    denoiser, schedule = load_denoiser(Bundle(run.bundle), "image"), ScheduleConfig()
    dry = small_store.layout("c0", slots=6)[torch.arange(2)][None]
    wet = replace(dry, weather=torch.full_like(dry.weather, 2))
    noise, few = torch.randn(1, 2, 4, 4, 8, generator=torch.Generator().manual_seed(0)), SamplerConfig(image_steps=2)
    made = [sample_frames(denoiser, schedule, layout, noise, few) for layout in (dry, wet)]
    assert not torch.equal(*made)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["config.data.where=nigth"], "where: unknown column 'nigth'; did you mean night?"),
        (["config.data.where=frames > 999"], "where=frames > 999 holds for none of 5 clips"),
        (["config.data.balance=nigth"], "balance=nigth is no tag; did you mean night?"),
        (["config.stages.decoder.augment.flip=2"], "config.stages.decoder.augment.flip=2.0"),
        (["config.stages.image.augment.jitter=0.1"], "this stage trains on latents, which can be mirrored only"),
        (["stage=images"], "unknown stage 'images'"),
        (["seed=-1"], "seed=-1, expected 0 to"),
        (["budget_minutes=0"], "expected more than 0"),
        (["config.stages.image.max_steps=-1"], "nothing ends stage image"),
        (["config.data.height=36"], "multiples of 16"),
        (["config.predict.frames=2"], "expected 3 or more"),
        (["config.interpolate.keys=1"], "config.interpolate.keys=1, expected 2 or more"),
        (["config.schedule.weighting=snr"], "expected one of velocity, epsilon, latents, min_snr"),
        (["config.schedule.prediction=epsilon"], "set prediction=v or zero_snr=false"),
        (["config.sampler.sampler=plms"], "sampler=plms, expected one of ddim"),
        (["config.sampler.sampler=heun"], "use dpm++ or unipc"),
        (["config.upsample.patch=3"], "must be a multiple of config.upsample.factor=2"),
        (["checkpoint_seconds=0"], "expected 1 or more"),
        (["config.autoencoder.kind=vq"], "config.autoencoder describes no network: kind is 'vq', expected one of"),
        (["config.denoiser.groups=7"], "config.denoiser describes no network"),
        (["config.denoiser.attention=[true]"], "config.denoiser describes no network"),
        (["config.denoiser.token_dim=0"], "config.denoiser describes no network"),
        (["config.data.height=64", "config.data.width=128"], "is 64x128, the upsampler trains on patches of 128x256"),
        (["config.predict.frames=30"], "no train clip is long enough for a window of 30 frames at 1.875 fps"),
        (["config.denoiser.conditions=[boxes,wether]"], "unknown condition 'wether'; known: boxes, night"),
        (["config.denoiser.conditions=[night,solids]"], "condition solids says more of boxes; add boxes"),
        (["config.image.drop={weather: 0.1}"], "config.image.drop: this model is not told weather; it is told boxes"),
        (["config.predict.drop={night: 1.5}"], "config.predict: night is dropped at a rate of 1.5, expected 0 to 1"),
        (["config.image.drop_boxes=nan"], "config.image: drop_boxes is dropped at a rate of nan, expected 0 to 1"),
        (["config.sampler.guidance={fog: 2}"], "config.sampler.guidance: this model is not told fog"),
        (["config.denoiser.channels=6"], "config.denoiser.channels is 6 but the autoencoder makes 4"),
    ],
)
def test_mistakes_are_told_in_one_line(run_in, tmp_path, capsys, words, told):
    assert told in fails(capsys, *run_in(tmp_path / "out").words(*words))
    assert not list(tmp_path.rglob("*.safetensors"))  # before anything was trained


def test_an_image_stage_without_an_autoencoder_is_told(run_in, tmp_path, capsys):
    told = fails(capsys, *run_in(tmp_path / "out").words("stage=image"))
    assert re.search(r"no stage 'autoencoder'.*drivesim train stage=autoencoder", told)
