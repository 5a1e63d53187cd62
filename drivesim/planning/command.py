"""`drivesim plan`: what an experiment takes before it is trained."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from drivesim.config import option, parse
from drivesim.errors import UserError
from drivesim.files import atomic_path, check_output
from drivesim.planning.backbones import PUBLISHED, Words
from drivesim.planning.gpus import GPUS, find_gpu
from drivesim.planning.plan import Part, StagePlan, plan
from drivesim.planning.report import compared, lines, to_json, totals
from drivesim.planning.workspace import PlanWorkspace, build
from drivesim.training.experiment import ExperimentConfig
from drivesim.training.stages import STAGES


@dataclass
class PlanConfig:
    """Parameters, FLOPs, memory and time of the stages of an experiment; needs no GPU, no data and hardly any memory.

    Every stage is built as `drivesim train` builds it and one step of it is run on tensors that have shapes alone.
    """

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"experiment": "rds_512x1024"}])
    stage: str = option("all", f"all, or one of {', '.join(STAGES)}")
    gpus: int = option(8, "that train together; batch sizes are of each")
    gpu: str = option("a100_80gb", f"one of {', '.join(GPUS)}")
    utilisation: float = option(0.4, "share of the GPU's stated bf16 rate that training reaches")
    backbone: str = option("", f"published image network instead of a folder or a trained one: {', '.join(PUBLISHED)}; "
                               "empty: the experiment's own")  # fmt: skip
    out: str = option("", "file.json for the figures too")
    overwrite: bool = option(False, "replace that file")
    config: ExperimentConfig = option(ExperimentConfig(), "the experiment")


def main(argv: Sequence[str]) -> None:
    config = _check(parse(PlanConfig, _stand_in(argv), "drivesim plan"))
    out = check_output(config.out, ".json", config.overwrite) if config.out else None
    work = PlanWorkspace(config.config, words=Words.of(config.config.denoiser, config.backbone))
    made = list(_plans(config, work))
    shown = [one for one in made if config.stage in ("all", one.name)]
    where = config.gpu, config.gpus, config.utilisation
    for one in shown:
        print("\n".join(lines(one, *where)) + "\n")
    print("\n".join(totals(shown, *where)))
    if config.backbone:
        print("\n" + "\n".join(_beside_reported(config.backbone, work, made)))
    if out is not None:
        report = {"gpu": config.gpu, "gpus": config.gpus, "utilisation": config.utilisation,
                  "stages": {one.name: to_json(one, *where) for one in shown}}  # fmt: skip
        with atomic_path(out) as path:
            path.write_text(json.dumps(report, indent=2))


def _stand_in(argv: Sequence[str]) -> list[str]:
    """A published backbone stands in for the folder that an experiment wants to be told."""
    folder = "config.denoiser.pretrained="
    named = any(word.startswith("backbone=") for word in argv) and not any(word.startswith(folder) for word in argv)
    return [*argv, folder] if named else list(argv)


def _check(config: PlanConfig) -> PlanConfig:
    """raises UserError for values that fit their types and yet make no sense."""
    find_gpu(config.gpu)
    if config.gpus < 1:
        raise UserError(f"gpus={config.gpus}, expected 1 or more")
    if not 0 < config.utilisation <= 1:
        raise UserError(f"utilisation={config.utilisation:g}, expected a share above 0, up to 1")
    if config.stage != "all" and config.stage not in STAGES:
        raise UserError(f"unknown stage {config.stage!r}; one of all, {', '.join(STAGES)}")
    if config.backbone:
        config.config.autoencoder.pretrained = ""
    return config


def _plans(config: PlanConfig, work: PlanWorkspace) -> Iterator[StagePlan]:
    """Of the stages up to the one asked for, which may be built on those before it."""
    names = list(STAGES)[: list(STAGES).index(config.stage) + 1] if config.stage != "all" else list(STAGES)
    for name in tqdm(names, desc="planned", unit="stage", leave=False):
        if name == "image" and work.words is not None:
            continue  # taken as it is
        if getattr(config.config.stages, name).max_steps == 0:
            build(work, name, checkpointing=False)
            if not config.backbone:
                continue
        yield plan(work, name)


def _beside_reported(name: str, work: PlanWorkspace, made: list[StagePlan]) -> list[str]:
    parts: dict[str, Part] = {}
    for one in made:
        parts |= one.parts if one.name in ("autoencoder", "keyframes") else {}
    assert work.words is not None
    parts["text encoder"] = Part(work.words.text_parameters(), 0)
    return list(compared(parts, PUBLISHED[name].reported))
