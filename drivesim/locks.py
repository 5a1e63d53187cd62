"""Locks between processes, which the system lets go of when their holder dies, also by kill -9."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def holding(path: Path, shared: bool = False, waiting: str = "") -> Iterator[None]:
    """Hold the lock file `path`; while somebody else does, wait, after saying `waiting` on stderr.

    shared  several may hold it at once, as long as nobody holds it alone
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with open(path, "a") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                print(waiting, file=sys.stderr)
            fcntl.flock(file, kind)
        yield
