"""One unit of a preparation: done once, found done afterwards; what cannot be used of it is noted with the reason."""

import json
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from data_prep import sidecar
from data_prep.source import Dropped, Frame, RawClip, Refused, Source, Unit
from data_prep.writer import write_clip, written_from
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.locks import holding

T = TypeVar("T")


@dataclass
class UnitResult:
    """What became of a unit: names of its clips, and what was dropped."""

    clips: list[str]
    dropped: list[Dropped]


class Counter(Protocol):
    """Frames so far: a shared ctypes value, or any object with a `value`. One process alone adds to it."""

    value: int


def do_unit(source: Source, unit: Unit, out: Path, written: Counter) -> UnitResult:
    """Write the clips of one unit, or find that it is done; adds each frame to the counter `written`.

    raises  UserError if the disk is full. Whatever goes wrong in reading the input is dropped with its reason.
    """
    if (done := recorded(unit, out)) is not None:
        return done
    with holding(workers_lock(out), shared=True):
        result = UnitResult([], [])
        try:
            for piece in _guarded(lambda: source.clips(unit)):
                _keep(piece, unit, result, out, written)
        except Refused as reason:
            result.dropped.append(Dropped(unit.name, str(reason)))
        record(unit, result, out)
    return result


def recorded(unit: Unit, out: Path) -> UnitResult | None:
    """What became of a unit that is done; None if it is not, or if its input has changed since."""
    try:
        found = json.loads(record_path(unit, out).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if found["stamp"] != unit.stamp:
        return None
    return UnitResult(found["clips"], [Dropped(**piece) for piece in found["dropped"]])


def record(unit: Unit, result: UnitResult, out: Path) -> None:
    """Note that a unit is done."""
    with atomic_path(record_path(unit, out)) as temporary:
        temporary.write_text(json.dumps(asdict(result) | {"stamp": unit.stamp}))


def quarantine(unit: Unit, reason: str, out: Path) -> UnitResult:
    """Give a unit up: the clips that were finished stay, the rest is dropped for `reason`."""
    parts = sorted((out / "parts").glob("*.index.parquet"))
    clips = [part.name.removesuffix(".index.parquet") for part in parts if written_from(part) == origin(unit)]
    result = UnitResult(clips, [Dropped(unit.name, reason)])
    record(unit, result, out)
    return result


def record_path(unit: Unit, out: Path) -> Path:
    return out / "parts" / f"{unit.name}.unit.json"


def workers_lock(out: Path) -> Path:
    """Held by every process that writes clips: who holds it alone knows that there is none, here or elsewhere."""
    return out / "parts" / ".workers"


def origin(unit: Unit) -> str:
    """What a clip was made from: a clip of the same name made from an older file is not used."""
    return f"{unit.name} {unit.stamp}"


def stamp(path: Path) -> str:
    """Size in bytes and time of change in ns of a file with its sidecar, or of all files of a folder together: "" if
    there is nothing."""
    if path.is_dir():
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    else:
        files = [path, *(path.with_name(path.stem + suffix) for suffix in sidecar.SUFFIXES)]
    found = [os.stat(file) for file in files if file.exists()]
    return f"{len(found)}:{sum(s.st_size for s in found)}:{max(s.st_mtime_ns for s in found)}" if found else ""


def _keep(piece: RawClip | Dropped, unit: Unit, result: UnitResult, out: Path, written: Counter) -> None:
    if isinstance(piece, Dropped):
        result.dropped.append(piece)
        return
    try:
        frames = _counted(_guarded(lambda: piece.frames), written)
        write_clip(out, replace(piece, frames=frames), unit.split, origin(unit), unit.lossless)
        result.clips.append(piece.name)
    except Refused as reason:
        result.dropped.append(Dropped(piece.name, str(reason)))


def _guarded(pieces: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Pass on what a source gives. raises Refused for whatever it raises: one bad file must not end the run"""
    try:
        yield from pieces()
    except Refused:
        raise
    except UserError as error:
        raise Refused(str(error)) from error
    except Exception as error:  # damage that the source did not foresee; the place is for whoever mends the source
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(str(error).split()) or "no message"
        raise Refused(f"{type(error).__name__}: {what} ({Path(place.filename).name}:{place.lineno})") from error


def _counted(frames: Iterator[Frame], written: Counter) -> Iterator[Frame]:
    for frame in frames:
        yield frame
        written.value += 1
