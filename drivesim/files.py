"""Files that are either whole or absent."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drivesim.errors import UserError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, remove it when it fails.

    The temporary name keeps the suffix, since writers such as PyAV and pyarrow choose their format by it.
    raises  UserError when the disk is full
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free >> 20
            raise UserError(
                f"disk full while writing {path} ({free} MiB free); free some room and run again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: Path | str, overwrite: bool) -> Path:
    """Return `path`; raise UserError if something is there and `overwrite` was not given."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name or add overwrite=true")
    return path
