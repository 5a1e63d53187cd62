"""`drivesim diversity`: how far apart are the futures of one start, beside real drives that went on from like scenes?

Perceptual distance (ST-LPIPS) of every two futures at the same moment, and of every two real continuations: of each
route of a store the frame whose features are nearest to the start frame begins one, and the nearest routes are taken.
Real scenes differ from their first frame on, so the distance at 0 s stands in the table too: futures of one start have
none.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from drivesim import __version__
from drivesim.config import option, parse
from drivesim.data.clip_file import ClipFile
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate, probe
from drivesim.errors import UserError
from drivesim.files import atomic_path, refuse_existing
from drivesim.generation.draw import contact_sheet, save_png
from drivesim.generation.futures import PLAN
from eval.features import frame_features
from eval.records import save_json, save_rows
from eval.similarity import SIZE, stlpips, stlpips_maps
from eval.videos import resize

FILES = ("diversity.json", "diversity.csv", "diversity.png", "diversity_frames.png")
APART_S = 0.5  # between frames of a store that a continuation may begin with
SHOWN = 6  # futures, and real continuations, on the picture of frames

Pictures = dict[float, np.ndarray]  # moment in s after the start -> frame [H, W, 3] uint8


@dataclass
class DiversityConfig:
    """Compare how futures of one start differ from each other with how real drives differ that began in like scenes.

    OUT gets diversity.json, diversity.csv, diversity.png and diversity_frames.png.
    """

    futures: list[str] = option(help="folders that `drivesim generate futures=N` filled, as in [a,b]; one start each")
    real: str = option(help="clip store of real drives")
    times: list[float] = option([1.0, 2.0, 4.0], "moments that are compared, seconds after the start")
    out: str = option("diversity", "folder for the tables and pictures")
    overwrite: bool = option(False, "replace earlier ones")


@dataclass(frozen=True)
class Case:
    """The futures of one start, by name, and real continuations of like scenes, by clip."""

    name: str
    futures: dict[str, Pictures]
    real: dict[str, Pictures]


@dataclass(frozen=True)
class Row:
    """Mean distance between two of a kind at a moment, over all starts, and its standard error over them."""

    time_s: float
    futures: float
    futures_error: float
    real: float
    real_error: float

    @property
    def ratio(self) -> float:
        return self.futures / self.real


def main(argv: Sequence[str]) -> None:
    """Entry point of `drivesim diversity`."""
    config = parse(DiversityConfig, argv, "drivesim diversity")
    if not config.futures or not config.times or min(config.times) <= 0:
        raise UserError(f"futures={config.futures}, times={config.times}; give one folder or more, and times above 0")
    out = Path(config.out)
    for name in FILES:
        refuse_existing(out / name, config.overwrite)
    times = [0.0, *sorted(set(config.times))]
    cases = list(compared([Path(folder) for folder in config.futures], ClipStore(config.real), times))
    rows = diversity(cases, times)
    out.mkdir(parents=True, exist_ok=True)
    _write(out, config, cases, rows, shlex.join(["drivesim", "diversity", *argv]))
    save_png(_frames(cases[0], times), out / "diversity_frames.png")
    print(table(rows, cases))
    print(f"wrote {out / 'diversity.json'}")


def compared(folders: Sequence[Path], store: ClipStore, times: Sequence[float]) -> Iterator[Case]:
    """Every start with its futures and as many real continuations.

    raises  UserError for folders without futures, and where futures or clips are too few or too short
    """
    listed = {folder: _videos(folder, times[-1]) for folder in folders}  # every mistake before the long part
    index = SceneIndex.of(store, times[-1])
    for folder, videos in listed.items():
        futures = {name: _at(path, 0.0, times) for name, path in videos.items()}
        start = next(iter(futures.values()))[0.0]
        real = {clip: _at(store.video(clip), begin, times) for clip, begin in index.nearest(start, len(futures))}
        yield Case(folder.name, futures, real)


def _videos(folder: Path, until_s: float) -> dict[str, Path]:
    """The futures in a folder, by caption."""
    try:
        listed = json.loads((folder / PLAN).read_text())["futures"]
        videos = {str(row["caption"]): folder / str(row["file"]) for row in listed}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"futures={folder} has no readable {PLAN}; `drivesim generate futures=4` makes one") from error
    if len(videos) < 2:
        raise UserError(f"futures={folder} has {len(videos)} future; at least 2 can differ")
    for path in videos.values():
        if not path.exists():
            raise UserError(f"{path} is missing; run the `drivesim generate` that makes {folder} again")
        info = probe(path)
        if (info.frames - 1) / info.fps + 0.5 / info.fps < until_s:
            raise UserError(f"{path} is {info.duration_s:.2f} s long, times go to {until_s:g} s; give lower times")
    return videos


@dataclass(frozen=True)
class SceneIndex:
    """Frames of a store that a continuation may begin with: features [n, d], and of each its clip, route and time."""

    features: np.ndarray
    places: list[tuple[str, str, float]]

    @classmethod
    def of(cls, store: ClipStore, until_s: float) -> "SceneIndex":
        """raises UserError if no clip goes on for so long"""
        features, places = [], []
        for clip in tqdm(store.clips(), "like scenes", unit="clip"):
            row = store.row(clip)
            every, last = max(1, round(row.fps * APART_S)), row.frames - 1 - round(until_s * row.fps)
            if last < 0:
                continue
            frames = enumerate(iterate(store.video(clip), stop=(last + 0.5) / row.fps))
            starts = [(t, resize(frame, SIZE)) for t, frame in frames if t % every == 0]
            features.append(frame_features(np.stack([frame for _, frame in starts])))
            places += [(clip, str(row.route), t / float(row.fps)) for t, _ in starts]
        if not places:
            raise UserError(f"real={store.root}: no clip is {until_s:g} s long; give lower times or longer clips")
        return cls(np.concatenate(features), places)

    def nearest(self, start: np.ndarray, count: int) -> list[tuple[str, float]]:
        """Clip and time of the frames most like `start` [H, W, 3], one of each route: two frames of one drive would go
        on as each other.

        raises  UserError if there are fewer routes
        """
        distance = ((self.features - frame_features(resize(start, SIZE)[None])) ** 2).sum(1)
        chosen: dict[str, tuple[str, float]] = {}
        for i in np.argsort(distance, kind="stable"):
            clip, route, begin = self.places[i]
            chosen.setdefault(route, (clip, begin))
        if len(chosen) < count:
            raise UserError(f"real has {len(chosen)} routes that are long enough, {count} futures need as many")
        return list(chosen.values())[:count]


def _at(path: Path | ClipFile, begin_s: float, times: Sequence[float]) -> Pictures:
    """Frames of a video nearest to some moments after `begin_s`, at the size of the perceptual network."""
    fps = probe(path).fps
    wanted = {round((begin_s + time) * fps): time for time in reversed(times)}
    found: Pictures = {}
    for t, frame in enumerate(iterate(path, stop=begin_s + times[-1] + 1 / fps)):
        if t in wanted:
            found[wanted[t]] = resize(frame, SIZE)
    if len(found) < len(times):
        raise UserError(f"{path}: {len(found)} of {len(times)} moments are there; give times that are further apart")
    return found


def pairwise(videos: Sequence[Pictures], time_s: float) -> float:
    """Mean ST-LPIPS between every two videos at a moment."""
    maps = [stlpips_maps(video[time_s]) for video in videos]
    return float(np.mean([stlpips(a, b) for a, b in combinations(maps, 2)]))


def diversity(cases: Sequence[Case], times: Sequence[float]) -> list[Row]:
    """A row a moment."""
    rows = []
    for time in times:
        made = np.array([pairwise(list(case.futures.values()), time) for case in cases])
        real = np.array([pairwise(list(case.real.values()), time) for case in cases])
        rows.append(Row(time, made.mean(), _error(made), real.mean(), _error(real)))
    return rows


def _error(values: np.ndarray) -> float:
    """Standard error of the mean; nan for one value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def table(rows: Sequence[Row], cases: Sequence[Case]) -> str:
    """For people."""
    count = sum(len(case.futures) for case in cases)
    lines = [f"mean pairwise ST-LPIPS of {count} futures of {len(cases)} starts, and of as many real drives",
             "     s   futures            real   ratio"]  # fmt: skip
    for row in rows:
        parts = (_with_error(row.futures, row.futures_error), _with_error(row.real, row.real_error))
        lines.append(f"{row.time_s:6.2f}{parts[0]:>16}{parts[1]:>16}{row.ratio:8.2f}")
    return "\n".join(lines)


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")


def _write(out: Path, config: DiversityConfig, cases: Sequence[Case], rows: Sequence[Row], command: str) -> None:
    figures = [{**asdict(row), "ratio": row.ratio} for row in rows]
    starts = [{"name": case.name, "futures": list(case.futures), "real": list(case.real)} for case in cases]
    content = {"schema": 1, "drivesim": __version__, "command": command, "options": asdict(config),
               "metric": "mean pairwise ST-LPIPS", "starts": starts, "rows": figures}  # fmt: skip
    save_json(out / "diversity.json", content)
    save_rows(out / "diversity.csv", figures)
    with atomic_path(out / "diversity.png") as temporary:
        _chart(rows).savefig(temporary, dpi=120)


def _chart(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    times = [row.time_s for row in rows]
    for name, values, errors in (
        ("futures of one start", [row.futures for row in rows], [row.futures_error for row in rows]),
        ("real drives from like scenes", [row.real for row in rows], [row.real_error for row in rows]),
    ):
        axes.errorbar(times, values, np.nan_to_num(errors), marker="o", capsize=3, label=name)
    axes.set(xlabel="seconds after the start", ylabel="mean pairwise ST-LPIPS", ylim=(0, None))
    axes.legend()
    return figure


def _frames(case: Case, times: Sequence[float]) -> np.ndarray:
    """One row a future and a real continuation, one column a moment."""
    videos = [*list(case.futures.items())[:SHOWN], *list(case.real.items())[:SHOWN]]
    captions = [f"{name}   {time:g} s" for name, _ in videos for time in times]
    return contact_sheet([pictures[time] for _, pictures in videos for time in times], len(times), captions)


if __name__ == "__main__":
    main(sys.argv[1:])
