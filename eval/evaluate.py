"""`drivesim evaluate`: distances, motion, likeness and steering of generated video against real video, as one page."""

import csv
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from drivesim import __version__
from drivesim.config import option, parse
from drivesim.data.store import SPLITS, ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_path, refuse_existing
from eval import summary
from eval.features import load_torchscript
from eval.layout import finder_for
from eval.measure import Measures, Networks, Options, measure
from eval.records import save_json
from eval.report import Report, Section
from eval.scores import METRICS, Scores, score, warnings
from eval.videos import VideoSet, check_comparable, open_set

if TYPE_CHECKING:
    from eval.study import Study

FILES = ("results.json", "results.csv", "report.html")


@dataclass
class EvaluateConfig:
    """Compare generated videos with real ones. Videos of the same file name are compared with each other.

    Sets are folders of .mp4/.mkv/.mov/.webm files, single files, or clip stores.
    With bundle=... instead of fake=..., the bundle continues the clips of the held-out store real=..., and stands
    beside baselines: frozen start frame, image LDM frame by frame, cross-fade; decoder and upsampler are judged too.
    """

    real: str = option(help="real videos")
    fake: str | None = option(None, "generated videos: a folder, or several as name:folder,name:folder")
    bundle: str | None = option(None, "a trained bundle to judge against baselines")
    data: str | None = option(None, "with bundle: the store it was trained on, whose held-out split is used")
    video: str | None = option(None, "with bundle: a generated mp4 to show on the page")
    clips: int = option(16, "with bundle: held-out clips to continue")
    out: str = option("report", "folder for report.html, results.json and results.csv")
    floor: str | None = option(None, "a second real set for the real-versus-real floor; else halves of real")
    split: str | None = option(None, "split to take of sets that are clip stores; else everything")
    layout_store: str | None = option(None, "clip store whose layouts were asked for, to judge steering by boxes")
    finder: str | None = option(None, "file to keep the car finder in; else car_finder.safetensors beside the report")
    finder_seconds: float = option(90.0, "time to train the car finder, if there is none yet")
    clip_frames: int = option(16, "frames a window; with bundle=, of the continuations")
    fps: float | None = option(None, "read every video at this rate; else as stored, which must agree")
    resize: bool = option(False, "bring other sizes to that of the real videos")
    max_videos: int | None = option(None, "videos a set")
    max_windows: int | None = option(None, "windows a video, spread evenly")
    frames_a_window: int = option(4, "frames of each window for frame features")
    crops: bool = option(True, "also measure crops at native resolution")
    seeds: int = option(1, "with bundle: make our videos this often, with other noise: how much is chance?")
    show: int = option(3, "clips shown on the page")
    show_seconds: float = option(8.0, "their length")
    seed: int = option(0, "of crops and half-samples")
    fid_inception: str | None = option(None, "TorchScript of the FID Inception; reports fid")
    fvd_i3d: str | None = option(None, "TorchScript of the FVD I3D; reports fvd")
    overwrite: bool = option(False, "replace an earlier report")


def main(argv: Sequence[str]) -> None:
    """Entry point of `drivesim evaluate`."""
    config = parse(EvaluateConfig, [_protected(word) for word in argv], "drivesim evaluate")
    for name in ("clip_frames", "frames_a_window"):
        if getattr(config, name) < 2:
            raise UserError(f"{name} is {getattr(config, name)}, at least 2 are needed")
    if config.split is not None and config.split not in SPLITS:
        raise UserError(f"split is {config.split!r}, expected one of {', '.join(SPLITS)}")
    if (config.fake is None) == (config.bundle is None):
        raise UserError("give either fake=..., videos that were made, or bundle=..., a model that makes them")
    out = refuse_report(config.out, config.overwrite)
    options = Options(
        clip_frames=config.clip_frames, fps=config.fps, seed=config.seed, resize=config.resize,
        max_windows=config.max_windows, frames_a_window=config.frames_a_window, crops=config.crops)  # fmt: skip
    command = shlex.join(["drivesim", "evaluate", *argv])
    if config.bundle is not None:
        results = _study(config, out).run(options, _networks(config, out), command)
    else:
        results = _compare(config, out, options, command)
    for scores in results:
        line = "  ".join(f"{key} {s.value:.4g} (n {s.n})" for key, s in scores.metrics.items())
        print(f"{scores.name}: {line}")
    print(f"wrote {out / 'report.html'}")


def _study(config: EvaluateConfig, out: Path) -> "Study":
    from eval.study import Study

    assert config.bundle is not None
    if config.clips < 2 or config.seeds < 1:
        raise UserError(f"clips={config.clips}, seeds={config.seeds}; at least 2 clips and 1 seed are needed")
    for name in ("bundle", "data", "real"):
        if getattr(config, name) is None or not Path(getattr(config, name)).is_dir():
            raise UserError(
                f"{name}={getattr(config, name)} is not a folder; bundle=... needs data=..., the store it was "
                "trained on, and real=..., a store to continue"
            )
    return Study(
        Path(config.bundle),
        ClipStore(config.data or ""),
        ClipStore(config.real),
        Path(config.floor) if config.floor else None,
        out,
        config.clips,
        config.seed,
        config.finder_seconds,
        config.split,
        config.seeds,
        Path(config.video) if config.video else None,
    )


def _compare(config: EvaluateConfig, out: Path, options: Options, command: str) -> list[Scores]:
    sets = {"real": config.real, "floor": config.floor, **parse_sets(config.fake or "")}
    opened = {name: open_set(name, source, config.split, config.max_videos) for name, source in sets.items() if source}
    real, floor = opened.pop("real"), opened.pop("floor", None)
    check_sets(real, list(opened.values()), floor, options)
    return evaluate(
        real, opened, out, options, floor=floor, networks=_networks(config, out), show=config.show,
        show_seconds=config.show_seconds, command=command)  # fmt: skip


def evaluate(
    real: VideoSet | Path | str,
    fakes: Mapping[str, VideoSet | Path | str],
    out: Path | str,
    options: Options | None = None,
    *,
    floor: VideoSet | Path | str | None = None,
    networks: Networks | None = None,
    extra_sections: Sequence[Section] = (),
    title: str = "How real does it look?",
    lead: str = "Generated driving video against real driving video.",
    provenance: Mapping[str, str] | None = None,
    command: str = "",
    show: int = 3,
    show_seconds: float = 8.0,
) -> list[Scores]:
    """Measure sets of videos and write results.json, results.csv and report.html into `out`.

    fakes           label -> videos; those named like a real video are also compared with it moment by moment
    floor           other real videos; None: two halves of the real ones
    extra_sections  go into the page between the curves and the reading aid
    returns         scores of real, floor and each fake, in this order
    raises          UserError for sets that cannot be compared (see `videos.check_comparable`)
    """
    options, networks, out = options or Options(), networks or Networks(), Path(out)
    real = _opened("real", real)
    generated = [replace(_opened(name, source), name=name) for name, source in fakes.items()]
    second = None if floor is None else replace(_opened("floor", floor), name="floor")
    check_sets(real, generated, second, options)
    seen: dict[str, Measures] = {
        videos.name: measure(videos, real, options, networks)
        for videos in [real, *([second] if second else []), *generated]
    }
    results = [score("real", seen["real"], seen["real"], options, distances=False)]
    results += _floor_scores(second, seen, options)
    results += [score(videos.name, seen[videos.name], seen["real"], options) for videos in generated]
    notes = warnings(results, seen, second is None)
    facts = {"command": command or "eval.evaluate.evaluate(...)", **_facts(real, options, networks)}
    facts |= provenance or {}
    sections = _sections(real, generated, results, notes, options, networks, show, show_seconds)
    _write(out, results, notes, facts, options)
    page = [*sections, *extra_sections, summary.reading()]
    Report(title, lead, page, facts).write(out / "report.html")
    return results


def parse_sets(text: str) -> dict[str, str]:
    """'folder' -> {fake: folder}; 'ours:a,frozen:b' or '{ours: a, frozen: b}' -> {ours: a, frozen: b}.

    raises  UserError for a name given twice or reserved, or a part without a name
    """
    text = text.strip()
    if Path(text).exists():
        return {"fake": text}
    parts = [part.strip() for part in text.strip("{}").split(",") if part.strip()]
    if len(parts) == 1 and ":" not in parts[0]:
        return {"fake": text}
    sets: dict[str, str] = {}
    for part in parts:
        name, separator, folder = (piece.strip() for piece in part.partition(":"))
        if not separator or not name or not folder:
            raise UserError(f"fake: {part!r} is not name:folder; write fake=name:folder,name:folder")
        if name in sets or name in summary.REFERENCES:
            state = "taken twice" if name in sets else "reserved"
            raise UserError(f"fake: the name {name!r} is {state}; choose another")
        sets[name] = folder
    return sets


def refuse_report(out: Path | str, overwrite: bool) -> Path:
    """The folder; raises UserError if a report is in it already and `overwrite` was not given."""
    for name in FILES:
        refuse_existing(Path(out) / name, overwrite)
    return Path(out)


def check_sets(real: VideoSet, generated: list[VideoSet], floor: VideoSet | None, options: Options) -> None:
    """raises UserError for sets that cannot be compared, before anything is measured"""
    if floor is None and len(real) < 2:
        raise UserError(f"real has {len(real)} video, the floor needs 2 or a second real set; give floor=")
    others = [*generated, *([floor] if floor else [])]
    check_comparable(real, others, options.clip_frames, options.fps, options.resize)


def _protected(word: str) -> str:
    """Quote the value of fake=, in which Hydra would read commas as a sweep and colons as its own."""
    key, separator, value = word.partition("=")
    if key != "fake" or not separator or value[:1] in ("'", '"'):
        return word
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"fake='{escaped}'"


def _opened(name: str, source: VideoSet | Path | str) -> VideoSet:
    return source if isinstance(source, VideoSet) else open_set(name, source)


def _networks(config: EvaluateConfig, out: Path) -> Networks:
    inception = load_torchscript(config.fid_inception, "fid_inception") if config.fid_inception else None
    i3d = load_torchscript(config.fvd_i3d, "fvd_i3d") if config.fvd_i3d else None
    if config.layout_store is None:
        return Networks(inception, i3d)
    store = ClipStore(config.layout_store)
    cache = config.finder or out / "car_finder.safetensors"
    return Networks(inception, i3d, finder_for(store, cache, config.finder_seconds, config.seed), store)


def _floor_scores(floor: VideoSet | None, seen: dict[str, Measures], options: Options) -> list[Scores]:
    if floor is not None:
        return [score("floor", seen["floor"], seen["real"], options)]
    first, second = halves(seen["real"])
    scores = score("floor", first, second, options)
    scores.metrics = {key: s for key, s in scores.metrics.items() if s.n_real}
    return [scores]


def halves(seen: Measures) -> tuple[Measures, Measures]:
    """The features of every other video, and of the rest: what two draws of the same kind look like."""
    names = list(dict.fromkeys(next(iter(seen.tables.values())).groups))
    parts = []
    for chosen in (set(names[::2]), set(names[1::2])):
        part = Measures(videos=len(chosen))
        for key, table in seen.tables.items():
            for row, group, time in zip(table.rows, table.groups, table.times, strict=True):
                if group in chosen:
                    part.table(key).add(row[None], group, np.array([time]))
        part.windows = len(part.table("transnetv2"))
        parts.append(part)
    return parts[0], parts[1]


def _sections(
    real: VideoSet,
    generated: list[VideoSet],
    results: list[Scores],
    notes: list[str],
    options: Options,
    networks: Networks,
    show: int,
    show_seconds: float,
) -> list[Section]:
    sections = [summary.headline(results, notes)]
    if networks.finder is not None:
        text = (f"The car finder finds {networks.finder.recall:.0%} of the vehicle boxes of held-out real frames "
                f"({networks.finder.precision:.0%} of its finds are right): the ceiling of boxes_found. What it scores "
                f"{networks.finder.threshold:.2f} or more counts, which has the best F1 there.",)  # fmt: skip
        sections[0] = replace(sections[0], text=text)
    names = summary.chosen_names(real, generated, show)
    if names:
        watch, sheets = summary.clips(real, generated, names, options.fps, show_seconds)
        sections += [watch, summary.contact_sheets(sheets, networks.layouts)]
    if (over_time := summary.curves(results)) is not None:
        sections.append(over_time)
    return sections


def _facts(real: VideoSet, options: Options, networks: Networks) -> dict[str, str]:
    shown = {key: value for key, value in asdict(options).items() if key != "progress"}
    rate = options.fps or real.videos[0].fps
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "drivesim": __version__,
        "python, torch": f"{platform.python_version()}, {torch.__version__}",
        "real videos": f"{len(real)} at {real.size[0]}x{real.size[1]}, read at {rate:g} frames a second",
        "options": json.dumps(shown),
        "seed": str(options.seed),
        "standard networks": ", ".join(k for k, v in (("fid_inception", networks.inception), ("fvd_i3d", networks.i3d))
                                       if v is not None) or "none given",
    }  # fmt: skip


def _write(out: Path, results: list[Scores], notes: list[str], facts: dict[str, str], options: Options) -> None:
    content = {
        "schema": 1, "provenance": facts, "options": asdict(options), "warnings": notes,
        "metrics": {key: {"better": metric.better, "meaning": metric.meaning} for key, metric in METRICS.items()},
        "sets": [asdict(scores) for scores in results],
    }  # fmt: skip
    save_json(out / "results.json", content)
    with atomic_path(out / "results.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "metric", "value", "standard_error", "n", "n_real", "better"])
        for scores in results:
            for key, s in scores.metrics.items():
                error = s.error if np.isfinite(s.error) else ""
                writer.writerow([scores.name, key, s.value, error, s.n, s.n_real, METRICS[key].better])


if __name__ == "__main__":
    main(sys.argv[1:])
