"""Many futures of one start: continuations by other noise, under other boxes or along other ways, and all in a mosaic.

One is made after the other, each as `drivesim generate` would make it alone, so that whatever holds of a video, its
memory and what a killed run leaves of it, holds of every future too. One window of keyframes of four futures in one
call of the network took a CPU four times as long as that of one: batches of them gain nothing there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from drivesim import __version__
from drivesim.errors import UserError
from drivesim.files import atomic_path, check_folder, refuse_existing
from drivesim.generation.generate import GenerateConfig, beside, check, load_pipeline, make
from drivesim.generation.mosaic import write_mosaic
from drivesim.generation.start import load_start
from drivesim.machine import return_freed_memory

PLAN = "futures.json"
MOST = 64  # futures; more tiles on a screen show nothing
VARIED = {"futures_layouts": "layout", "futures_turns": "turn", "futures_speeds": "speed"}


@dataclass(frozen=True)
class Future:
    """One continuation: the options that make it, and what sets it apart."""

    config: GenerateConfig
    caption: str

    @property
    def path(self) -> Path:
        return Path(self.config.out)

    def finished(self) -> bool:
        """Whether a run that was stopped later has made it whole."""
        record = beside(self.path, ".json")
        if not self.path.exists() or not record.exists():
            return False
        made = json.loads(record.read_text())
        return made["complete"] and _same(made["options"], asdict(self.config))


def generate_futures(config: GenerateConfig) -> None:
    """Check every future, make those that are missing, then the mosaic.

    raises  UserError, before anything is made, for a mistake in any of them
    """
    folder, mosaic = places(Path(config.out))
    futures = plan(config, folder)
    refuse_existing(mosaic, config.overwrite)
    begin(config, folder, futures)
    # What lies in the folder is of this very plan by now, or is to be replaced.
    layouts = [check(replace(future.config, overwrite=True)) for future in futures]
    _write_plan(config, folder, futures)
    missing = [(f, timed) for f, timed in zip(futures, layouts, strict=True) if config.overwrite or not f.finished()]
    return_freed_memory()
    if missing:
        pipeline = load_pipeline(config)
        start = load_start(config.start, pipeline.height, pipeline.width, pipeline.key_fps, config.start_time)
        for i, (future, timed) in enumerate(missing, len(futures) - len(missing) + 1):
            print(f"future {i} of {len(futures)}: {future.caption}")
            make(replace(future.config, overwrite=future.path.exists()), pipeline, start, timed)
    captions = [future.caption for future in futures]
    write_mosaic([future.path for future in futures], captions, mosaic, config.overwrite, together(config))
    print(f"{mosaic}: {len(futures)} futures side by side; each by itself in {folder}")


def places(out: Path) -> tuple[Path, Path]:
    """The folder of the futures and the mosaic: x.mp4 -> x, x.mp4; else it names the folder, with the mosaic in it."""
    return (out.with_suffix(""), out) if out.suffix.lower() == ".mp4" else (out, out / "mosaic.mp4")


def plan(config: GenerateConfig, folder: Path) -> list[Future]:
    """The futures that are asked for. What varies goes from one to the next; only after a whole round the seed moves
    on, so that futures of a round differ by nothing else.

    raises  UserError for lists of other lengths than each other, or a number of futures that is no multiple of them
    """
    varied = {option: getattr(config, option) for option in VARIED if getattr(config, option)}
    for option in varied:
        single = VARIED[option]
        if getattr(config, single) != getattr(GenerateConfig, single):
            raise UserError(f"{single}={getattr(config, single)} and {option} are both given; leave one out")
    lengths = {option: len(values) for option, values in varied.items()}
    told = ", ".join(f"{option} has {length}" for option, length in lengths.items())
    if len(set(lengths.values())) > 1:
        raise UserError(f"{told}; futures differ in all of them at once, so give as many of each")
    round_of = together(config)
    count = round_of if config.futures is None else config.futures
    if not 1 <= count <= MOST:
        raise UserError(f"futures={count}, expected 1 to {MOST}")
    if count % round_of:
        raise UserError(f"futures={count}, but {told}; give a multiple of {round_of}, or leave futures out")
    return [_future(config, folder, varied, i, round_of, count) for i in range(count)]


def together(config: GenerateConfig) -> int:
    """How many futures share a seed: as many as what varies has values."""
    return max(1, *(len(getattr(config, option)) for option in VARIED))


def _future(
    config: GenerateConfig, folder: Path, varied: dict[str, Sequence], i: int, round_of: int, count: int
) -> Future:
    seed = config.seed + i // round_of
    changes: dict[str, Any] = {VARIED[option]: values[i % round_of] for option, values in varied.items()}
    name = f"future_{i:0{len(str(count - 1))}d}.mp4"
    alone: dict[str, Any] = {"futures": None, **{option: [] for option in VARIED}}
    words = {
        "layout": lambda spec: spec if ":" in spec else Path(spec).stem,
        "turn": lambda degrees: f"turn {degrees:+g} deg/s",
        "speed": lambda mps: f"{mps:g} m/s",
    }
    caption = ", ".join([*(words[what](value) for what, value in changes.items()), f"seed {seed}"])
    return Future(replace(config, **alone, **changes, seed=seed, out=str(folder / name)), caption)


def begin(config: GenerateConfig, folder: Path, futures: Sequence[Future]) -> None:
    """See that the folder is free, or holds what an earlier run made of the same plan.

    raises  UserError if it holds anything else
    """
    record = folder / PLAN
    if record.exists() and not config.overwrite:
        try:
            known = json.loads(record.read_text())["options"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{record} is not readable; choose another out or add overwrite=true") from error
        if not _same(known, asdict(config)):
            raise UserError(f"{folder} holds futures of other options; choose another out or add overwrite=true")
        return
    check_folder(folder, PLAN, config.overwrite)


def _same(a: dict, b: dict) -> bool:
    """Whether two sets of options make the same video."""
    return {**a, "overwrite": None} == {**b, "overwrite": None}


def _write_plan(config: GenerateConfig, folder: Path, futures: Sequence[Future]) -> None:
    rows = [{"file": f.path.name, "caption": f.caption, "seed": f.config.seed, "layout": f.config.layout,
             "turn": f.config.turn, "speed": f.config.speed} for f in futures]  # fmt: skip
    with atomic_path(folder / PLAN) as temporary:
        content = {"schema": 1, "drivesim": __version__, "options": asdict(config), "futures": rows}
        temporary.write_text(json.dumps(content, indent=2) + "\n")
