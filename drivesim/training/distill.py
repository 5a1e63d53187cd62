"""`drivesim distill`: a bundle whose stages are sampled in few steps, taught by those of another bundle."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from drivesim.bundle import Bundle, from_dict
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.diffusion.distill import ladder
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import Interpolate, Predict
from drivesim.diffusion.upsample import Upsample
from drivesim.errors import UserError
from drivesim.files import atomic_folder
from drivesim.generation.samplers import SamplerConfig
from drivesim.machine import describe
from drivesim.training import stages
from drivesim.training.distillation import Distill
from drivesim.training.experiment import DataConfig, ExperimentConfig, StageConfig, StagesConfig
from drivesim.training.latent import LatentVideoDiffusion
from drivesim.training.stages import StageRun, Workspace, load_denoiser
from drivesim.training.train import TrainConfig, quiet, tell, train_stage

# The option of the sampler that says how many steps a stage takes.
STEPS = {"keyframes": "keyframe_steps", "interpolate": "interpolate_steps", "upsample_temporal": "upsample_steps"}
BUILDERS = {
    "keyframes": stages.keyframes,
    "interpolate": stages.interpolate,
    "upsample_temporal": stages.upsample_temporal,
}
# What a stage is guided by, of the options below.
GUIDANCE = {
    "keyframes": ("layout_guidance", "context_guidance"),
    "interpolate": ("interpolate_guidance",),
    "upsample_temporal": (),
}
TEACHER_FACTOR = 4  # steps of the teacher to one of the student
T = TypeVar("T")


@dataclass
class DistillConfig:
    """Teach a stage of a bundle to do in few steps of sampling, guidance included, what it does in many.

    OUT/bundle becomes a copy of the bundle with the stage taught, and its number of steps the default. A killed run
    goes on when the same command is given again. Another stage with the same OUT is taught beside it. A taught stage
    may teach in turn: rounds that halve the steps are so many runs, each with the bundle of the one before.
    """

    bundle: str = option(help="folder of trained stages: the teacher, which is left as it is")
    data: str = option(help="clip store to learn on, that it was trained on say: folder or URL")
    out: str = option("runs/distilled", "folder of the run")
    stage: str = option("keyframes", f"all, or one of {', '.join(STEPS)}")
    steps: int = option(4, "of the student")
    teacher_steps: int | None = option(
        None, "of the teacher, a multiple of the student's; if not given those it was taught itself, or 4 times as many"
    )
    order: int = option(2, "of the teacher's solver: 1 is DDIM, the paper's; 2 comes nearer to many steps in as few")
    layout_guidance: float | None = option(
        None, "of keyframes: the teacher's, which the student learns; the bundle's if not given"
    )
    context_guidance: float | None = option(None, "the same")
    interpolate_guidance: float | None = option(None, "the same of the interpolation")
    train_image: bool = option(False, "all layers learn, not the temporal ones alone; always where the teacher's did")
    budget_minutes: float | None = option(None, "time for all stages together; or:")
    max_steps: int = option(-1, "training steps of a stage")
    batch_size: int = option(4, "windows a step, on each device")
    lr: float = option(5e-4, "learning rate")
    seed: int = option(0, "seed of windows and noise")
    checkpoint_seconds: int = option(60, "a run that is killed loses at most this much")
    devices: int = option(1, "GPUs, or processes on a CPU; batch sizes are of each")
    strategy: str = option("auto", "auto, ddp: every device holds all weights; fsdp: the student's are shared out")
    overwrite: bool = option(False, "teach a stage again that is taught in OUT/bundle")


def main(argv: Sequence[str]) -> None:
    config = parse(DistillConfig, argv, "drivesim distill")
    teacher = Bundle(Path(config.bundle)).require()
    chosen = list(STEPS) if config.stage == "all" else [config.stage]
    check(config, teacher, chosen)
    quiet()
    store = ClipStore(config.data)
    student = copied(teacher, Path(config.out) / "bundle")
    tell(f"drivesim distill: {len(store.clips('train'))} training clips of {config.data}, {describe()}")
    for stage in chosen:
        distill(stage, config, teacher, student, store, 1 / len(chosen))
    tell(f"bundle: {student.root}")


def check(config: DistillConfig, teacher: Bundle, chosen: Sequence[str]) -> None:
    """raises UserError for what cannot be distilled, before anything is begun"""
    if unknown := [stage for stage in chosen if stage not in STEPS]:
        raise UserError(f"stage={unknown[0]} cannot be distilled; choose all, {', '.join(STEPS)}")
    for stage in chosen:
        ladder(schedule(teacher, stage), config.steps, teacher_steps(config, teacher, stage))
        teacher_sampler(config, teacher, stage)
    if config.budget_minutes is None and config.max_steps < 1:
        raise UserError("nothing ends the distillation: give budget_minutes=... or max_steps=...")
    for name in ("budget_minutes", "batch_size", "lr", "devices", "checkpoint_seconds"):
        if (value := getattr(config, name)) is not None and not value > 0:
            raise UserError(f"{name}={value:g}, expected more than 0")
    for name, value in given_guidance(config).items():
        if not value >= 0:
            raise UserError(f"{name}={value:g}, expected 0 or more")
        if not any(name in GUIDANCE[stage] for stage in chosen):
            raise UserError(f"{name}={value:g} does nothing with stage={config.stage}; leave it out")
    if config.order not in (1, 2):
        raise UserError(f"order={config.order}, expected 1 or 2")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed}, expected 0 to {2**32 - 1}")
    if Path(config.out, "bundle").resolve() == teacher.root.resolve():
        raise UserError(f"out={config.out} holds the teacher itself; choose another folder")


def copied(teacher: Bundle, root: Path) -> Bundle:
    """The student's bundle: a copy of the teacher's, or one that was made of it before.

    raises  UserError for a bundle of another teacher
    """
    if not root.exists():
        with atomic_folder(root, "model_index.json") as folder:
            shutil.copytree(teacher.root, folder, dirs_exist_ok=True)
    student = Bundle(root).require()
    for stage in teacher.index["stages"]:
        origin = student.config(stage).get("distilled", {}).get("teacher", {}).get("sha256")
        if teacher.sha(stage) not in (student.sha(stage), origin):
            raise UserError(
                f"{root} was not made of {teacher.root} (stage {stage} is another); choose another out=, or remove it"
            )
    return student


def distill(
    stage: str, config: DistillConfig, teacher: Bundle, student: Bundle, store: ClipStore, share: float
) -> None:
    """Teach one stage and put it into the student's bundle, unless it is there."""
    taught = student.config(stage).get("distilled", {})
    if student.sha(stage) != teacher.sha(stage) and not config.overwrite:
        asked = {"steps": config.steps, "teacher_steps": teacher_steps(config, teacher, stage), "order": config.order}
        if changed := [f"{name}={taught.get(name)}" for name in asked if taught.get(name) != asked[name]]:
            told = f"{student.root} has {stage} taught with {', '.join(changed)}"
            raise UserError(f"{told}; add overwrite=true, or choose another out=")
        return tell(f"{stage}: already in {student.root}, skipped")
    train = TrainConfig(
        data=config.data, out=config.out, stage=stage, budget_minutes=config.budget_minutes, seed=config.seed,
        checkpoint_seconds=config.checkpoint_seconds, devices=config.devices, strategy=config.strategy,
        overwrite=config.overwrite, config=experiment(config, teacher, student, stage, share),
    )  # fmt: skip
    work = Workspace(train.config, store.select(train.config.data.where), student, config.seed)
    train_stage(stage, train, work, partial(lessons, config, teacher, stage))


def lessons(config: DistillConfig, teacher: Bundle, stage: str, work: Workspace, settings: StageConfig) -> StageRun:
    """The stage ready to be taught: the teacher's weights once more, and its task with the teacher's answers."""
    pupil, model = load_denoiser(teacher, stage), load_denoiser(teacher, stage)
    for image in (pupil.unet, pupil.tokens):
        if image is not None:
            image.requires_grad_(settings.train_image)
    run = BUILDERS[stage](work, settings, pupil.carry_by(work.autoencoder))
    sampler, steps = teacher_sampler(config, teacher, stage), teacher_steps(config, teacher, stage)

    def start(noise: Tensor) -> Tensor:
        upsampled = stage == "upsample_temporal"
        return sampler.upsample_temperature * noise if upsampled else sampler.start(model, noise)

    assert isinstance(run.module, LatentVideoDiffusion)
    run.module.task = Distill(
        run.module.task, stages.told(work, model), sampler, config.steps, steps, start, config.order
    )
    told: dict[str, Any] = {"steps": config.steps, "teacher_steps": steps, "order": config.order}
    told |= {"teacher": {"sha256": teacher.sha(stage)}}
    learned = [*GUIDANCE[stage], *(["text_guidance"] if model.reads else [])]
    told |= {"guidance": {name: getattr(sampler, name) for name in learned} | sampler.guidance}
    if before := teacher.config(stage).get("distilled"):
        told["teacher"]["distilled"] = before
    return replace(run, config=run.config | {"distilled": told})


def experiment(config: DistillConfig, teacher: Bundle, student: Bundle, stage: str, share: float) -> ExperimentConfig:
    """What the stage is taught with."""
    told = described(teacher)
    settings = replace(
        getattr(told.stages, stage), share=share, max_steps=config.max_steps, batch_size=config.batch_size,
        lr=config.lr, train_image=config.train_image or bool(teacher.config(stage).get("image_trained")),
    )  # fmt: skip
    usual = student.sampler(SamplerConfig)  # of stages that were taught before, too
    taught: dict[str, Any] = {STEPS[stage]: config.steps, "distilled": sorted({*usual.distilled, stage})}
    return replace(told, stages=StagesConfig(**{stage: settings}), sampler=replace(usual, **taught))


def described(bundle: Bundle) -> ExperimentConfig:
    """The experiment that a bundle is of, as far as it tells: what windows its stages see, and how they are sampled.

    raises  UserError where it is damaged, or of a newer version
    """

    def held(name: str, key: str, kind: type[T]) -> T:
        return bundle.value(name, key, kind) if bundle.has(name) else kind()

    sampler = bundle.sampler(SamplerConfig)
    seen = bundle.config("upsample_temporal").get("temporal", {}) if bundle.has("upsample_temporal") else {}
    frames = seen.get("frames") or sampler.upsample_portion
    return ExperimentConfig(
        data=from_dict(DataConfig, bundle.data),
        schedule=bundle.value("image", "schedule", ScheduleConfig),
        predict=held("keyframes", "task", Predict),
        interpolate=held("interpolate", "task", Interpolate),
        upsample=held("upsample", "task", Upsample),
        stages=StagesConfig(upsample_temporal=StageConfig(frames=frames)),
        sampler=sampler,
    )


def teacher_sampler(config: DistillConfig, teacher: Bundle, stage: str) -> SamplerConfig:
    """The settings that the teacher is sampled with. raises UserError for guidance of one that has it in its weights"""
    usual = teacher.sampler(SamplerConfig)
    given = {name: value for name, value in given_guidance(config).items() if name in GUIDANCE[stage]}
    if given and stage in usual.distilled:
        told = ", ".join(f"{name}={value:g}" for name, value in given.items())
        raise UserError(f"{told}: {teacher.root} has the guidance of its {stage} in its weights; leave it out")
    usual = replace(usual, **given).of(stage)
    return usual.between() if stage == "interpolate" else usual


def given_guidance(config: DistillConfig) -> dict[str, Any]:
    names = (name for of_stage in GUIDANCE.values() for name in of_stage)
    return {name: value for name in names if (value := getattr(config, name)) is not None}


def teacher_steps(config: DistillConfig, teacher: Bundle, stage: str) -> int:
    learned = teacher.config(stage).get("distilled", {}).get("steps")
    return config.teacher_steps or learned or TEACHER_FACTOR * config.steps


def schedule(teacher: Bundle, stage: str) -> ScheduleConfig:
    return teacher.value("upsample" if stage == "upsample_temporal" else "image", "schedule", ScheduleConfig)
