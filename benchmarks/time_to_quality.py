"""How soon our temporal layers are as good as the published video networks: `python -m benchmarks.time_to_quality`."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from benchmarks import start
from benchmarks.measure import Setting, best_setting
from benchmarks.race.curves import draw
from benchmarks.race.denoisers import NAMES, Entry, entries, parameters
from benchmarks.race.field import Field
from benchmarks.race.judge import Clip, Judge, held_out_drives
from benchmarks.race.run import Run, Trial, in_turns
from benchmarks.race.verdict import table, verdict
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.generation.draw import save_png
from drivesim.machine import describe, probe
from drivesim.training.experiment import ExperimentConfig
from drivesim.training.train import quiet


@dataclass
class TimeToQuality:
    """Train our denoiser and the architectures of Stable Video Diffusion, AnimateDiff and ModelScope to continue
    keyframes, in turns within one process, and compare held-out loss and clip distances at equal time.

    All see the same latents, windows, noise and conditions, have the same number of parameters within 10 %, our
    preconditioning and our closed-form prior; each is first trained on single frames for `image_minutes`, which do
    not count, and runs in its own fastest precision, memory format and attention, at its own best learning rate. Ours
    and AnimateDiff's then train their temporal layers alone, as published, the others all weights. Killed, the same
    command goes on.
    """

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"experiment": "town"}])
    bundle: str = option(help="a bundle with the autoencoder of all contenders")
    data: str = option(help="the clip store to train on; its held-out split is what the loss is of")
    real: str = option("", "store of other drives to continue; empty: the held-out split of data")
    out: str = option("runs/time_to_quality", "folder for results.json, curves.png, samples, and what a resume needs")
    minutes: float = option(30.0, "training of each contender")
    image_minutes: float = option(5.0, "training of each on single frames before")
    turn_seconds: float = option(
        60.0, "how long one trains before the next one's turn; the loss is measured after each"
    )
    sample_minutes: list[float] = option([2, 5, 10, 15, 20, 25, 30], "when continuations are judged, beside the end")
    windows: int = option(24, "held-out windows to continue")
    held_out: int = option(32, "windows that the loss is of")
    rates: list[float] = option([3e-4, 1e-3], "learning rates tried for each contender")
    rate_seconds: float = option(60.0, "how long each of them is tried")
    strength: float = option(
        1.0,
        "of sampling, of those whose known frames are carried: ours, and peers with context=carried; below 1 from the "
        "carried start frame, see sampler.keyframe_strength",
    )
    speed_steps: list[int] = option([2, 4, 6, 10, 20], "sampling steps at which speed and distance are measured")
    contenders: list[str] = option(list(NAMES), "who takes part; ours has to")
    frozen: list[str] = option([NAMES[0], "animatediff"], "whose image network is frozen after the image stage")
    context: str = option("published", "how peers get the known frames: as published, or carried along the mean flow "
                          "of driving as ours does")  # fmt: skip
    attention: str = option("ours", "of the peers: at the resolutions where ours has it, or as published")
    threads: int = option(0, "CPU threads; 0: what the probe finds fastest")
    seed: int = option(0, "seed of weights, windows and noise")
    config: ExperimentConfig = option(ExperimentConfig(), "the experiment")


def main(argv: Sequence[str]) -> None:
    options = parse(TimeToQuality, argv, "python -m benchmarks.time_to_quality")
    check(options)
    quiet()
    diffusers.utils.logging.set_verbosity_error()  # it warns of settings that nobody chose
    print(f"time_to_quality: {describe()}", file=sys.stderr)
    torch.set_num_threads(options.threads or probe().threads)
    print(table(Race(options).run()))


def check(options: TimeToQuality) -> None:
    """raises UserError for options that make no sense"""
    if unknown := [name for name in (*options.contenders, *options.frozen) if name not in NAMES]:
        raise UserError(f"unknown contender {unknown[0]!r}; choose from {', '.join(NAMES)}")
    if NAMES[0] not in options.contenders or len(options.contenders) < 2:
        raise UserError(f"contenders is {options.contenders}; expected {NAMES[0]} and a peer at least")
    for name, allowed in (("context", ("published", "carried")), ("attention", ("ours", "published"))):
        if getattr(options, name) not in allowed:
            raise UserError(f"{name} is {getattr(options, name)!r}, expected {' or '.join(allowed)}")
    for name in ("minutes", "image_minutes", "turn_seconds", "rate_seconds"):
        if getattr(options, name) <= 0:
            raise UserError(f"{name} is {getattr(options, name):g}, expected more than 0")
    if not 0 < options.strength <= 1:
        raise UserError(f"strength is {options.strength:g}, expected more than 0, up to 1")
    for name in ("rates", "speed_steps"):
        if not getattr(options, name) or min(getattr(options, name)) <= 0:
            raise UserError(f"{name} is {getattr(options, name)}, expected numbers above 0")
    if not options.config.denoiser.token_dim:
        raise UserError("config.denoiser.token_dim is 0, but the peers need tokens to attend to; set it above 0")


class Race:
    """The whole of it, phase by phase; every phase leaves a file and is skipped when that is there."""

    def __init__(self, options: TimeToQuality) -> None:
        self.options, self.out = options, Path(options.out)
        _same_options(options, self.out)
        self.field = Field(options.bundle, options.data, options.config, options.held_out, options.seed)
        experiment = self.field.experiment
        channels = experiment.denoiser.channels + experiment.predict.context_channels
        found = entries(
            options.contenders, experiment.denoiser, experiment.temporal, experiment.predict.frames, channels,
            options.context == "carried", options.attention, options.seed,
        )  # fmt: skip
        self.entries = {entry.name: entry for entry in found}
        split = None if options.real else "val"
        drives = held_out_drives(ClipStore(options.real or options.data), split, options.windows, experiment)
        self.judge = Judge(drives, self.field.autoencoder, experiment, experiment.sampler)

    def run(self) -> dict[str, Any]:
        if not all((self.out / name / "start.safetensors").exists() for name in self.entries):
            self._train_images()
        runs = {name: self._choose(entry, "video", self._video) for name, entry in self.entries.items()}
        self._train("video", runs, self.options.minutes, self._judge)
        return self._report(runs)

    def _train_images(self) -> None:
        """The image networks that the video networks start from."""
        runs = {name: self._choose(entry, "image", self._image) for name, entry in self.entries.items()}
        self._train("image", runs, self.options.image_minutes, lambda name, run: None)
        for name, run in runs.items():
            with run.averaged(), atomic_path(self.out / name / "start.safetensors") as path:
                save_file({k: v.contiguous() for k, v in run.module.denoiser.state_dict().items()}, path)

    def _image(self, entry: Entry, rate: float) -> Run:
        module = self.field.image(self.field.told(entry.build()), rate)
        return Run(module, self.field.frames, Setting())

    def _video(self, entry: Entry, rate: float) -> Run:
        denoiser = self.field.told(entry.build())
        denoiser.load_state_dict(load_file(self.out / entry.name / "start.safetensors"))
        module = self.field.keyframes(denoiser, rate, freeze=entry.name in self.options.frozen)
        return Run(module, self.field.windows, Setting())

    def _choose(self, entry: Entry, stage: str, make: Callable[[Entry, float], Run]) -> Run:
        """A run of a contender in its fastest setting and, for video, at its best learning rate, both of which are
        measured once and kept."""
        path = self.out / entry.name / f"{stage}.json"
        if not path.exists():
            print(f"time_to_quality: settings of {entry.name}, {stage}", file=sys.stderr)
            rates = self.options.rates if stage == "video" else [self.options.config.stages.image.lr]
            setting = best_setting(Trial(make(entry, rates[0])), [probe().bf16, not probe().bf16])
            losses = {rate: self._tried(make(entry, rate), setting) for rate in rates} if len(rates) > 1 else {}
            chosen = min(losses, key=lambda rate: losses[rate], default=rates[0])
            with atomic_path(path) as temporary:
                content = {"setting": asdict(setting), "rate": chosen, "tried": list(losses.items())}
                temporary.write_text(json.dumps(content))
        kept = json.loads(path.read_text())
        run = make(entry, kept["rate"])
        run.use(Setting(**kept["setting"]))
        return run

    def _tried(self, run: Run, setting: Setting) -> float:
        run.use(setting)
        run.turn(self.options.rate_seconds)
        loss = run.record.losses[-1][1]
        return loss if math.isfinite(loss) else math.inf

    def _train(self, stage: str, runs: dict[str, Run], minutes: float, after: Callable[[str, Run], None]) -> None:
        turns = max(round(60 * minutes / self.options.turn_seconds), 1)
        seconds = 60 * minutes / turns
        progress = in_turns(runs, self.out, stage, turns, seconds, after)
        _, done = next(progress)
        with tqdm(total=turns * len(runs), initial=done, desc=stage, unit="turn", file=sys.stderr) as bar:
            for name, done in progress:
                bar.set_postfix_str(f"next {name}", refresh=False)
                bar.update(done - bar.n)

    def _judge(self, name: str, run: Run) -> None:
        """Judge continuations where a run has just passed one of the times, or is at its end."""
        before, now = run.record.losses[-2][0] / 60, run.record.losses[-1][0] / 60
        last = len(run.record.losses) > max(round(60 * self.options.minutes / self.options.turn_seconds), 1)
        if not last and not any(before < minute <= now for minute in self.options.sample_minutes):
            return
        clips, _ = self._continued(name, run, self.judge.sampler.keyframe_steps)
        run.record.distances.append((run.record.seconds, self.judge.distances(clips)))

    def _continued(self, name: str, run: Run, steps: int) -> tuple[list[Clip], float]:
        carried = name == NAMES[0] or self.options.context == "carried"
        strength = self.options.strength if carried else 1.0
        with run.averaged(), run.setting.active():
            return self.judge.continuations(run.module.denoiser, steps, strength)

    def _report(self, runs: dict[str, Run]) -> dict[str, Any]:
        speeds = self._speeds(runs)
        ceiling = self.judge.ceiling()
        records = {name: run.record for name, run in runs.items()}
        contenders = {}
        for name, run in runs.items():
            denoiser = run.module.denoiser
            tried = json.loads((self.out / name / "video.json").read_text())["tried"]
            contenders[name] = {
                "widths": self.entries[name].widths, "parameters_m": parameters(denoiser) / 1e6,
                "trained_m": sum(p.numel() for p in run.trained.values()) / 1e6, "setting": str(run.setting),
                "rate": run.module.stage.lr, "rates_tried": tried, "record": asdict(run.record),
            }  # fmt: skip
            with run.averaged():
                save_png(run.module.sample_grid(), self.out / "samples" / f"{name}.png")
        report = {
            "machine": describe(), "threads": torch.get_num_threads(),
            "clock": "CPU" if torch.get_num_threads() == 1 else "wall", "options": _settings(self.options),
            "windows": len(self.judge.drives), "autoencoder": ceiling, "contenders": contenders, "speeds": speeds,
            "verdict": verdict(records, speeds),
        }  # fmt: skip
        with atomic_path(self.out / "results.json") as path:
            path.write_text(json.dumps(report, indent=1))
        draw(records, speeds, ceiling, self.out / "curves.png")
        return report

    def _speeds(self, runs: dict[str, Run]) -> dict[str, list[dict[str, float]]]:
        """Speed and distances of each contender at each number of steps, in turns."""
        found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        total = len(self.options.speed_steps) * len(runs)
        bar = tqdm(total=total, desc="speed", unit="set", file=sys.stderr)
        for steps in self.options.speed_steps:
            for name, run in runs.items():
                clips, taken = self._continued(name, run, steps)
                speed = self.judge.seconds / taken
                found[name].append({"steps": steps, "speed": speed, **self.judge.distances(clips)})
                bar.update()
        bar.close()
        return found


def _settings(options: TimeToQuality) -> dict[str, Any]:
    return {key: value for key, value in asdict(replace(options)).items() if key != "defaults"}


def _same_options(options: TimeToQuality, out: Path) -> None:
    """Note the options of a race, or raise UserError where an earlier one in the same folder had others."""
    path, now = out / "options.json", json.loads(json.dumps(_settings(options)))
    if path.exists():
        then = json.loads(path.read_text())
        if changed := [
            key for key in now if then.get(key) != now[key] and key not in ("out", "threads", "speed_steps")
        ]:
            raise UserError(f"{out} holds a race with other options ({', '.join(changed)}); choose another out=")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(now, indent=1))


if __name__ == "__main__":
    start(main, "benchmarks.time_to_quality")
