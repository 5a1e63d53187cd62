"""Files and folders that are either whole or absent."""

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drivesim.errors import UserError

TEMPORARY = ".{0.stem}.{1}.partial{0.suffix}"  # of a path and a process


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, remove it when it fails.

    The temporary name keeps the suffix, since writers such as PyAV and pyarrow choose their format by it.
    raises  UserError when the disk is full
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY.format(path, os.getpid()))
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


def remove_leftovers(*paths: Path) -> None:
    """Remove what `atomic_path` leaves beside these paths when its process is killed. Nobody may be writing them."""
    for path in paths:
        for leftover in path.parent.glob(TEMPORARY.format(Path(glob.escape(path.name)), "[0-9]*")):
            leftover.unlink()


@contextmanager
def atomic_folder(path: Path | str, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path` that becomes `path` when the block succeeds, and is removed when it fails.

    marker  name of a file that the block writes; with `overwrite` a folder that holds it is replaced, no other one is
    raises  UserError, before the block begins, if `path` cannot be written or may not be replaced
    """
    path = check_folder(path, marker, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = (path.with_name(f".{path.name}.{word}") for word in ("partial", "replaced"))
    with _only_user(temporary, path):
        try:
            yield temporary
            if path.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                os.rename(path, replaced)
            os.rename(temporary, path)
        except BaseException as error:
            if replaced.exists() and not path.exists():
                os.rename(replaced, path)
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"interrupted; {path} is as it was before") from error
            raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _only_user(folder: Path, path: Path) -> Iterator[None]:
    """Hold `folder`, new and empty: what a process left that was killed goes away. raises UserError if it is in use"""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when its holder dies
        for leftover in folder.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
    except BlockingIOError as error:
        raise UserError(f"another process is writing {path}; wait for it or choose another out") from error
    finally:
        os.close(handle)


def check_folder(path: Path | str, marker: str, overwrite: bool) -> Path:
    """Return `path`, absolute, where a folder can be written; checked before the work begins.

    raises  UserError for a file, for a folder with something in it unless `overwrite` is given and it holds `marker`,
            or no place to write to
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise UserError(f"out={path} is a file; give the name of a folder")
    if path.is_dir() and any(path.iterdir()):
        if not (path / marker).exists():
            raise UserError(f"{path} holds other files (no {marker}); choose another folder")
        refuse_existing(path, overwrite)
    _check_writable(path)
    return path


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
    _check_writable(path)
    return path


def _check_writable(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"out={path}: {folder} is no folder that may be written to; choose another place")


def refuse_existing(path: Path | str, overwrite: bool) -> Path:
    """Return `path`; raise UserError if something is there and `overwrite` was not given."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name or add overwrite=true")
    return path
