"""The sections of an evaluation's page: numbers, clips side by side, contact sheets, curves, reading aid."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice

import numpy as np

from drivesim.data.store import ClipStore
from eval.layout import vehicle_boxes
from eval.media import contact_sheet, draw_boxes, line_chart, mp4, picture
from eval.report import Cell, Clips, Figure, Section, Table
from eval.scores import HIGHER, LOWER, METRICS, NEAR_REAL, Scores
from eval.videos import VideoSet, read_frames

ARROWS = {LOWER: "↓", HIGHER: "↑", NEAR_REAL: "≈ real"}
REFERENCES = ("real", "floor")
CEILING = "autoencoder"  # true video through the autoencoder: nothing to win against, it has seen the answer
GROUPS = {
    "Distance to the real videos": ("fd_", "kd_", "fid", "fvd"),
    "Likeness to the true continuation, and motion": ("psnr", "stlpips", "flow_", "expansion_", "flicker_"),
    "Obedience to boxes": ("boxes_",),
}  # table -> what its metrics' names begin with
CURVES = {
    "psnr": ("PSNR to the true continuation (dB)", "Higher is closer to what really happened."),
    "stlpips": ("ST-LPIPS to the true continuation", "Lower looks more like what really happened."),
    "stlpips_start": ("ST-LPIPS to the start frame", "How far the picture has moved on; a frozen video stays at 0."),
    "kd_efficientnet_lite0": ("Kernel distance of frames to all real frames",
                              "Does quality decay as the video runs? EfficientNet-lite0 features."),
}  # fmt: skip
READING = (
    "Each row is a set of videos, each column one way to look at them. ↓ means lower is better, ↑ higher, and ≈ real "
    "means best when close to the real videos' own value. The number after ± is a standard error, from random halves "
    "of the videos or, for boxes, from leaving out one video after the other; n is how many rows of features, windows, "
    "compared frames or boxes the number rests on.",
    "The floor row compares real videos with other real videos. No distance below it means anything, except for sets "
    "whose start frames come from the very videos they are compared with: those share scenes with them.",
    "Likeness to the true continuation punishes a video that drives on plausibly but differently, and rewards blur. "
    "The broken line in the curves is the start frame held still. Always watch the clips too.",
    "The networks are small ones that install offline. Their distances are not FID and not FVD, and are comparable "
    "only with numbers of the same name, n, frame rate and resolution.",
)


@dataclass(frozen=True)
class Sheet:
    """What a contact sheet shows: label -> frames [H, W, 3] at the same `times` [n], seconds."""

    name: str
    rows: dict[str, list[np.ndarray]]
    times: np.ndarray


def headline(sets: Sequence[Scores], notes: Sequence[str]) -> Section:
    """Sets by metrics, a table a question, the winners marked."""
    measured = [key for key in METRICS if any(key in scores.metrics for scores in sets)]
    groups = {caption: [key for key in measured if key.startswith(begins)] for caption, begins in GROUPS.items()}
    tables = [_table(sets, keys, caption) for caption, keys in groups.items() if keys]
    return Section("Numbers", tables=tables, warnings=notes)


def _table(sets: Sequence[Scores], names: Sequence[str], caption: str) -> Table:
    best = {key: _winner(sets, key) for key in names}
    rows = []
    for scores in sets:
        size = f"{scores.videos} videos, {scores.windows} windows"
        row = [Cell(scores.name, size)]
        for key in names:
            found = scores.metrics.get(key)
            if found is None:
                row.append(Cell("–"))
                continue
            error = f"± {_digits(found.error, key)}, " if np.isfinite(found.error) else ""
            row.append(Cell(_digits(found.value, key), f"{error}n {found.n}", best[key] == scores.name))
        rows.append(row)
    muted = [i for i, scores in enumerate(sets) if scores.name in (*REFERENCES, CEILING)]
    header = ["set", *(f"{key} {ARROWS[METRICS[key].better]}" for key in names)]
    return Table(header, rows, caption, hints=["", *(METRICS[key].meaning for key in names)], muted=muted)


def _digits(value: float, key: str) -> str:
    return f"{value:.{METRICS[key].digits}f}"


def _winner(sets: Sequence[Scores], key: str) -> str | None:
    """The best generated set of a column, when there are several to choose from."""
    rivals = [s for s in sets if s.name not in (*REFERENCES, CEILING)]
    values = {s.name: s.metrics[key].value for s in rivals if key in s.metrics}
    better = METRICS[key].better
    real = next((s.metrics[key].value for s in sets if s.name == "real" and key in s.metrics), None)
    if len(values) < 2 or (better == NEAR_REAL and real is None):
        return None
    cost = {name: value if better == LOWER else -value if better == HIGHER else abs(value - (real or 0))
            for name, value in values.items()}  # fmt: skip
    return min(cost, key=cost.__getitem__)


def chosen_names(real: VideoSet, fakes: Sequence[VideoSet], count: int) -> list[str]:
    """Names most sets share, so that clips stand beside their truth and their rivals; ties in order of name."""
    names = dict.fromkeys(video.name for videos in fakes for video in videos.videos)
    shared = {name: sum(videos.find(name) is not None for videos in (real, *fakes)) for name in names}
    most = max(shared.values(), default=0)
    return [name for name in names if shared[name] == most][:count]


def clips(
    real: VideoSet, fakes: Sequence[VideoSet], names: Sequence[str], fps: float | None, seconds: float, columns: int = 6
) -> tuple[Section, list[Sheet]]:
    """Players of the first seconds of each name, and `columns` moments of each for a contact sheet."""
    players, sheets = [], []
    for name in names:
        players.append(Clips(name, shown := {}))
        rows: dict[str, list[np.ndarray]] = {}
        for videos in (real, *fakes):
            if (video := videos.find(name)) is not None:
                rate = fps or video.fps
                frames = read_frames(video, fps, _small(real.size))
                rows[videos.name] = list(islice(frames, max(1, round(seconds * rate))))
                shown[videos.name] = mp4(rows[videos.name], rate)
        at = _moments(rows, columns)
        sheets.append(Sheet(name, {label: [frames[t] for t in at] for label, frames in rows.items()}, at / rate))
    text = ("Same name, same start frame, same moment. The first is what really happened, where it is known.",)
    return Section("Watch", text=text, clips=players), sheets


def _small(size: tuple[int, int]) -> tuple[int, int]:
    width = min(384, size[1])
    return round(size[0] * width / size[1] / 2) * 2, width // 2 * 2


def _moments(rows: dict[str, list[np.ndarray]], count: int) -> np.ndarray:
    shortest = min(len(frames) for frames in rows.values())
    return np.linspace(0, shortest - 1, min(count, shortest)).round().astype(int)


def contact_sheets(sheets: Sequence[Sheet], layouts: ClipStore | None) -> Section:
    """A row a set, a column a moment, with the boxes that were asked for drawn where they are known."""
    figures = []
    for sheet in sheets:
        asked = _asked(layouts, sheet.name, sheet.times)
        drawn = [[draw_boxes(image, boxes) for image, boxes in zip(row, asked, strict=True)]
                 for row in sheet.rows.values()]  # fmt: skip
        moments = ", ".join(f"{t:.1f}" for t in sheet.times)
        caption = f"{sheet.name} at {moments} s"
        figures.append(Figure(picture(contact_sheet(drawn, list(sheet.rows)), caption), caption, wide=True))
    text = ("Yellow: the vehicle boxes that were asked for.",) if layouts is not None else ()
    return Section("Contact sheets", text=text, figures=figures)


def _asked(layouts: ClipStore | None, name: str, times: np.ndarray) -> list[np.ndarray]:
    if layouts is None or name not in layouts.index.index:
        return [np.zeros((0, 4))] * len(times)
    layout, rate = layouts.layout(name), float(layouts.index.loc[name].fps)
    return [vehicle_boxes(layout, min(round(t * rate), layout.num_frames - 1)) for t in times]


def curves(sets: Sequence[Scores]) -> Section | None:
    """Charts over time; the start frame held still is drawn broken, for comparison."""
    figures = []
    colours = {scores.name: i for i, scores in enumerate(s for s in sets if s.name not in REFERENCES)}
    colours |= {"floor": 7, "start frame held still": 7}
    for key, (label, caption) in CURVES.items():
        drawn = {s.name: [(t, v) for t, v, _ in s.curves[key]] for s in sets if len(s.curves.get(key, [])) > 1}
        if not drawn:
            continue
        held = next((s.curves[f"{key}_frozen"] for s in sets if f"{key}_frozen" in s.curves), None)
        if held:
            drawn["start frame held still"] = [(t, v) for t, v, _ in held]
        # The start frame is given to every set: its PSNR, capped and tied, would only flatten the rest of the curve.
        drawn = {name: [p for p in points if key != "psnr" or p[0] > 0] for name, points in drawn.items()}
        chart = line_chart(drawn, "seconds", label, dashed=("start frame held still", "floor"), colours=colours)
        figures.append(Figure(chart, caption))
    return Section("Over time", figures=figures) if figures else None


def reading() -> Section:
    meanings = "".join(
        f"<dt>{key} {ARROWS[metric.better]}</dt><dd class='text'>{escape(metric.meaning)}</dd>"
        for key, metric in METRICS.items())  # fmt: skip
    return Section("How to read this", text=READING, html=f"<dl>{meanings}</dl>", folded=True)
