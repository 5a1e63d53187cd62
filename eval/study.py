"""A bundle judged whole: continuations beside baselines, the decoder and the upsampler by themselves, how training
went, on one page. What `drivesim evaluate bundle=...` runs."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from drivesim.bundle import STAGES, Bundle
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.errors import UserError
from drivesim.generation.pipeline import DrivingPipeline
from eval import baselines, summary
from eval.evaluate import evaluate
from eval.layout import finder_for
from eval.measure import Networks, Options
from eval.media import data_uri, line_chart, picture
from eval.report import Cell, Figure, Section, Table
from eval.scores import Scores

LEAD = (
    "A video latent diffusion model, trained from scratch, continues held-out drives after one start frame, steered by "
    "each frame's boxes. Its videos stand beside what really happened and beside simpler methods."
)


@dataclass
class Study:
    """What to judge, and with what.

    data   the clip store that was trained on: its held-out split serves the decoder, the upsampler and the car finder
    real   held-out clips to continue, of which `split`, or all
    floor  other real clips for the real-versus-real floor, or None
    video  a generated mp4 to show at full size, or None
    """

    bundle: Path
    data: ClipStore
    real: ClipStore
    floor: Path | None
    out: Path
    clips: int
    seed: int
    finder_seconds: float
    split: str | None = None
    seeds: int = 1
    video: Path | None = None

    def run(self, options: Options, networks: Networks, command: str) -> list[Scores]:
        """Make the sets, measure them, write report.html with results.json and results.csv into `out`."""
        sets = self.out / "sets"
        pipeline = DrivingPipeline.from_pretrained(self.bundle, tuned_decoder=False, upsampler=False)
        made = baselines.continuation_sets(
            pipeline,
            self.real,
            sets / "continuations",
            self.clips,
            options.clip_frames,
            self.seed,
            self.split,
            self.seeds,
        )
        sections = [*self._extras(sets, options), *training_sections(self.bundle)]
        if self.video is not None:
            sections.insert(0, _full_size(self.video))
        if self.real.index["has_boxes"].any() and self.data.index["has_boxes"].any():
            finder = finder_for(self.data, self.out / "car_finder.safetensors", self.finder_seconds, self.seed)
            networks = replace(networks, finder=finder, layouts=self.real)
        return evaluate(
            made.pop("real"),
            made,
            self.out,
            replace(options, crops=False),  # crops of native size say nothing more at the working resolution
            floor=self._floor(pipeline, options.clip_frames),
            networks=networks,
            extra_sections=sections,
            title="A drive that never was",
            lead=LEAD,
            command=command,
        )

    def _floor(self, pipeline: DrivingPipeline, frames: int) -> Path | None:
        """The floor clips at the size, rate and length of the continuations."""
        if self.floor is None:
            return None
        out = self.out / "sets" / "floor"
        store = ClipStore(self.floor)
        fps = pipeline.key_fps * pipeline.interpolate.factor
        for name in baselines.long_enough(store, frames / fps)[: self.clips]:
            path = out / f"{name}.mkv"
            if not path.exists():
                case = baselines.load_case(pipeline, store, name, fps, frames, 0)
                baselines.write_lossless(path, iter(case.video), fps)
        return out

    def _extras(self, sets: Path, options: Options) -> list[Section]:
        """The decoder and the upsampler by themselves, where the data has full-rate, full-size held-out clips."""
        sections = []
        for maker in (self._decoder, self._upsampler):
            try:
                sections.append(maker(sets, options))
            except UserError as error:
                sections.append(Section("Not judged", [str(error)], folded=True))
        return sections

    def _decoder(self, sets: Path, options: Options) -> Section:
        tuned = DrivingPipeline.from_pretrained(self.bundle, upsampler=False)
        untuned = DrivingPipeline.from_pretrained(self.bundle, tuned_decoder=False, upsampler=False)
        made = baselines.decoder_sets(tuned, untuned, self.data, sets / "decoder", min(self.clips, 8))
        text = (
            "Real video through the autoencoder at the full frame rate. psnr is the reconstruction error; "
            "flicker_dis should be that of the real videos."
        )
        return self._judged("The temporally tuned decoder", text, made, replace(options, crops=False, clip_frames=16))

    def _upsampler(self, sets: Path, options: Options) -> Section:
        pipeline = DrivingPipeline.from_pretrained(self.bundle)
        made = baselines.upsampler_sets(pipeline, self.data, sets / "upsampler", min(self.clips, 4))
        text = (
            "Full-resolution video from the true low resolution. Crops at native resolution judge fine detail, "
            "which frames shrunk to 224x224 do not show."
        )
        return self._judged("The upsampler against bicubic enlargement", text, made, replace(options, clip_frames=8))

    def _judged(self, title: str, text: str, made: dict[str, Path], options: Options) -> Section:
        folder = self.out / made["real"].parent.name
        real = made.pop("real")
        results = evaluate(real, made, folder, options, title=title, lead=text, command="drivesim evaluate bundle=...")
        section = summary.headline(results, [])
        return replace(section, title=title, text=[text])


def training_sections(bundle_root: Path) -> list[Section]:
    """How long each stage trained, its curves, and the last samples it drew of itself."""
    bundle, rows, figures = Bundle(bundle_root), [], []
    for stage in STAGES:
        record = bundle_root / stage / "training.json"
        if not bundle.has(stage) or not record.exists():
            continue
        facts = json.loads(record.read_text())
        rows.append(
            [
                Cell(stage),
                Cell(f"{facts['steps']}"),
                Cell(f"{facts['train_seconds'] / 60:.1f} min"),
                Cell(f"{facts['parameters_trained'] / 1e6:.1f} M"),
                Cell(f"{facts['validation_loss']:.4f}"),
            ]
        )
        run = bundle_root.parent / stage
        if curve := _loss_curve(run / "logs" / "metrics.csv", stage):
            figures.append(curve)
        if grids := sorted((run / "samples").glob("*.png")):
            figures.append(
                Figure(picture(_shrunk(grids[-1]), f"samples of stage {stage}"), f"{stage}: its last samples", True)
            )
    table = Table(["stage", "steps", "time", "parameters trained", "held-out loss"], rows)
    return [Section("How it was trained", tables=[table], figures=figures, folded=True)] if rows else []


def _loss_curve(path: Path, stage: str) -> Figure | None:
    """The training loss, smoothed over a twentieth of the run."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        points = [(float(row["step"]), float(row["loss"])) for row in csv.DictReader(file) if row.get("loss")]
    if len(points) < 4:
        return None
    steps, losses = np.array(points).T
    width = max(len(losses) // 20, 1)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    series = {stage: list(zip(steps[width - 1 :].tolist(), smooth.tolist(), strict=True))}
    return Figure(line_chart(series, "step", "loss"), f"{stage}: training loss")


def _shrunk(path: Path, width: int = 1200) -> np.ndarray:
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    if image.shape[1] <= width:
        return image
    return cv2.resize(image, (width, round(image.shape[0] * width / image.shape[1])), interpolation=cv2.INTER_AREA)


def _full_size(video: Path) -> Section:
    """The generated video as it is, and frames of it."""
    frames: Sequence[np.ndarray] = list(iterate(video, fps=1.0))[:6]
    tag = (
        f'<video controls loop muted playsinline style="width:100%" src="{data_uri(video.read_bytes(), "video/mp4")}">'
        "</video>"
    )
    figures = [Figure(picture(_small(frame), f"second {i}"), f"second {i}") for i, frame in enumerate(frames)]
    height, width = frames[0].shape[:2]
    return Section(
        "The whole cascade",
        [f"{video.name}: {width}x{height}, keyframes, two interpolations, tuned decoder, diffusion upsampler."],
        html=tag,
        figures=figures,
    )


def _small(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(frame, (512, round(512 * frame.shape[0] / frame.shape[1])), interpolation=cv2.INTER_AREA)
