"""The units of a preparation on several processes, each unit done once."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import cv2

from data_prep.source import Dropped, Frame, RawClip, Refused, Source, Unit
from data_prep.writer import write_clip
from drivesim.errors import UserError
from drivesim.files import atomic_path

TICK_S = 0.5  # how often the progress is looked at
CONTEXT = multiprocessing.get_context("spawn")  # a fork of a process with running threads may hang


@dataclass
class UnitResult:
    """What became of a unit: names of its clips, and what was dropped."""

    clips: list[str]
    dropped: list[Dropped]


def run_units(
    source: Source, units: Sequence[Unit], splits: dict[str, str], out: Path, workers: int
) -> Iterator[tuple[int, UnitResult | None]]:
    """Do all units; yields (frames written so far, the result of a unit that just finished or None to tell the time).

    workers  processes, 0: one a core
    raises   UserError if a worker died, or hit a full disk
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(units))
    written = CONTEXT.Value("Q", 0)
    pool = ProcessPoolExecutor(workers, CONTEXT, _start_worker, (written,))
    try:
        pending = {pool.submit(_do_unit, source, unit, splits[unit.route], out) for unit in units}
        while pending:
            done, pending = wait(pending, TICK_S, FIRST_COMPLETED)
            yield written.value, None
            for future in done:
                yield written.value, _result(future)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()  # after an error or Ctrl-C; what they were at is done again next time


def _result(future: "Future[UnitResult]") -> UnitResult:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError("a worker process died, out of memory perhaps; run again with fewer workers") from error


def do_unit(source: Source, unit: Unit, split: str, out: Path, written: "Synchronized[int]") -> UnitResult:
    """Write the clips of one unit, or find that it is done; adds each frame to the counter `written`."""
    record = out / "parts" / f"{unit.name}.unit.json"
    if record.exists():
        found = json.loads(record.read_text())
        return UnitResult(found["clips"], [Dropped(**piece) for piece in found["dropped"]])
    result = UnitResult([], [])
    try:
        for piece in source.clips(unit):
            _keep(piece, result, split, out, written)
    except Refused as reason:
        result.dropped.append(Dropped(unit.name, str(reason)))
    with atomic_path(record) as temporary:
        temporary.write_text(json.dumps(asdict(result)))
    return result


def _keep(piece: RawClip | Dropped, result: UnitResult, split: str, out: Path, written: "Synchronized[int]") -> None:
    if isinstance(piece, Dropped):
        result.dropped.append(piece)
        return
    try:
        write_clip(out, replace(piece, frames=_counted(piece.frames, written)), split)
        result.clips.append(piece.name)
    except Refused as reason:
        result.dropped.append(Dropped(piece.name, str(reason)))


def _counted(frames: Iterator[Frame], written: "Synchronized[int]") -> Iterator[Frame]:
    for frame in frames:
        yield frame
        with written.get_lock():
            written.value += 1


_written: "Synchronized[int]"  # of a worker process; shared memory can only be handed over at its start


def _start_worker(written: "Synchronized[int]") -> None:
    global _written
    _written = written
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _do_unit(source: Source, unit: Unit, split: str, out: Path) -> UnitResult:
    return do_unit(source, unit, split, out, _written)


def _end_with_parent() -> None:
    """Not even kill -9 of the parent leaves a worker behind, writing beside the run that goes on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
