"""The race as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.networks import OURS
from benchmarks.race.judge import DISTANCES
from benchmarks.race.run import Record
from benchmarks.race.verdict import Speeds, curves
from drivesim.files import atomic_path


def draw(records: Mapping[str, Record], speeds: Speeds, ceiling: Mapping[str, float], path: Path) -> None:
    """Above, loss and distances against minutes of training; below, distances against the speed of generation, a point
    for each number of sampling steps."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    panels: Any = figure.subplots(2, len(DISTANCES) + 1)
    for name, record in records.items():
        style = {"label": name, "linewidth": 2.5 if name == OURS else 1.2, "marker": "o", "markersize": 3}
        for panel, (what, points) in zip(panels[0], curves(record).items(), strict=True):
            panel.plot([seconds / 60 for seconds, _ in points], [value for _, value in points], **style)
            panel.set(xlabel="minutes of training", ylabel=what, yscale="log")
        for panel, what in zip(panels[1], DISTANCES, strict=False):
            rows = sorted(speeds.get(name, ()), key=lambda row: row["speed"])
            panel.plot([row["speed"] for row in rows], [row[what] for row in rows], **style)
            panel.set(xlabel="seconds of video a second", ylabel=what, xscale="log", yscale="log")
    for panel, what in zip(panels[0][1:], DISTANCES, strict=True):
        panel.set_title(f"the autoencoder alone: {ceiling[what]:.2g}", fontsize="small")
    panels[0][0].legend()
    panels[1][-1].axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)
