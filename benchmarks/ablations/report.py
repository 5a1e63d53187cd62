"""The ablations as a picture and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import figure as plots

from benchmarks.ablations.rows import MADE
from benchmarks.ablations.verdict import Line, paper_shown, shown
from drivesim.files import atomic_path
from eval.media import picture
from eval.report import Figure, Report, Section, Table
from eval.scores import METRICS, Scores
from eval.summary import clips
from eval.videos import open_set

SHOWN = ("fd_transnetv2", "fd_efficientnet_lite0_clips", "fd_efficientnet_lite0", "fid", "fvd", "psnr",
         "flow_error_dis", "flow_speed_dis", "flicker_dis")  # fmt: skip
TRAINING = ("steps", "train_seconds", "parameters_trained", "validation_loss")
COLOURS = {"yes": "tab:green", "no": "tab:red", "open": "tab:gray", "-": "tab:blue"}
LEAD = "Every part of the method left out once, at equal time of training, beside the paper's own figures."
READING = (
    "A ratio is the distance to real video of the first over that of the second: below 1 the first is better. ± is a "
    "standard error, over halves of the held-out videos and over training seeds where there are several.",
    "fd_transnetv2 and fd_efficientnet_lite0_clips stand in for FVD, fd_efficientnet_lite0 for FID; they are other "
    "networks on other data, so directions may be compared with the paper's, sizes hardly.",
)


def draw(lines: Sequence[Line], path: Path) -> None:
    """A panel for each distance, a bar for each ratio, the paper's beside it as a diamond."""
    distances = list(dict.fromkeys(line.distance for line in lines))
    figure = plots.Figure(figsize=(5 * len(distances) + 2, 5.5), layout="constrained")
    panels = figure.subplots(1, len(distances), sharey=True, squeeze=False)[0]
    for panel, distance in zip(panels, distances, strict=True):
        chosen = [line for line in lines if line.distance == distance]
        for y, line in enumerate(chosen):
            value, error = line.ours.value, np.nan_to_num(line.ours.error)
            panel.barh(y, value - 1, left=1, color=COLOURS[line.agrees], height=0.6, xerr=error, ecolor="black")
            if line.paper is not None:
                panel.plot(line.paper, y, "D", color="black", markersize=7)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(xscale="log", title=distance, xlabel="ratio, below 1: the first is better")
        panel.set_yticks(range(len(chosen)), [line.comparison.name for line in chosen])
    panels[0].invert_yaxis()
    figure.suptitle("bars: ours (green: points where the paper's does, red: does not, grey: open); diamonds: the paper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)


def write(
    lines: Sequence[Line],
    scores: Sequence[Scores],
    trained: Mapping[str, Mapping[str, Mapping[str, float]]],
    videos: Path,
    chart: Path,
    page: Path,
    facts: Mapping[str, str],
    show: int,
) -> None:
    """One self-contained page. scores, trained, videos: those of the first training seed."""
    image = cv2.imread(str(chart))[..., ::-1]
    ratios = Section(
        "Ratios", READING, [_ratios(lines)], figures=[Figure(picture(image, "ratios", 92), "The same", wide=True)]
    )
    sets = Section("Sets", tables=[_sets(scores)])
    Report(
        "Ablations", LEAD, [ratios, sets, _watch(videos, show), Section("Training", tables=[_training(trained)])], facts
    ).write(page)


def _ratios(lines: Sequence[Line]) -> Table:
    rows = [
        [line.comparison.name, line.distance, shown(line.ours), paper_shown(line), line.agrees, line.comparison.why]
        for line in lines
    ]
    return Table(("ratio", "distance", "ours", "paper", "same direction", "why they may differ"), rows)


def _sets(scores: Sequence[Scores]) -> Table:
    keys = [key for key in SHOWN if any(key in each.metrics for each in scores)]
    rows = [[each.name, str(each.windows), *(_number(each, key) for key in keys)] for each in scores]
    return Table(("set", "windows", *keys), rows, hints=("", "", *(METRICS[key].meaning for key in keys)))


def _number(scores: Scores, key: str) -> str:
    return f"{scores.metrics[key].value:.{METRICS[key].digits}f}" if key in scores.metrics else ""


def _training(trained: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    rows = [
        [run, stage, *(f"{record[key]:.4g}" for key in TRAINING)]
        for run, stages in trained.items()
        for stage, record in stages.items()
    ]
    return Table(("run", "stage", *(key.replace("_", " ") for key in TRAINING)), rows)


def _watch(videos: Path, show: int) -> Section:
    """The drives side by side."""
    names = [made.name for made in MADE if made.kind == "drive"]
    real, *made = (open_set(name, videos / name) for name in ("real_drive", *names))
    return clips(real, made, [video.name for video in real.videos[:show]], None, 8.0)[0]
