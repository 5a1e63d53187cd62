"""The videos of every set and what eval/ sees in them; both are kept, so that what was made once is not made again."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from benchmarks.ablations.rows import MADE, RUNS, Made
from benchmarks.ablations.schedule import experiment_of
from drivesim.bundle import Bundle
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.training.stages import load_denoiser
from eval.baselines import Case, Frames, continued, load_case, long_enough, per_frame, rebuilt, write_sets
from eval.measure import FeatureTable, Measures, Networks, Options, measure
from eval.scores import Score, Scores, score
from eval.videos import VideoSet, open_set

Tables = dict[str, FeatureTable]
REAL = "real_"  # and the kind: the true videos
LEAST = 4  # clips; a standard error over halves needs as many


@dataclass
class Judge:
    """out: folder of the runs, one a seed; store, split: held-out clips at the full rate.

    frames  of the videos of each kind;  window  frames of which clip features are taken
    """

    words: Sequence[str]
    store: ClipStore
    split: str | None
    out: Path
    clips: int
    frames: dict[str, int]
    window: int
    seed: int
    networks: Networks = field(default_factory=Networks)

    def scores(self) -> list[Scores]:
        """Of every set, in the order of MADE, against the true videos of its kind."""
        return [self.look(made)[1] for made in MADE]

    def look(self, made: Made) -> tuple[Tables, Scores]:
        """Features and scores of a set; made and measured if that has not been done."""
        return self._seen(made.name, made.kind, lambda: self.videos(made))

    def truth(self, kind: str) -> Tables:
        return self._seen(REAL + kind, kind, lambda: self._real(kind))[0]

    def videos(self, made: Made) -> VideoSet:
        """The set, written where it is not there yet."""
        pipeline = self._pipeline(made)
        return self._write(made.name, made.kind, pipeline, lambda case: MAKERS[made.how](pipeline, case))

    def _real(self, kind: str) -> VideoSet:
        pipeline = self._pipeline(MADE[0])
        return self._write(REAL + kind, kind, pipeline, lambda case: iter(case.video))

    def _write(self, name: str, kind: str, pipeline: DrivingPipeline, make: Callable[[Case], Frames]) -> VideoSet:
        fps = pipeline.key_fps * pipeline.interpolate.factor if kind == "drive" else pipeline.fps
        cases = (
            load_case(pipeline, self.store, clip, fps, self.frames[kind], i, _size(pipeline, kind))
            for i, clip in enumerate(self.held_out(fps, kind))
        )
        write_sets({name: make}, cases, len(self.held_out(fps, kind)), self.out / "videos", fps)
        return open_set(name, self.out / "videos" / name)

    def held_out(self, fps: float, kind: str) -> list[str]:
        """Clips that are judged by, at the full rate or more. raises UserError if there are too few"""
        rates = self.store.index.fps
        names = [n for n in long_enough(self.store, self.frames[kind] / fps, self.split) if rates[n] >= fps - 1e-3]
        if len(names) < LEAST:
            wanted = f"{self.frames[kind] / fps:.1f} s at {fps:g} frames a second"
            raise UserError(
                f"{self.store.root}: {len(names)} held-out clips of {wanted}, {LEAST} are needed; give real=... with "
                "longer or more ones"
            )
        return names[: self.clips]

    def _pipeline(self, made: Made) -> DrivingPipeline:
        """The model of a set. Drives are decoded by image decoders: there is no other in pixel space."""
        bundle = self.out / made.run / "bundle"
        pipeline = DrivingPipeline.from_pretrained(bundle, tuned_decoder=made.how == "tuned", upsampler=False)
        pipeline.config = experiment_of(self.words, made.sampler or made.run).sampler
        if stage := {"by_picture": "upsample", "by_video": "upsample_temporal"}.get(made.how):
            pipeline.upsampler = load_denoiser(Bundle(bundle), stage)
        return pipeline

    def _seen(self, name: str, kind: str, videos: Callable[[], VideoSet]) -> tuple[Tables, Scores]:
        tables, scores = self.out / "seen" / f"{name}.safetensors", self.out / "seen" / f"{name}.json"
        if not (tables.exists() and scores.exists()):
            fakes = videos()
            truth = None if name.startswith(REAL) else self.truth(kind)
            beside = fakes if truth is None else open_set(REAL + kind, self.out / "videos" / (REAL + kind))
            options = Options(clip_frames=self.window, seed=self.seed, crops=False)
            seen = measure(fakes, beside, options, self.networks)
            real = seen if truth is None else Measures(tables=truth)
            _save_tables(seen.tables, tables)
            with atomic_path(scores) as path:
                path.write_text(json.dumps(asdict(score(name, seen, real, options, distances=truth is not None))))
        return _load_tables(tables), _load_scores(scores)


def _size(pipeline: DrivingPipeline, kind: str) -> tuple[int, int] | None:
    return (pipeline.height, pipeline.width) if kind == "upsampler" else None


def _continued(pipeline: DrivingPipeline, case: Case) -> Frames:
    return continued(pipeline, case, len(case.video))


def _frame_by_frame(pipeline: DrivingPipeline, case: Case) -> Frames:
    """Temporal layers switched off: at alpha = 1 the network is the image network, which knows no frames."""
    return per_frame(pipeline, case, len(case.video))


def _upsampled(pipeline: DrivingPipeline, case: Case) -> Frames:
    size = (pipeline.low_height, pipeline.low_width)
    low: Iterator = (functional.interpolate(frame[None], size, mode="area")[0] for frame in case.video)
    return pipeline.upsampled(low, case.seed)


MAKERS: dict[str, Callable[[DrivingPipeline, Case], Frames]] = {
    "continued": _continued,
    "frame_by_frame": _frame_by_frame,
    "untuned": rebuilt,
    "tuned": rebuilt,
    "by_picture": _upsampled,
    "by_video": _upsampled,
}


def _save_tables(tables: Tables, path: Path) -> None:
    """Rows of every table; which video each is of, by number."""
    content = {}
    for name, table in tables.items():
        numbers = np.unique(table.groups, return_inverse=True)[1]
        content |= {name: table.matrix, f"{name}.video": numbers.astype(np.int64)}
    with atomic_path(path) as temporary:
        save_file(content, temporary)


def _load_tables(path: Path) -> Tables:
    content = load_file(path)
    return {
        name: FeatureTable(list(rows), [str(i) for i in content[f"{name}.video"]], [0.0] * len(rows))
        for name, rows in content.items()
        if not name.endswith(".video")
    }


def _load_scores(path: Path) -> Scores:
    content = json.loads(path.read_text())
    metrics = {key: Score(**value) for key, value in content.pop("metrics").items()}
    return Scores(**content, metrics=metrics)


def training(out: Path) -> dict[str, dict[str, dict]]:
    """Of every run, of every stage of its own: steps, seconds, weights trained, held-out loss."""
    wanted = ("steps", "train_seconds", "parameters_trained", "validation_loss")
    return {
        run.name: {s: {k: Bundle(out / run.name / "bundle").record(s).get(k) for k in wanted} for s in run.trains}
        for run in RUNS
    }
