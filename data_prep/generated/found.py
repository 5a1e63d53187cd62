"""Generated videos with what lies beside them: which are there, what steered them, what they come from."""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.found import find
from data_prep.naming import printable, unit_names
from data_prep.source import Refused, Unit
from data_prep.videos import route_of
from drivesim.clip import Layout
from drivesim.data.video import count_frames, iterate, probe
from drivesim.errors import UserError
from drivesim.generation.labels import LAYOUT_SUFFIX, RECORD_SUFFIX
from drivesim.generation.layout_file import Lens, read_layout
from drivesim.tags import SYNTHETIC

SUFFIX, UNFINISHED = ".mp4", ".partial.mp4"
ON_TIME_S = 1e-3


@dataclass(frozen=True)
class Generated:
    """A generated video.

    layout      [T] what steered each of its frames
    lens        that its boxes were seen through, None where nobody knows
    provenance  of the record beside it
    options     that it was generated with
    """

    path: Path
    fps: float
    height: int
    width: int
    layout: Layout
    lens: Lens | None
    provenance: dict[str, Any]
    options: dict[str, Any]

    def pictures(self) -> Iterator[np.ndarray]:
        """[H, W, 3] uint8 RGB, as many as `layout` has frames. raises Refused where one of them does not decode"""
        frames = iterate(self.path)
        try:
            yield from frames
        except UserError as error:
            raise Refused(printable(str(error))) from error
        if frames.decoded < self.layout.num_frames:
            raise Refused(f"has {self.layout.num_frames} frames, of which {frames.decoded} decode; generate it again")


def units_of(videos: str, route_by: str) -> tuple[Path, list[Unit]]:
    """The videos that a folder or a pattern names: the folder they are in, and a unit for each, sorted.

    raises  UserError if there are none
    """
    root, paths = _listed(videos)
    paths = [path for path in paths if not path.name.endswith(UNFINISHED)]
    if not paths:
        raise UserError(
            f"videos={videos} names no {SUFFIX} file; give a folder, a file or a pattern such as 'out/*.mp4'"
        )
    names = unit_names([path.with_suffix("") for path in paths])
    return root, [
        Unit(name, route_of(Path(printable(path)), route_by), "generated", path.as_posix())
        for name, path in zip(names, paths, strict=True)
    ]


def _listed(videos: str) -> tuple[Path, Sequence[Path]]:
    """A folder, and the videos below it that were asked for, relative to it."""
    if Path(videos).is_dir():
        return Path(videos), [file.path for file in find(Path(videos), (SUFFIX,)) if not file.problem]
    files = sorted(path for path in map(Path, glob.glob(videos, recursive=True)) if path.suffix.lower() == SUFFIX)
    if Path(videos).is_file() and Path(videos).suffix.lower() == SUFFIX:
        files = [Path(videos)]  # brackets in a name are no pattern
    root = Path(os.path.commonpath([str(file.parent) for file in files] or ["."]))
    return root, [file.relative_to(root) for file in files]


def read_generated(path: Path) -> Generated:
    """Read what lies beside a video. raises Refused if it cannot become labelled clips, with the reason"""
    record = _record(Path(f"{path}{RECORD_SUFFIX}"))
    try:
        info, frames = probe(path), count_frames(path)
        timed = read_layout(str(_there(Path(f"{path}{LAYOUT_SUFFIX}"), "so nobody knows what steered it")))
    except UserError as error:
        raise Refused(printable(str(error))) from error
    assert timed is not None
    if len(timed.times_s) < frames:
        raise Refused(f"has {frames} frames, the layout beside it {len(timed.times_s)}; generate it again")
    if np.abs(timed.times_s[:frames] - np.arange(frames) / info.fps).max() > ON_TIME_S:
        raise Refused(f"has {info.fps:g} frames a second, the layout beside it another rate; generate it again")
    if not timed.layout.known[:frames].any():
        raise Refused("was asked for no boxes (no layout), so it has no labels")
    options, provenance = record["options"], record["provenance"]
    return Generated(path, info.fps, info.height, info.width, timed.layout[:frames], timed.lens, provenance, options)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(_there(path, "so nobody knows what made it").read_text(encoding="utf-8"))
        provenance, options = record["provenance"], record["options"]
        drawn, marked = options["draw_boxes"], provenance[SYNTHETIC] is True
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise Refused(f"{path.name} is no record of `drivesim generate` ({error!r:.60}); generate it again") from error
    if not marked:
        raise Refused(f"{path.name} does not say that a model made it ({SYNTHETIC}: true); generate it again")
    if drawn:
        raise Refused("has the boxes drawn onto its pictures; generate it again without draw_boxes")
    return record


def _there(path: Path, why: str) -> Path:
    if not path.is_file():
        raise Refused(f"has no {path.name} beside it, {why}; `drivesim generate` writes it")
    return path
