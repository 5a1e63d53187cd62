"""`make ablations`: train every ablation of the paper, judge all of them alike, print ours beside the paper's."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import start
from benchmarks.ablations import report
from benchmarks.ablations.judge import Judge, training
from benchmarks.ablations.rows import COMPARISONS, MADE
from benchmarks.ablations.schedule import train_all
from benchmarks.ablations.verdict import STAND_INS, STANDARD, Line, as_dict, over_seeds, ratio_of_distances, table
from data_prep import prepare
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.machine import describe
from drivesim.training.experiment import ExperimentConfig
from eval.features import load_torchscript
from eval.measure import Networks
from eval.scores import DISTANCES

FREE = ("out", "show", "defaults")  # may differ when a command goes on


@dataclass
class Ablations:
    """Train the paper's ablations at equal budgets and compare ratios of distances with the paper's.

    The video model as in the paper, in pixel space, end to end, with attention over time alone, with context guidance,
    with its temporal layers off, with this toolkit's additions; the decoder untuned, tuned, with a discriminator of
    pictures; the upsampler by picture and by video. Killed, the same command goes on. See docs/ablations.md.
    """

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"experiment": "town"}])
    out: str = option("runs/ablations", "folder for results.json, ratios.png, report.html, and all that is trained")
    data: str = option("", "clip store to train on; empty: the procedural town, made in out")
    real: str = option("", "store of other drives, at the full rate, to judge by; empty: made too if data is, else "
                       "the held-out split of data")  # fmt: skip
    budget_minutes: float | None = option(
        None, "training of everything together; without it config.stages.*.max_steps end a stage"
    )
    seeds: int = option(1, "train everything this often, each in its share of the budget")
    clips: int = option(10, "held-out clips to judge by")
    frames: int = option(30, "frames of a drive, at the rate of the first interpolation")
    decoder_frames: int = option(45, "frames of video by way of the latents, at the full rate")
    upsampler_frames: int = option(15, "frames of upsampled video, at the full rate")
    window: int = option(15, "frames of which clip features are taken")
    show: int = option(3, "clips shown on the page")
    seed: int = option(0, "of the first training, of the town and of half-samples")
    fid_inception: str | None = option(None, "TorchScript of the FID Inception; compares fid too")
    fvd_i3d: str | None = option(None, "TorchScript of the FVD I3D; compares fvd too")
    config: ExperimentConfig = option(ExperimentConfig(), "the experiment that everything is an ablation of")


def main(argv: Sequence[str]) -> None:
    options = parse(Ablations, argv, "python -m benchmarks.ablations")
    check(options)
    out = Path(options.out)
    _same_options(options, out)
    print(f"ablations: {describe()}", file=sys.stderr)
    words = [word for word in argv if word.startswith(("experiment=", "config."))]
    data, real = stores(options, out)
    judges = []
    for i in range(options.seeds):
        folder, seed = out / f"seed{options.seed + i}", options.seed + i
        minutes = options.budget_minutes and options.budget_minutes / options.seeds
        train_all(words, data, folder, seed, minutes)
        judges.append(_judge(options, words, real or data, None if real else "val", folder))
    for judge in judges:
        judge.scores()
    lines = compare(judges, options)
    print(_write(options, out, judges, lines, shlex.join(["python", "-m", "benchmarks.ablations", *argv])))


def check(options: Ablations) -> None:
    """raises UserError for options that make no sense"""
    if options.budget_minutes is not None and options.budget_minutes <= 0:
        raise UserError(f"budget_minutes is {options.budget_minutes:g}, expected more than 0")
    if options.seeds < 1:
        raise UserError(f"seeds is {options.seeds}, expected 1 or more")
    if options.window < 2:
        raise UserError(f"window is {options.window}, at least 2 frames are needed")
    for name in ("frames", "decoder_frames", "upsampler_frames"):
        if getattr(options, name) < options.window:
            raise UserError(f"{name} is {getattr(options, name)}, expected at least window={options.window}")
    if options.real and not options.data:
        raise UserError("real=... is given but data=... is not; give both, or neither for the procedural town")


def stores(options: Ablations, out: Path) -> tuple[str, str]:
    """To train on and to judge by. Without data the town: drives to train on, and others at the full rate."""
    if options.data:
        return options.data, options.real
    data, real = out / "data", out / "test"
    if not (data / "store.json").exists():
        prepare.main(["source=town", f"out={data}", f"town.seed={options.seed}", "town.routes=16"])
    if not (real / "store.json").exists():
        unseen = ["town.seconds=4", "town.fps=30", "town.sparse_routes=0", "val_share=0"]
        words = [f"town.seed={options.seed + 1000}", f"town.routes={options.clips}", *unseen]
        prepare.main(["source=town", f"out={real}", *words])
    return str(data), str(real)


def compare(judges: Sequence[Judge], options: Ablations) -> list[Line]:
    """Every ratio by every distance, over all training seeds."""
    stand_ins = dict(STAND_INS)
    given = {"fvd": options.fvd_i3d, "fid": options.fid_inception}
    stand_ins |= {name: name for name in STANDARD if given[name]}
    kinds = {made.name: made for made in MADE}
    lines = []
    for comparison in COMPARISONS:
        over, under = kinds[comparison.over], kinds[comparison.under]
        for name, metric in stand_ins.items():
            features, distance = DISTANCES[name]
            found = [
                ratio_of_distances(
                    distance,
                    *(judge.look(made)[0][features] for made in (over, under)),
                    judge.truth(over.kind)[features],
                    options.seed,
                )
                for judge in judges
            ]
            values = tuple(ratio.value for ratio in found)
            lines.append(Line(comparison, name, over_seeds(found), values, comparison.paper(metric)))
    return lines


def _judge(options: Ablations, words: Sequence[str], store: str, split: str | None, folder: Path) -> Judge:
    networks = Networks(
        load_torchscript(options.fid_inception, "fid_inception") if options.fid_inception else None,
        load_torchscript(options.fvd_i3d, "fvd_i3d") if options.fvd_i3d else None,
    )
    frames = {"drive": options.frames, "decoder": options.decoder_frames, "upsampler": options.upsampler_frames}
    return Judge(words, ClipStore(store), split, folder, options.clips, frames, options.window, options.seed, networks)


def _write(options: Ablations, out: Path, judges: Sequence[Judge], lines: Sequence[Line], command: str) -> str:
    """results.json, ratios.png and report.html; returns the table."""
    trained = {judge.out.name: training(judge.out) for judge in judges}
    scores = {judge.out.name: judge.scores() for judge in judges}
    facts = {"command": command, "machine": describe()}
    content = {
        **facts,
        "ratios": [as_dict(line) for line in lines],
        "sets": {seed: {s.name: {k: asdict(v) for k, v in s.metrics.items()} for s in each}
                 for seed, each in scores.items()},
        "training": trained,
    }  # fmt: skip
    with atomic_path(out / "results.json") as path:
        path.write_text(json.dumps(content, indent=1))
    report.draw(lines, out / "ratios.png")
    first = judges[0].out
    report.write(
        lines, scores[first.name], trained[first.name], first / "videos", out / "ratios.png", out / "report.html",
        facts, options.show,
    )  # fmt: skip
    return f"{table(lines)}\nwrote {out / 'results.json'}, {out / 'ratios.png'}, {out / 'report.html'}"


def _same_options(options: Ablations, out: Path) -> None:
    """Note the options, or raise UserError where others were used in the same folder."""
    path = out / "options.json"
    now = {key: value for key, value in json.loads(json.dumps(asdict(options))).items() if key not in FREE}
    if path.exists():
        then = json.loads(path.read_text())
        if changed := [key for key in now if then.get(key) != now[key]]:
            raise UserError(f"{out} holds ablations with other options ({', '.join(changed)}); choose another out=")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(now, indent=1))


if __name__ == "__main__":
    start(main, "benchmarks.ablations")
