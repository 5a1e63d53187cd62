"""The units of a preparation as Ray tasks, on this machine or on a cluster (https://docs.ray.io)."""

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.source import Source, Unit
from data_prep.units import UnitResult, do_unit
from drivesim import __version__
from drivesim.errors import UserError

ANSWER_S = 10  # a cluster that has not answered by then is none


@dataclass
class Count:
    """Frames of one unit."""

    value: int = 0


class RayPool:
    """One task a unit. Every node needs drivesim, and sees the store and the raw data under the same paths.

    address  of a running cluster; None starts Ray on this machine
    workers  units at a time; 0: one a core of the cluster
    shared   paths that every node must see
    raises   UserError if Ray is not installed, or the cluster cannot be reached
    """

    def __init__(self, source: Source, out: Path, workers: int, address: str | None, shared: Sequence[Path]) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("runner=ray needs Ray; install it with pip install 'drivesim[ray]'") from error
        self._ray, self.written = ray, 0
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        own = {} if address else {"num_cpus": workers or len(os.sched_getaffinity(0)), "include_dashboard": False}
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
        except (OSError, RuntimeError, ValueError) as error:
            found = f"no Ray cluster at address={address} lets this process in ({str(error).splitlines()[0]})"
            raise UserError(f"{found}; see that it runs, and that its token is known here too") from error
        self.slots = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # Ray itself would try a unit again beside the others; `run_units` does so when it is alone.
        self._task = ray.remote(max_retries=0)(_do_unit)
        self._common = ray.put((source, out, tuple(shared)))

    def submit(self, unit: Unit) -> Any:
        return self._task.remote(self._common, unit)

    def wait(self, tasks: Iterable[Any], seconds: float) -> Sequence[Any]:
        first, rest = self._ray.wait(list(tasks), num_returns=1, timeout=seconds)
        return first + (self._ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else [])

    def result(self, task: Any) -> UnitResult | None:
        try:
            result, frames = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError | OSError):
                raise error.cause from error
            reason = str(error.cause).splitlines()[0]
            raise UserError(f"a Ray task failed ({reason}); every node needs drivesim {__version__}") from error
        except self._ray.exceptions.RayError:  # its process or its node died
            return None
        self.written += frames
        return result

    def close(self) -> None:
        self._ray.shutdown()


def _knock(address: str | None) -> None:
    """raises OSError if nobody answers at HOST:PORT or ray://HOST:PORT; Ray itself takes minutes to say so"""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()


def _do_unit(common: tuple[Source, Path, Sequence[Path]], unit: Unit) -> tuple[UnitResult, int]:
    """What became of the unit, and the number of frames that were written for it."""
    source, out, shared = common
    for path in shared:
        if not path.exists():
            raise UserError(
                f"{path} is not there on node {os.uname().nodename}; every node must see it under this name"
            )
    count = Count()
    return do_unit(source, unit, out, count), count.value
