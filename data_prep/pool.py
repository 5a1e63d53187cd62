"""The units of a preparation on several processes: each is done once, and none of them can end the others."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2

from data_prep.source import Source, Unit
from data_prep.units import Counter, UnitResult, do_unit, quarantine, recorded

TICK_S = 0.5  # how often the progress is looked at
CONTEXT = multiprocessing.get_context("spawn")  # a fork of a process with running threads may hang
DIED = (
    "the process that worked on it was killed twice, the second time with no other unit beside it; out of memory "
    "perhaps: free some memory or take the input apart, then add retry_dropped=true"
)


class Pool(Protocol):
    """Processes to which units are given, one unit a process. Nothing is started before the first `submit`."""

    slots: int  # units at a time

    @property
    def written(self) -> int:
        """Frames so far, of all units."""

    def submit(self, unit: Unit) -> Any:
        """Begin a unit; returns a task."""

    def wait(self, tasks: Iterable[Any], seconds: float) -> Sequence[Any]:
        """Those of `tasks` that are done, after `seconds` at most."""

    def result(self, task: Any) -> UnitResult | None:
        """What became of a task that is done; None if its process died. raises whatever the unit raised"""

    def close(self) -> None:
        """End all processes; what they were at is done again next time."""


def run_units(units: Sequence[Unit], out: Path, pool: Pool) -> Iterator[tuple[int, UnitResult | None]]:
    """Do all units; yields (frames written so far, the result of a unit that just finished or None to tell the time).

    A unit whose process dies is tried once more when it has the machine to itself, and is then dropped.
    units   with the split each belongs to
    raises  UserError if the disk is full
    """
    todo = []
    for unit in units:
        if (done := recorded(unit, out)) is not None:
            yield 0, done
        else:
            todo.append(unit)
    suspects = []
    try:
        for started, result in _work(pool, todo, pool.slots):
            if started is not None and result is None:
                suspects.append(started)
            yield pool.written, result
        for alone, result in _work(pool, suspects, 1):
            yield pool.written, quarantine(alone, DIED, out) if alone is not None and result is None else result
    finally:
        pool.close()


def _work(pool: Pool, units: Iterable[Unit], slots: int) -> Iterator[tuple[Unit | None, UnitResult | None]]:
    """Each unit with its result, None if its process died; and (None, None) to tell the time."""
    left, running = deque(units), dict[Any, Unit]()
    while left or running:
        while left and len(running) < slots:
            unit = left.popleft()
            running[pool.submit(unit)] = unit
        done = pool.wait(running, TICK_S)
        yield None, None
        for task in done:
            yield running.pop(task), pool.result(task)


@dataclass
class _Lane:
    """One worker process, and its own count of frames: a shared one would need a lock, which a process that is killed
    while it holds it never lets go."""

    executor: ProcessPoolExecutor
    written: Counter


class Processes:
    """Processes of this machine. Each is a pool of its own, so that its death says which unit it was at.

    workers  0: one a core
    """

    def __init__(self, source: Source, out: Path, workers: int) -> None:
        self.slots = workers or len(os.sched_getaffinity(0))
        self._source, self._out = source, out
        self._lanes: list[_Lane] = []
        self._free: list[_Lane] = []
        self._busy: dict[Future[UnitResult], _Lane] = {}

    @property
    def written(self) -> int:
        return sum(lane.written.value for lane in self._lanes)

    def submit(self, unit: Unit) -> "Future[UnitResult]":
        lane = self._free.pop() if self._free else self._start()
        try:
            future = lane.executor.submit(_do_unit, self._source, unit, self._out)
        except BrokenProcessPool:  # it died while it had nothing to do
            return self.submit(unit)
        self._busy[future] = lane
        return future

    def wait(self, tasks: "Iterable[Future[UnitResult]]", seconds: float) -> "Sequence[Future[UnitResult]]":
        return list(wait(tasks, seconds, FIRST_COMPLETED).done)

    def result(self, task: "Future[UnitResult]") -> UnitResult | None:
        lane = self._busy.pop(task)
        try:
            result = task.result()
        except BrokenProcessPool:
            return None
        self._free.append(lane)
        return result

    def close(self) -> None:
        for lane in self._lanes:
            lane.executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()

    def _start(self) -> _Lane:
        written = CONTEXT.RawValue("Q", 0)
        self._lanes.append(_Lane(ProcessPoolExecutor(1, CONTEXT, _start_worker, (written,)), written))
        return self._lanes[-1]


_written: Counter  # of a worker process; shared memory can only be handed over at its start


def _start_worker(written: Counter) -> None:
    global _written
    _written = written
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _do_unit(source: Source, unit: Unit, out: Path) -> UnitResult:
    return do_unit(source, unit, out, _written)


def _end_with_parent() -> None:
    """Not even kill -9 of the parent leaves a worker behind, writing beside the run that goes on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
