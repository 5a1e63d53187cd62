"""What a clip store holds, as a page of histograms."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drivesim.clip import CLASSES
from drivesim.generation.draw import COLOURS

INK = "#4c72b0"
BINS = 24
CLASS_COLOURS = [(red / 255, green / 255, blue / 255) for red, green, blue in COLOURS]


def histograms(index: pd.DataFrame, frames: pd.DataFrame, boxes: pd.DataFrame) -> Figure:
    """Speed, vehicles in view, night, clip length, box height, boxes by class: six panels.

    The tables of a store, `index` and `frames` with a column `seconds`, the weight of what is told by frame.
    """
    figure = Figure(figsize=(13, 7), layout="constrained", dpi=100)
    panels = figure.subplots(2, 3).ravel()
    most = np.nan_to_num(frames["vehicles"].max())
    for panel, column, label, bins in (
        (panels[0], "speed_mps", "speed, m/s", BINS),
        (panels[1], "vehicles", "vehicles in view", np.arange(most + 2) - 0.5),
        (panels[2], "night", "night: 0 day .. 1 night", np.linspace(0, 1, 11)),
    ):
        known = frames.dropna(subset=[column])
        _histogram(panel, known[column], known["seconds"], bins, (label, "seconds of video"))
    _histogram(panels[3], index["seconds"], None, BINS, ("clip length, s", "clips"))
    _box_heights(panels[4], boxes, index.set_index("clip")["height"])
    counts = boxes["class"].value_counts().reindex(CLASSES, fill_value=0)
    panels[5].bar(counts.index, counts, color=CLASS_COLOURS)
    panels[5].set(xlabel="class", ylabel="boxes")
    return figure


def _histogram(panel: Axes, values: pd.Series, weights: pd.Series | None, bins, labels: tuple[str, str]) -> None:
    panel.set(xlabel=labels[0], ylabel=labels[1])
    if len(values):
        panel.hist(values, bins=bins, weights=weights, color=INK)
    else:
        _say_unknown(panel)


def _box_heights(panel: Axes, boxes: pd.DataFrame, clip_heights: pd.Series) -> None:
    """Stacked by class, in pixels of the stored size, on a logarithmic axis: far cars are many and small."""
    panel.set(xlabel="box height, pixels", ylabel="boxes", xscale="log")
    pixels = (boxes["y2"] - boxes["y1"]) * boxes["clip"].map(clip_heights)
    pixels = pixels.clip(lower=1.0)
    if not len(pixels):
        return _say_unknown(panel)
    bins = np.geomspace(pixels.min(), max(pixels.max(), pixels.min() + 1), BINS + 1).tolist()
    by_class = [pixels[boxes["class"] == name] for name in CLASSES]
    panel.hist(by_class, bins=bins, stacked=True, color=CLASS_COLOURS, label=CLASSES)
    panel.legend(frameon=False)


def _say_unknown(panel: Axes) -> None:
    panel.text(0.5, 0.5, "unknown", transform=panel.transAxes, ha="center", va="center", color="gray")
