"""`drivesim scenario VERB`: what a scenario will ask for, before a model is asked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drivesim.clip import NO_BOX, NO_WEATHER
from drivesim.config import option, parse
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError
from drivesim.files import atomic_path, check_output
from drivesim.generation.draw import contact_sheet, save_png
from drivesim.generation.layout_file import SUFFIXES, save_layout
from drivesim.generation.writer import VideoWriter
from drivesim.scenarios.build import Built, build
from drivesim.scenarios.draw import draw_frame
from drivesim.scenarios.files import LIBRARY, library, read_scenario
from drivesim.scenarios.schema import json_schema
from drivesim.verbs import Verbs, run_verb

SCENARIO = "a .yaml file, a name that `list` shows, a layout file, or STORE:CLIP[:START_S]"
COLUMNS = ("agent", "track", "class", "priority", "seen", "hidden", "nearest", "tallest")


@dataclass
class DrawConfig:
    """Draw what a scenario asks for: boxes with class and track, labels, and the road from above."""

    layout: str = option(help=f"{SCENARIO}; may be the first word, alone")
    out: str = option(help="a video (.mp4) or a contact sheet (.png)")
    height: int = option(384, "pixels; the width follows from the camera")
    frames: int = option(6, "frames on the sheet")
    columns: int = option(3, "frames a row of the sheet")
    overwrite: bool = option(False, "replace a file that exists")


@dataclass
class CheckConfig:
    """Say what is wrong with a scenario, or who is seen when in it."""

    layout: str = option(help=f"{SCENARIO}; may be the first word, alone")
    slots: int | None = option(None, "boxes a frame that the model takes: say which would be left out")


@dataclass
class WriteConfig:
    """Write a scenario as a layout file (docs/layout_file.md), every number worked out."""

    layout: str = option(help=f"{SCENARIO}; may be the first word, alone")
    out: str = option(help="a layout file: .json or .csv")
    overwrite: bool = option(False, "replace a file that exists")


@dataclass
class ListConfig:
    """List scenarios, one a line."""

    folder: str = option(str(LIBRARY), "where they lie; the library if not given")


@dataclass
class SchemaConfig:
    """Print the JSON Schema of scenario files, for editors and for programs that write them."""

    out: str = option("", "file to write instead, .json")
    overwrite: bool = option(False, "replace a file that exists")


def main(argv: Sequence[str]) -> None:
    """Run the verb that `argv` begins with. raises UserError for an unknown one, and whatever the verb raises"""
    named = [*argv[:1], *_named(argv[1:])]
    run_verb("drivesim scenario", "[FILE|NAME]", VERBS, named, " Scenarios are in docs/scenarios.md.")


def _named(words: Sequence[str]) -> list[str]:
    """The first word alone is the layout. (An option cannot be called as a folder of conf/ is.)"""
    alone = words and "=" not in words[0] and not words[0].startswith("-")
    return [f"layout={words[0]}", *words[1:]] if alone else list(words)


def draw(argv: Sequence[str]) -> None:
    config = parse(DrawConfig, argv, "drivesim scenario draw")
    suffix = Path(config.out).suffix.lower()
    if suffix not in (".mp4", ".png"):
        raise UserError(f"out={config.out}, expected a name that ends in .mp4 or .png")
    out = check_output(config.out, suffix, config.overwrite)
    if not 64 <= config.height <= 2160 or min(config.frames, config.columns) < 1:
        found = f"height={config.height}, frames={config.frames}, columns={config.columns}"
        raise UserError(f"{found}; expected 64 to 2160, and at least 1 of both")
    built = build(config.layout)
    camera, count = built.scene.camera, len(built.scene.times_s)
    height = config.height // 2 * 2
    width = round(height * camera.width / camera.height / 2) * 2
    if suffix == ".mp4":
        writer = VideoWriter(out, 1 / built.scene.frame_s, height, width, overwrite=True, keep_partial=False)
        with writer, tqdm(range(count), "draw", unit="frame") as bar:
            for frame in bar:
                writer.write(draw_frame(built, frame, height, width))
    else:
        chosen = np.linspace(0, count - 1, min(config.frames, count)).round().astype(int).tolist()
        captions = [built.scene.when(frame) for frame in chosen]
        pictures = [draw_frame(built, frame, height, width) for frame in chosen]
        save_png(contact_sheet(pictures, config.columns, captions), out)
    print(f"{out}: {headline(built)}")


def check(argv: Sequence[str]) -> None:
    config = parse(CheckConfig, argv, "drivesim scenario check")
    if config.slots is not None and config.slots < 1:
        raise UserError(f"slots={config.slots}, expected 1 or more")
    built = build(config.layout)
    print(headline(built))
    if built.scene.actors:
        rows = [COLUMNS, *(_row(built, i) for i in range(len(built.scene.actors)))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))
    if config.slots is not None:
        print(built.timed().left_out(config.slots))


def write(argv: Sequence[str]) -> None:
    config = parse(WriteConfig, argv, "drivesim scenario write")
    suffix = Path(config.out).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"out={config.out}, expected a name that ends in {' or '.join(SUFFIXES)}")
    out = check_output(config.out, suffix, config.overwrite)
    built = build(config.layout)
    if not np.allclose(np.diff(built.scene.times_s), built.scene.frame_s) or abs(built.scene.times_s[0]) > 1e-6:
        raise UserError(f"{built.scene.source}: its frames lie at uneven times; start at one of the base's frames")
    save_layout(built.layout, 1 / built.scene.frame_s, out)
    print(f"{out}: {headline(built)}")


def list_(argv: Sequence[str]) -> None:
    config = parse(ListConfig, argv, "drivesim scenario list")
    found = {name: read_scenario(path, f"scenario {path}") for name, path in library(config.folder).items()}
    widest = max(map(len, found))
    for name, scenario in found.items():
        length = "" if scenario.seconds is None else f"{scenario.seconds:g} s"
        count = len(scenario.agents)
        print(f"{name:<{widest}}  {length:>5}  {count:>2} {'agent ' if count == 1 else 'agents'}  {scenario.title}")


def schema(argv: Sequence[str]) -> None:
    config = parse(SchemaConfig, argv, "drivesim scenario schema")
    text = json.dumps(json_schema(), indent=2) + "\n"
    if not config.out:
        print(text, end="")
        return
    out = check_output(config.out, ".json", config.overwrite)
    with atomic_path(out) as temporary:
        temporary.write_text(text)
    print(out)


def headline(built: Built) -> str:
    """One line: title, length, boxes, labels at the beginning and at the end."""
    scene, layout = built.scene, built.layout
    boxes = int((layout.classes != NO_BOX).sum(-1).max())
    words = [f"{scene.seconds:.2f} s", f"{len(scene.times_s)} frames", f"at most {boxes} boxes a frame"]
    words += [f"night {_change(layout.night, '.2f')}", f"vehicles {_change(layout.crowdedness, '.0f')}"]
    weather = ["unknown" if w == NO_WEATHER else WEATHERS[w] for w in layout.weather[[0, -1]].tolist()]
    words.append(f"weather {' to '.join(dict.fromkeys(weather))}")
    words.append(f"speed {_change(layout.speed, '.1f')} m/s")
    return f"{scene.source}: {scene.title + ': ' if scene.title else ''}{', '.join(words)}"


def _change(values, form: str) -> str:
    """The first and the last of some numbers."""
    told = ["unknown" if np.isnan(value) else format(value, form) for value in values[[0, -1]].tolist()]
    return " to ".join(dict.fromkeys(told))


def _row(built: Built, i: int) -> tuple[str, ...]:
    """Who, and when it is seen: from its first to its last frame, of which it may be hidden in some."""
    scene, sight, actor = built.scene, built.sight, built.scene.actors[i]
    shown = np.flatnonzero(sight.shown[i])
    who = (actor.name or "(base)", str(actor.track), actor.kind, f"{actor.priority:g}")
    hidden = f"{int((sight.boxed[i] & ~sight.shown[i]).sum())} frames"
    if not len(shown):
        return (*who, "never", hidden, "", "")
    near = np.nanmin(sight.depth[i, shown])
    tallest = (sight.boxes[i, shown, 3] - sight.boxes[i, shown, 1]).max()
    seen = f"{max(0.0, scene.times_s[shown[0]]):.1f}-{scene.times_s[shown[-1]] + scene.frame_s:.1f} s"
    return (*who, seen, hidden, f"{near:.1f} m" if np.isfinite(near) else "", f"{tallest:.0%} of the picture")


VERBS: Verbs = {
    "draw": (draw, "the layout as a video, or a sheet of frames, without any model"),
    "check": (check, "what is wrong, or a table of who is seen when"),
    "list": (list_, "the library, or the scenarios of a folder"),
    "write": (write, "the layout as a .json or .csv layout file"),
    "schema": (schema, "the JSON Schema of scenario files"),
}
