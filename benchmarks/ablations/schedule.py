"""Equal budgets: how long every stage of every run is trained, and training them in an order that shares stages.

The rule. The four stages of the video model (autoencoder, image, keyframes, interpolate) get the same time in every
run, in the shares of the experiment. A stage whose configuration does not differ between runs is trained once and
counts in full for each of them. The share of a stage where a run has nothing to train (an autoencoder of pixels, image
layers end to end) goes to the stages of its own in proportion to theirs.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ablations.rows import RUNS, VIDEO, Run
from drivesim.bundle import BUILT_ON, STAGES, Bundle
from drivesim.config import parse
from drivesim.files import atomic_path
from drivesim.training import train
from drivesim.training.experiment import ExperimentConfig

Shares = Mapping[str, float]  # stage -> share of the time; 0: there is nothing to train


def experiment_of(words: Sequence[str], ablation: str) -> ExperimentConfig:
    """The experiment that words of a command line ask for, with a choice in conf/ablation."""
    return parse(train.TrainConfig, [*words, f"ablation={ablation}", "data="], "ablations").config


def shares(run: Run, experiment: ExperimentConfig) -> Shares:
    """Share of the time of every stage that a run trains of its own, before all are scaled to the budget."""
    asked = {stage: float(getattr(experiment.stages, stage).share) for stage in run.trains}
    own = {stage: share for stage, share in asked.items() if trained(stage, experiment)}
    freed = sum(share for stage, share in asked.items() if stage not in own)
    video = sum(share for stage, share in own.items() if stage in VIDEO)
    more = 1 + freed / video if video else 1.0
    return {stage: own.get(stage, 0.0) * (more if stage in VIDEO else 1.0) for stage in run.trains}


def trained(stage: str, experiment: ExperimentConfig) -> bool:
    """Whether there is something to train."""
    if stage == "autoencoder" and experiment.autoencoder.kind == "pixels":
        return False
    return getattr(experiment.stages, stage).max_steps != 0


@dataclass(frozen=True)
class Job:
    """One stage of one run; seconds of training, None where steps end it."""

    run: Run
    stage: str
    seconds: float | None


def jobs(words: Sequence[str], minutes: float | None) -> list[Job]:
    """Every stage that is trained, in order; `minutes` for all of them together."""
    parts = [(run, shares(run, experiment_of(words, run.name))) for run in RUNS]
    total = sum(sum(each.values()) for _, each in parts)
    return [
        Job(run, stage, None if minutes is None else 60 * minutes * each[stage] / total)
        for run, each in parts
        for stage in STAGES
        if stage in each
    ]


def train_all(words: Sequence[str], data: str, out: Path, seed: int, minutes: float | None) -> None:
    """Train what is not finished yet, one folder a run."""
    todo = jobs(words, minutes)
    for i, job in enumerate(todo):
        bundle = Bundle(out / job.run.name / "bundle")
        adopt(Bundle(out / RUNS[0].name / "bundle"), bundle, job.run)
        if bundle.has(job.stage) and not bundle.stale(job.stage):
            continue
        left = sum(later.seconds or 0.0 for later in todo[i:]) / 60
        told = f", {left:.1f} min of training left" if left else ""
        line = _train_words(job, words, data, out, seed)
        print(f"\nablations: {i + 1} of {len(todo)}{told}\n$ drivesim train {shlex.join(line)}", file=sys.stderr)
        train.main(line)


def _train_words(job: Job, words: Sequence[str], data: str, out: Path, seed: int) -> list[str]:
    line = [*words, f"ablation={job.run.name}", f"data={data}", f"out={out / job.run.name}", f"stage={job.stage}"]
    line += [f"seed={seed}", "checkpoint_seconds=20"]
    if job.seconds:
        line += [f"budget_minutes={job.seconds / 60:.4f}", f"config.stages.{job.stage}.share=1"]
    elif job.seconds is not None:
        line += ["budget_minutes=1"]  # of which nothing is used
    return line


def shared(run: Run) -> list[str]:
    """Stages that a run takes from the first: those it does not train, and that are not built on one it trains."""
    return [s for s in STAGES if s not in run.trains and not {*BUILT_ON.get(s, ())} & {*run.trains}]


def adopt(source: Bundle, target: Bundle, run: Run) -> None:
    """Put the shared stages of a run into its bundle, where they are not in it yet."""
    missing = [stage for stage in shared(run) if not target.has(stage)]
    if not missing:
        return
    for stage in missing:
        temporary = target.root / f".{stage}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source.root / stage, temporary)
        shutil.rmtree(target.root / stage, ignore_errors=True)
        os.replace(temporary, target.root / stage)
    stages = target.index.get("stages", {}) | {stage: source.index["stages"][stage] for stage in missing}
    with atomic_path(target.root / "model_index.json") as path:
        path.write_text(json.dumps({**source.index, "stages": stages}, indent=2))
