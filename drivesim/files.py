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
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing behind it
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


def check_output(path: Path | str, suffix: str, overwrite: bool) -> Path:
    """Return `path`, where a file can be written; checked before the work begins.

    raises  UserError for another suffix, a folder, an existing file without `overwrite`, or no place to write to
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise UserError(f"out={path}, expected a name that ends in {suffix}")
    if path.is_dir():
        raise UserError(f"out={path} is a folder; give the name of a file in it")
    refuse_existing(path, overwrite)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"out={path}: {folder} is no folder that may be written to; choose another place")
    return path


def refuse_existing(path: Path | str, overwrite: bool) -> Path:
    """Return `path`; raise UserError if something is there and `overwrite` was not given."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name or add overwrite=true")
    return path
