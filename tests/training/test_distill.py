"""`drivesim distill`: a bundle that takes few steps, taught by one that takes many."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from drivesim import cli
from drivesim.bundle import Bundle
from drivesim.data.store import ClipStore
from drivesim.data.windows import WindowDataset, collate
from drivesim.diffusion.draws import Streams, rand, randn
from drivesim.diffusion.schedule import Diffusion
from drivesim.diffusion.upsample import Pixels
from drivesim.errors import UserError
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig, sample_upsampled, sample_window
from drivesim.training import train
from drivesim.training.callbacks import Budget, Checkpoints
from drivesim.training.distill import described, main
from drivesim.training.distillation import Distill
from drivesim.training.stages import STAGES, Workspace, load_denoiser

pytestmark = pytest.mark.usefixtures("alike")


class Killed(Exception):
    """Stands in for a kill."""


@pytest.fixture
def distil(trained, tmp_path):
    """distil(*words): teach keyframes of the trained bundle into a folder, or as the words say."""

    def run(*words: str) -> Bundle:
        given = dict(word.split("=", 1) for word in words)
        usual = {"bundle": trained.bundle, "data": trained.data, "out": tmp_path / "few", "max_steps": 3}
        options = {**usual, "steps": 2, "batch_size": 2, **given}
        main([f"{name}={value}" for name, value in options.items()])
        return Bundle(Path(options["out"]) / "bundle")

    return run


@pytest.fixture
def work(trained):
    bundle = Bundle(trained.bundle)
    return Workspace(described(bundle), ClipStore(trained.data), bundle, 0)


def weights(bundle: Bundle, stage: str) -> bytes:
    return bundle.weights(stage).read_bytes()


def test_a_taught_stage_takes_the_place_of_its_teacher_and_its_steps_are_the_default(distil, trained):
    teacher, before = Bundle(trained.bundle), Bundle(trained.bundle).sha("keyframes")
    student = distil("teacher_steps=6", "layout_guidance=3", "context_guidance=2")
    assert {s for s in STAGES if student.sha(s) != teacher.sha(s)} == {"keyframes"}
    assert teacher.sha("keyframes") == before
    sampler = student.sampler(SamplerConfig)
    assert (sampler.keyframe_steps, sampler.distilled) == (2, ["keyframes"])
    assert replace(sampler, keyframe_steps=0, distilled=[]) == replace(teacher.sampler(SamplerConfig), keyframe_steps=0)
    assert student.config("keyframes")["distilled"] == {
        "steps": 2,
        "teacher_steps": 6,
        "order": 2,
        "teacher": {"sha256": before},
        "guidance": {"layout_guidance": 3.0, "context_guidance": 2.0},
    }
    assert student.record("keyframes")["steps"] == 3
    assert student.index["data"] == teacher.index["data"]


def test_every_stage_that_is_sampled_in_windows_can_be_taught_and_the_pipeline_makes_video_of_them(distil, trained):
    student = distil("stage=all")
    teacher = Bundle(trained.bundle)
    changed = {stage for stage in STAGES if student.sha(stage) != teacher.sha(stage)}
    assert changed == {"keyframes", "interpolate", "upsample_temporal"}
    assert student.sampler(SamplerConfig).distilled == ["interpolate", "keyframes", "upsample_temporal"]
    pipeline = DrivingPipeline.from_pretrained(student.root)
    frames = list(pipeline(start=None, layout=None, seconds=0.2, seed=0))
    assert len(frames) == round(0.2 * pipeline.fps)


def test_options_that_do_nothing_in_a_taught_stage_are_told(distil, trained, tmp_path, capsys):
    student = distil()
    video = "seconds=0.1", "upsampler=none", "layout_guidance=3", "keyframe_steps=1"
    cli.main(["generate", f"bundle={student.root}", f"out={tmp_path}/a.mp4", *video])
    told = "layout_guidance: nothing of it in keyframes, which learned a sampler and guidance"
    assert f"drivesim: {told}" in capsys.readouterr().err
    cli.main(["generate", f"bundle={trained.bundle}", f"out={tmp_path}/b.mp4", *video])
    assert "learned a sampler" not in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["keyframes", "interpolate"])
def test_a_student_of_one_step_is_taught_the_very_sample_that_its_guided_teacher_makes(work, stage):
    schedule, specs = work.experiment.schedule, work.specs[stage]
    data = WindowDataset(work.store, work.latents, "train", specs, 0, work.experiment.data.slots)
    batch = collate([data[i] for i in range(3)])
    task = work.experiment.predict if stage == "keyframes" else work.experiment.interpolate
    task = replace(task, drop_boxes=0.0, drop_labels=0.0, context_noise=0.0)
    task = replace(task, probabilities=[0.0, 1.0]) if stage == "keyframes" else task
    sampler = SamplerConfig(layout_guidance=3.0, context_guidance=2.0, guidance_low=0.3, temperature=0.7)
    pupil, teacher = (load_denoiser(work.bundle, stage).carry_by(work.autoencoder) for _ in range(2))
    shake(teacher)
    distill = Distill(task, teacher, sampler, 1, 5, lambda noise: sampler.start(teacher, noise), order=1)
    problem = distill.pose(batch, pupil, Streams(0, range(3)), Diffusion(schedule))
    counts = torch.ones(3, dtype=torch.long)
    known = task.known(counts if stage == "keyframes" else batch.level)
    noise = problem.lesson.noisy / 0.7  # nothing is left of the data at the first timestep
    made = sample_window(teacher, schedule, batch.layout, batch.x, known, noise, 5, sampler, guidance=True)
    unknown = known.mask == 0
    # From all noise to data in one step, the velocity is the data with its sign changed.
    assert_close(-problem.lesson.velocity[unknown], made[unknown], atol=2e-4, rtol=1e-4)
    plain = replace(sampler, layout_guidance=1.0, context_guidance=1.0)
    made = sample_window(teacher, schedule, batch.layout, batch.x, known, noise, 5, plain, guidance=True)
    assert not torch.allclose(-problem.lesson.velocity[unknown], made[unknown], atol=0.02)


def test_an_upsampler_of_one_step_is_taught_the_very_sample_that_its_teacher_makes(work):
    task, schedule = replace(work.experiment.upsample, temporal=True), work.experiment.schedule
    data = WindowDataset(work.store, work.patches(), "train", work.specs["upsample_temporal"], 0)
    batch = collate([data[0]])
    low, space = task.shrink(batch.x), Pixels(task, (model := load_denoiser(work.bundle, "upsample_temporal")).filters)
    shake(model)
    # The task draws how noisy the low resolution is, and this noise.
    level, low_noise = rand((1,), (again := Streams(0, [0]))) * task.max_noise, randn(low.shape, again)
    config = SamplerConfig(upsample_steps=4, upsample_noise=float(level))
    distill = Distill(task, model, config, 1, 4, lambda noise: noise, order=1)
    lesson = distill.pose(batch, model, Streams(0, [0]), Diffusion(schedule)).lesson
    made = sample_upsampled(model, schedule, task, low, lesson.noisy, low_noise, config)
    assert_close(space.decode(-lesson.velocity, low, None).clamp(-1, 1), made, atol=1e-4, rtol=0)


def test_a_killed_distillation_goes_on_to_the_same_weights(distil, monkeypatch, tmp_path):
    whole = distil(f"out={tmp_path / 'whole'}")
    real = Budget.on_train_batch_start

    def start(self, trainer, *args):
        if trainer.fit_loop.epoch_loop.total_batch_idx == 2:
            raise Killed
        real(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "Checkpoints", lambda path, seconds: Checkpoints(path, 0))
        patch.setattr(Budget, "on_train_batch_start", start)
        with pytest.raises(Killed):
            distil()
    with pytest.raises(UserError, match=r"another configuration .config\.distilled\.steps was 2, now 1"):
        distil("steps=1")
    assert weights(distil(), "keyframes") == weights(whole, "keyframes")


def test_a_student_may_teach_in_turn_and_its_bundle_tells_of_all_teachers(distil, trained, tmp_path, capsys):
    first = distil("steps=4", "teacher_steps=8", "layout_guidance=3")
    with pytest.raises(UserError, match="has the guidance of its keyframes in its weights; leave it out"):
        distil(f"bundle={first.root}", f"out={tmp_path / 'fewer'}", "layout_guidance=2")
    second = distil(f"bundle={first.root}", f"out={tmp_path / 'fewer'}")
    told = second.config("keyframes")["distilled"]
    assert (told["steps"], told["teacher_steps"]) == (2, 4)
    assert told["teacher"]["sha256"] == first.sha("keyframes")
    assert told["teacher"]["distilled"]["teacher"]["sha256"] == Bundle(trained.bundle).sha("keyframes")
    assert told["guidance"]["layout_guidance"] == 1.0  # on top of what the teacher has learned
    distil(f"bundle={first.root}", f"out={tmp_path / 'fewer'}")
    assert "keyframes: already in" in capsys.readouterr().err


def test_all_layers_learn_where_asked(distil, trained):
    student = distil("train_image=true", "lr=1e-2")
    learned, image = load_denoiser(student, "keyframes"), load_denoiser(Bundle(trained.bundle), "image")
    assert not torch.equal(learned.unet.conv_in.weight, image.unet.conv_in.weight)
    assert torch.equal(load_denoiser(student, "interpolate").unet.conv_in.weight, image.unet.conv_in.weight)


def test_a_taught_stage_alone_is_sampled_as_it_was_taught():
    config = SamplerConfig(sampler="unipc", layout_guidance=2.0, guidance={"boxes": 2.0}, distilled=["keyframes"])
    taught = config.of("keyframes")
    assert (taught.sampler, taught.layout_guidance, taught.guidance) == ("ddim", 1.0, {})
    assert config.of("interpolate") is config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stage=image"], "stage=image cannot be distilled; choose all, keyframes, interpolate, upsample_temporal"),
        (["teacher_steps=5"], "steps=2, teacher_steps=5; expected a teacher of a whole multiple"),
        (["max_steps=-1"], "nothing ends the distillation: give budget_minutes=... or max_steps=..."),
        (["order=3"], "order=3, expected 1 or 2"),
        (["lr=0"], "lr=0, expected more than 0"),
        (["layout_guidance=-1"], "layout_guidance=-1, expected 0 or more"),
        (["interpolate_guidance=2"], "interpolate_guidance=2 does nothing with stage=keyframes; leave it out"),
        (["bundle=nowhere"], "bundle nowhere is not a folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(distil, tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        distil(*words)
    assert not (tmp_path / "few").exists()


def test_a_folder_of_another_teacher_is_left_alone(distil, trained, tmp_path):
    distil()
    other = tmp_path / "other"
    shutil.copytree(trained.bundle, other)
    index = json.loads((other / "model_index.json").read_text())
    index["stages"]["image"]["sha256"] = "0" * 64
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"was not made of .*other \(stage image is another\); choose another out="):
        distil(f"bundle={other}")
    with pytest.raises(UserError, match=r"has keyframes taught with steps=2.*; add overwrite=true"):
        distil("steps=4")
    with pytest.raises(UserError, match="holds the teacher itself"):
        distil(f"out={trained.out}")


def shake(denoiser) -> None:
    """Weights of few training steps hardly tell conditions apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
