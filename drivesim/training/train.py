"""`drivesim train`: one stage, or all of them one after the other, into a bundle."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities import rank_zero_only

from drivesim import __version__
from drivesim.bundle import BUILT_ON, Bundle
from drivesim.config import option, parse
from drivesim.data.balance import check_tag
from drivesim.data.store import ClipStore
from drivesim.diffusion.tasks import Frames
from drivesim.errors import UserError
from drivesim.machine import PRECISION, describe, is_out_of_memory, probe
from drivesim.models.conditions import check_known
from drivesim.training.callbacks import AveragedWeights, Budget, Checkpoints, SampleGrid, WholeCheckpoints
from drivesim.training.experiment import ExperimentConfig, StageConfig
from drivesim.training.failures import FREE, Finite, flat, is_lost_process, out_of_memory, require_finite_weights
from drivesim.training.latent import LatentVideoDiffusion
from drivesim.training.pixels import check_recipe
from drivesim.training.sharding import Sharded, is_sharded, whole
from drivesim.training.stages import LATENT_STAGES, STAGES, Builder, StageRun, Workspace


@dataclass
class TrainConfig:
    """Train the stages of an experiment on a clip store.

    Finished stages are kept in OUT/bundle, ready for `drivesim generate bundle=OUT/bundle`. Logs, checkpoints and
    sample grids of a stage are in OUT/<stage>. A killed run goes on where its last checkpoint was when the same command
    is given again; finished stages are skipped, unless a stage that they were trained on has been trained again since.
    """

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"experiment": "town"}, {"ablation": "none"}])
    data: str = option(help="clip store made by `drivesim prepare`: folder or URL")
    out: str = option("runs/town", "folder of the run")
    stage: str = option("all", f"all, or one of {', '.join(STAGES)}")
    budget_minutes: float | None = option(
        None,
        "time for all stages together, shared out by config.stages.*.share; "
        "without it config.stages.*.max_steps end a stage",
    )
    seed: int = option(0, "seed of weights, windows and noise")
    checkpoint_seconds: int = option(60, "a run that is killed loses at most this much")
    devices: int = option(1, "GPUs, or processes on a CPU; batch sizes are of each")
    strategy: str = option("auto", "auto, ddp: every device holds all weights; fsdp: the denoisers' are shared out")
    overwrite: bool = option(False, "train a stage again that is finished in the bundle")
    config: ExperimentConfig = option(ExperimentConfig(), "the experiment")


def main(argv: Sequence[str]) -> None:
    config = parse(TrainConfig, argv, "drivesim train")
    chosen = list(STAGES) if config.stage == "all" else [config.stage]
    if unknown := [name for name in chosen if name not in STAGES]:
        raise UserError(f"unknown stage {unknown[0]!r}; one of all, {', '.join(STAGES)}")
    config.config = config.config.resolved()
    check(config)
    quiet()
    store = ClipStore(config.data).select(config.config.data.where)
    work = Workspace(config.config, store, Bundle(Path(config.out) / "bundle"), config.seed)
    work.command = shlex.join(["drivesim", "train", *argv])
    chosen_clips = f"{len(store.clips('train'))} training clips of {config.data}"
    chosen_clips += f" where {store.selection}" if store.selection else ""
    tell(f"drivesim train: {chosen_clips}, {describe()}")
    if config.config.denoiser.pretrained:
        _tell_captions(store)
    elif not store.index["has_boxes"].any():
        tell("drivesim train: no boxes in this store, so nothing will be steered by boxes")
    work.check(chosen)
    for name in chosen:
        outdated = work.bundle.stale(name)
        if work.bundle.has(name) and not config.overwrite and not outdated:
            tell(f"{name}: already in {work.bundle.root}{_other_data(name, config, work)}, skipped")
            continue
        if outdated and not config.overwrite:
            tell(f"{name}: was trained on an earlier {outdated}, so it is trained again")
        train_stage(name, config, work)
    if left := [name for name in STAGES if work.bundle.stale(name)]:
        again = "run the command with stage=all and without overwrite to train them again"
        tell(f"out of date now: {', '.join(left)}; {again}")
    tell(f"bundle: {work.bundle.root}")


def _tell_captions(store: ClipStore) -> None:
    silent = int((store.index["caption"] == "").sum())
    if silent:
        words = f"{silent} of {len(store.index)} clips have no caption, so nothing is learned of words there"
        tell(f"drivesim train: {words}")


def _other_data(name: str, config: TrainConfig, work: Workspace) -> str:
    """What is worth knowing of a finished stage that saw other clips than the command asks for; empty if it did not."""
    before, now = work.bundle.record(name).get("selection", _selection(config)), _selection(config)
    told = ", ".join(f"{key}={before.get(key)!r} (now {now[key]!r})" for key in now if before.get(key) != now[key])
    return f", trained with {told}; overwrite=true trains it again" if told else ""


def _selection(config: TrainConfig) -> dict[str, str]:
    return {"where": config.config.data.where, "balance": config.config.data.balance}


def check(config: TrainConfig) -> None:
    """raises UserError for values that fit their types and yet make no sense."""
    data, factor = config.config.data, config.config.autoencoder.factor
    levels = 2 ** (len(config.config.denoiser.block_out_channels) - 1)
    if data.height % (factor * levels) or data.width % (factor * levels):
        raise UserError(
            f"config.data.height and width ({data.height}x{data.width}) must be multiples of "
            f"{factor * levels} (autoencoder factor x U-Net down-samplings)"
        )
    predict = config.config.predict
    config.config.upsample.check(data.height, data.width)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed}, expected 0 to {2**32 - 1}")
    if config.strategy not in ("auto", "ddp", "fsdp"):
        raise UserError(f"strategy is {config.strategy!r}, expected auto, ddp or fsdp")
    if config.checkpoint_seconds < 1 or config.devices < 1:
        raise UserError(f"checkpoint_seconds={config.checkpoint_seconds}, devices={config.devices}; expected 1 or more")
    if (asked := config.config.denoiser.channels) != (made := config.config.autoencoder.channels):
        raise UserError(f"config.denoiser.channels is {asked} but the autoencoder makes {made}; set them alike")
    config.config.schedule.check_training()
    config.config.sampler.check(config.config.schedule)
    predict.check("config.predict")
    config.config.interpolate.check("config.interpolate")
    _check_conditions(config.config)
    check_tag(config.config.data.balance)
    for f in fields(config.config.stages):
        stage = getattr(config.config.stages, f.name)
        stage.augment.check(f"config.stages.{f.name}.augment", pixels=f.name not in LATENT_STAGES)
    for name in ("autoencoder", "decoder"):
        check_recipe(name, getattr(config.config.stages, name), min(data.height, data.width))
    _check_networks(config.config)
    if config.budget_minutes is not None and not 0 < config.budget_minutes < 1e6:
        raise UserError(f"budget_minutes={config.budget_minutes:g}; expected more than 0")
    if config.budget_minutes is None:
        autoencoder = config.config.autoencoder
        taken = ["autoencoder"] if autoencoder.pretrained and not autoencoder.finetune else []  # as they are, no steps
        taken += ["upsample"] if config.config.upsampler.pretrained else []
        image = config.config.denoiser
        taken += ["image"] if image.pretrained and not image.finetune else []
        for f in fields(config.config.stages):
            if (
                f.name not in taken
                and getattr(config.config.stages, f.name).max_steps < 0  # 0: it is not trained
                and config.stage in ("all", f.name)
            ):
                raise UserError(
                    f"nothing ends stage {f.name}: give budget_minutes=... or config.stages.{f.name}.max_steps=..."
                )


def _check_conditions(experiment: ExperimentConfig) -> None:
    """Drop-outs and guidance name conditions that the model is told, and are what such numbers can be."""
    have = experiment.denoiser.conditions
    for task in ("image", "predict", "interpolate"):
        frames: Frames = getattr(experiment, task)
        check_known(f"config.{task}.drop", frames.drop, have)
        rates = {"drop_boxes": frames.drop_boxes, "drop_labels": frames.drop_labels, **frames.drop}
        if wrong := [name for name, rate in rates.items() if not 0 <= rate <= 1]:
            raise UserError(f"config.{task}: {wrong[0]} is dropped at a rate of {rates[wrong[0]]:g}, expected 0 to 1")
    check_known("config.sampler.guidance", experiment.sampler.guidance, have)


def _check_networks(experiment: ExperimentConfig) -> None:
    """Build every network without its memory, so that sizes that do not fit are told before anything is trained."""
    with torch.device("meta"):
        for name in ("autoencoder", "denoiser", "upsampler"):
            try:
                getattr(experiment, name).build()
            except (ValueError, KeyError, IndexError, RuntimeError, ZeroDivisionError, AssertionError) as error:
                raise UserError(f"config.{name} describes no network: {str(error).splitlines()[0]}") from error


def train_stage(name: str, config: TrainConfig, work: Workspace, build: Builder | None = None) -> None:
    """Train one stage within its share of the budget and put it into the bundle.

    build  makes it ready; by default as it is trained from the stages before it
    """
    stage: StageConfig = getattr(config.config.stages, name)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    run = (build or STAGES[name])(work, stage)
    if not any(p.requires_grad for p in run.module.parameters()):
        stage = replace(stage, max_steps=0)  # trained elsewhere: it goes into the bundle as it is
    folder = Path(config.out) / name
    last = folder / "last.ckpt"
    seconds = None if config.budget_minutes is None else 60 * config.budget_minutes * stage.share
    budget = Budget(seconds, stage.max_steps, stage.warmup_steps, name)
    averaged = AveragedWeights(stage.ema_decay)
    manual = not run.module.automatic_optimization
    if config.devices > 1:  # the processes that Lightning starts shall compute as this one does
        os.environ[PRECISION] = probe().precision
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="gpu" if probe().device == "cuda" else "cpu",
        devices=config.devices,
        strategy=_strategy(config, run.module),  # type: ignore[arg-type]
        precision=probe().lightning_precision,  # type: ignore[arg-type]
        max_epochs=1,
        max_steps=stage.max_steps,
        accumulate_grad_batches=1 if manual else stage.accumulate,
        logger=CSVLogger(str(folder), name="logs", version=""),
        log_every_n_steps=1 if 0 < stage.max_steps <= 100 else 10,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        plugins=[WholeCheckpoints(configuration(name, run, stage))],
        callbacks=[
            Finite(name, last),
            budget,
            averaged,
            SampleGrid(folder / "samples", budget, averaged),
            Checkpoints(last, config.checkpoint_seconds),
        ],
    )
    if last.exists() and config.overwrite:
        last.unlink()
    try:
        if stage.max_steps:
            trainer.fit(run.module, run.data, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(name, stage, error, config.devices, config.strategy) from error
        if is_lost_process(error):
            if not trainer.is_global_zero:
                raise SystemExit(2) from error  # one line is enough
            raise UserError(f"{name}: another process of this run ended, and says why above; run again") from error
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt
    export(name, run, config, work, trainer, budget)
    if trainer.is_global_zero:
        last.unlink(missing_ok=True)  # the bundle holds the result; the optimizer's state is three times as large
        for later in (later for later, stages in BUILT_ON.items() if name in stages):
            (Path(config.out) / later / "last.ckpt").unlink(missing_ok=True)  # begun on what this stage was before
    trainer.strategy.barrier()  # the next stage reads what rank 0 has just written


def configuration(name: str, run: StageRun, stage: StageConfig) -> dict[str, Any]:
    """What a checkpoint of a stage is bound to, by the keys of the options that decide it."""
    network = {"autoencoder": "autoencoder", "upsample": "upsampler", "upsample_temporal": "upsampler"}
    task = {"keyframes": "predict", "upsample_temporal": "upsample"}
    named = {"model": network.get(name, "denoiser"), "task": task.get(name, name)}
    bound = {key: value for key, value in asdict(stage).items() if key not in FREE}
    return flat({named.get(key, key): value for key, value in run.config.items()}, "config") | flat(
        bound, f"config.stages.{name}"
    )


def _strategy(config: TrainConfig, module: pl.LightningModule) -> Strategy | str:
    """DDP must look for unused parameters where a discriminator and what it judges are trained in turn."""
    if config.devices == 1:
        return "auto"
    if config.strategy == "fsdp" and isinstance(module, LatentVideoDiffusion):
        return Sharded(config.devices)
    return "ddp_find_unused_parameters_true" if getattr(module, "discriminator", None) else "ddp"


def export(name: str, run: StageRun, config: TrainConfig, work: Workspace, trainer: pl.Trainer, budget: Budget) -> None:
    """Put the averaged weights of a finished stage into the bundle, with a record of how they came about.

    Every process takes part, since each may hold a share of the weights; the first one writes.
    """
    module = run.module.eval()
    if not (trainer.is_global_zero or is_sharded(module)):
        return
    require_finite_weights(module, name)
    validation = module.validation_loss()  # type: ignore[operator]
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    result = {key: whole(value) for key, value in module.result().items()}  # type: ignore[operator]
    if not trainer.is_global_zero:
        return
    record = {
        "drivesim": __version__,
        "torch": torch.__version__,
        "data": str(config.data),
        "dataset": work.store.summary(),
        "selection": _selection(config),
        "command": work.command,
        "seed": config.seed,
        "steps": trainer.global_step,
        "train_seconds": round(budget.time_elapsed(), 1),
        "parameters_trained": trained,
        "validation_loss": validation,
        "machine": describe(),
        "stage": asdict(getattr(config.config.stages, name)),
    }
    data = config.config.data
    common = {
        "data": asdict(data),
        "factor": config.config.upsample.factor,
        "interpolation": config.config.interpolate.factor,
        "fps": work.fps,
        "sampler": asdict(config.config.sampler),
    }
    work.bundle.save(name, run.config, result, record, common, run.folders)
    tell(
        f"{name}: {trainer.global_step} steps in {budget.time_elapsed():.0f} s, {trained / 1e6:.1f} M parameters "
        f"trained, held-out loss {validation:.4f}",
    )


@rank_zero_only
def tell(text: str) -> None:
    """To the user, from one process of all."""
    print(text, file=sys.stderr)


def quiet() -> None:
    """Lightning's banners say nothing that a user needs; errors still come through."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # none is changed in place
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
