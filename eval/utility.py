"""`drivesim utility`: of what use are generated, labelled clips to who trains a detector?

The same small detector is trained on real frames, on generated ones, and on both, by as many gradient steps, several
times from other seeds, and tested on real frames that none of them has seen.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from drivesim import __version__
from drivesim.clip import CLASSES
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import refuse_existing
from drivesim.generation.draw import contact_sheet, draw_boxes, save_png
from eval.detector import (
    OVERALL,
    Detector,
    Found,
    Labelled,
    Lessons,
    average_precision,
    countable,
    labelled_frames,
    train_detector,
)
from eval.layout import trunk
from eval.records import save_json, save_rows
from eval.videos import resize

FILES = ("utility.json", "utility.csv", "detections.png")
SETS = ("real", "synthetic", "both")
LEAST = 8  # frames of a set; fewer are not one batch
SHOWN, SURE = 4, 0.5  # test frames on the picture, and the score from which finds are drawn
SHOWN_WIDTH = 512  # pixels of each

Precision = dict[str, dict[str, float]]  # of one detector, see `average_precision`


@dataclass
class UtilityConfig:
    """Train the same small detector on real clips, on generated ones and on both, and test it on held-out real ones.

    Every training takes as many gradient steps. OUT gets utility.json, utility.csv and detections.png.
    """

    real: str = option(help="clip store of real clips with boxes, of which the train split is used")
    synthetic: str = option(help="clip store of generated clips with boxes, made by `drivesim export format=store`")
    test: str = option(help="clip store of held-out real clips; of the same store as real=, its test or val split")
    out: str = option("utility", "folder for the tables and the picture")
    frames: int = option(300, "frames to train on, of each of the two")
    real_frames: int | None = option(None, "frames of the real clips, where they are fewer, say")
    test_frames: int = option(150, "frames to test on")
    steps: int = option(1500, "gradient steps of a training, of 8 frames each")
    seeds: int = option(3, "trainings of each kind")
    seed: int = option(0, "the first of their seeds")
    overwrite: bool = option(False, "replace earlier tables")


@dataclass(frozen=True)
class Run:
    """One training: what it was trained on, its seed, and what it reached."""

    trained_on: str
    seed: int
    precision: Precision


def main(argv: Sequence[str]) -> None:
    """Entry point of `drivesim utility`."""
    config = parse(UtilityConfig, argv, "drivesim utility")
    for name in ("frames", "real_frames", "test_frames", "steps", "seeds"):
        least = 1 if name in ("steps", "seeds") else LEAST
        if (value := getattr(config, name)) is not None and value < least:
            raise UserError(f"{name}={value}, at least {least} are needed")
    out = Path(config.out)
    for name in FILES:
        refuse_existing(out / name, config.overwrite)
    train, test = open_frames(config)
    runs, shown = study(train, test, config.steps, range(config.seed, config.seed + config.seeds))
    out.mkdir(parents=True, exist_ok=True)
    counts = {"real": len(train["real"]), "synthetic": len(train["synthetic"]), "test": len(test)}
    _write(out, config, runs, counts, shlex.join(["drivesim", "utility", *argv]))
    save_png(_picture(test, shown), out / "detections.png")
    print(table(runs, counts))
    print(f"wrote {out / 'utility.json'}")


def open_frames(config: UtilityConfig) -> tuple[dict[str, list[Labelled]], list[Labelled]]:
    """Frames to train on, real and synthetic, and those to test on.

    raises  UserError for stores without boxes or with too few frames, and where train and test share a route
    """
    real, synthetic, test = (ClipStore(getattr(config, name)) for name in ("real", "synthetic", "test"))
    if same_store(real, synthetic):
        raise UserError(f"real and synthetic are the same store ({real.root}); give a store of generated clips")
    chosen = {
        "real": (real, _split(real, "real", ("train",))),
        "synthetic": (synthetic, _split(synthetic, "synthetic", ("train",))),
        "test": (test, _split(test, "test", ("test", "val") if same_store(real, test) else ("test", "val", "train"))),
    }
    for name in ("real", "synthetic"):
        refuse_shared(name, *chosen[name], *chosen["test"])
    counts = {"real": config.real_frames or config.frames, "synthetic": config.frames, "test": config.test_frames}
    frames = {
        # Clips of any length may give half of what they are asked for; hence twice as many.
        name: _thinned(list(labelled_frames(store, clips, 2 * counts[name], f"{name} frames")), counts[name])
        for name, (store, clips) in chosen.items()
    }
    for name, given in frames.items():
        if len(given) < LEAST:
            raise UserError(f"{name}: {len(given)} frames with boxes, at least {LEAST} are needed; give more clips")
        if not any(countable(frame).any() for frame in given):
            raise UserError(f"{name}: none of {len(given)} frames shows a box well enough to be found; give others")
        if len(given) < counts[name]:
            print(f"drivesim: {name} has {len(given)} of the {counts[name]} frames asked for", file=sys.stderr)
    return {name: frames[name] for name in ("real", "synthetic")}, frames["test"]


def _thinned(frames: list[Labelled], count: int) -> list[Labelled]:
    """`count` of them, or all, spread evenly."""
    at = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return [frames[i] for i in at]


def _split(store: ClipStore, name: str, splits: Sequence[str]) -> list[str]:
    """Clips with boxes of the first of `splits` that has any."""
    for split in splits:
        if clips := [clip for clip in store.clips(split) if store.row(clip).has_boxes]:
            return clips
    wanted = " or ".join(splits)
    raise UserError(f"{name}={store.root}: no clip of split {wanted} has boxes; a detector needs them, give others")


def same_store(a: ClipStore, b: ClipStore) -> bool:
    return a.hashes == b.hashes


def refuse_shared(name: str, store: ClipStore, clips: list[str], test: ClipStore, tested: list[str]) -> None:
    """raises UserError if clips to train on and clips to test on show the same drive: the same file, or the same route
    of one recording"""
    files = {test.hashes[clip]: clip for clip in tested}
    routes = {str(test.row(clip).route): clip for clip in tested} if origin(store) == origin(test) else {}
    for clip in clips:
        route = str(store.row(clip).route)
        if twin := files.get(store.hashes[clip]) or routes.get(route):
            raise UserError(
                f"clip {clip} of {name}={store.root} and clip {twin} of test={test.root} show the same drive "
                f"(route {route}); test on routes that nothing was trained on"
            )


def origin(store: ClipStore) -> tuple[str, ...]:
    """What routes of the same name have to share to be the same drive: where they were recorded, or, of a town, the
    seed that it grew from."""
    made = store.info.get("config") or {}
    town = made.get("town") or {}
    return tuple(str(part) for part in (store.info.get("source"), made.get("root"), town.get("seed")))


def study(
    train: dict[str, list[Labelled]], test: list[Labelled], steps: int, seeds: Sequence[int], progress: bool = True
) -> tuple[list[Run], dict[str, Detector]]:
    """Every training, and of each kind the first detector."""
    parts = {name: Lessons.of(frames, progress) for name, frames in train.items()}
    lessons, real = Lessons.cat(list(parts.values())), len(parts["real"])
    every = torch.arange(len(lessons))
    among = {"real": every[:real], "synthetic": every[real:], "both": every}
    runs: list[Run] = []
    first: dict[str, Detector] = {}
    jobs = [(seed, name) for seed in seeds for name in SETS]
    seen = [trunk(frame.frame[None]) for frame in tqdm(test, "test: maps", leave=False, disable=not progress)]
    for seed, name in tqdm(jobs, "trainings", disable=not progress):
        detector = train_detector(lessons, steps, seed, among[name], progress)
        runs.append(Run(name, seed, average_precision(test, [detector.detect(maps) for maps in seen])))
        first.setdefault(name, detector)
    return runs, first


def summary(runs: Sequence[Run]) -> list[dict]:
    """A row for each kind of training, class and figure: mean, and sample standard deviation over the seeds."""
    rows = []
    for name in SETS:
        mine = [run.precision for run in runs if run.trained_on == name]
        for kind, figures in mine[0].items():
            for figure in ("ap", "ap50"):
                values = [precision[kind][figure] for precision in mine]
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
                rows.append({"trained_on": name, "class": kind, "figure": figure, "mean": float(np.mean(values)),
                             "spread": spread, "seeds": len(values), "boxes": int(figures["boxes"])})  # fmt: skip
    return rows


def table(runs: Sequence[Run], counts: dict[str, int]) -> str:
    """For people: average precision in per cent, mean over seeds ± spread."""
    rows = summary(runs)
    kinds = list(runs[0].precision)
    boxes = {row["class"]: row["boxes"] for row in rows}
    frames = {**counts, "both": counts["real"] + counts["synthetic"]}
    heads = ["mean AP", "mean AP50", *(f"{kind} AP50" for kind in kinds[1:])]
    columns = [(OVERALL, "ap"), (OVERALL, "ap50"), *((kind, "ap50") for kind in kinds[1:])]
    values = {(row["trained_on"], row["class"], row["figure"]): _per_cent(row["mean"], row["spread"]) for row in rows}
    lines = [["trained on", "frames", *heads]]
    lines += [[name, str(frames[name]), *(values[(name, *column)] for column in columns)] for name in SETS]
    lines.append([f"{counts['test']} test frames", "boxes", *(str(boxes[kind]) for kind, _ in columns)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) if i == 0 else word.rjust(width)
                  for i, (word, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines)  # fmt: skip


def _per_cent(mean: float, spread: float) -> str:
    return f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if np.isfinite(spread) else "")


def _write(out: Path, config: UtilityConfig, runs: Sequence[Run], counts: dict[str, int], command: str) -> None:
    rows = summary(runs)
    content = {
        "schema": 1, "drivesim": __version__, "torch": torch.__version__, "command": command,
        "options": asdict(config), "frames": counts, "runs": [asdict(run) for run in runs],
        "summary": rows,
    }  # fmt: skip
    save_json(out / "utility.json", content)
    save_rows(out / "utility.csv", rows)


def _picture(test: Sequence[Labelled], detectors: dict[str, Detector]) -> np.ndarray:
    """Test frames row by row: what is there, and what each kind of detector finds."""
    fullest = sorted(range(len(test)), key=lambda i: -int(countable(test[i]).sum()))[: len(test) // 2 + 1]
    pictures, captions = [], []
    for i in sorted(fullest[:: max(1, len(fullest) // SHOWN)][:SHOWN]):
        given = test[i]
        there = Found(given.boxes, given.labels, np.full(len(given.boxes), np.nan))
        pictures.append(_drawn(given.frame, there, countable(given)))
        captions.append(f"what is there, test frame {i}")
        for name in SETS:
            found = detectors[name].detect(trunk(given.frame[None]))
            pictures.append(_drawn(given.frame, found, found.scores >= SURE))
            captions.append(f"trained on {name}")
    return contact_sheet(pictures, 1 + len(SETS), captions)


def _drawn(frame: np.ndarray, found: Found, chosen: np.ndarray) -> np.ndarray:
    """A frame with the chosen finds: class, and the score in per cent where there is one."""
    large = resize(frame, (round(SHOWN_WIDTH * frame.shape[0] / frame.shape[1]), SHOWN_WIDTH))
    words = [
        CLASSES[label] + ("" if np.isnan(score) else f" {100 * score:.0f}")
        for label, score in zip(found.labels[chosen], found.scores[chosen], strict=True)
    ]
    return draw_boxes(large, found.boxes[chosen], found.labels[chosen].tolist(), words)


if __name__ == "__main__":
    main(sys.argv[1:])
