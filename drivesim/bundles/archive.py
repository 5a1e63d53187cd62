"""A bundle as one file: .tar or .zip, unpacked only where nothing in it could do harm.

Weights do not compress, so nothing is compressed. Times and owners are left out: the same bundle is the same bytes.
"""

import errno
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from drivesim.bundle import ARCHIVES
from drivesim.bundles.safety import is_inside, is_pickle, walk
from drivesim.errors import UserError
from drivesim.files import atomic_path

LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first moment that zip knows
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error)


def is_archive(path: Path | str) -> bool:
    return Path(path).suffix.lower() in ARCHIVES


@contextmanager
def opened(path: Path | str) -> Iterator[Path]:
    """The folder at `path`; of an archive, one that it is unpacked to and that is gone afterwards."""
    if not (is_archive(path) and Path(path).is_file()):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="drivesim_bundle_") as folder:
        unpack(Path(path), Path(folder))
        yield Path(folder)


def write_archive(folder: Path, out: Path) -> None:
    """All files of a folder as one, `out`, by its suffix. raises UserError when the disk is full"""
    with atomic_path(out) as temporary:
        (_write_zip if out.suffix.lower() == ".zip" else _write_tar)(folder, temporary)


def _write_tar(folder: Path, out: Path) -> None:
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in walk(folder):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size, member.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                archive.addfile(member, file)


def _write_zip(folder: Path, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in walk(folder):
            member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), LONG_AGO)
            member.file_size, member.external_attr = path.stat().st_size, 0o644 << 16
            with path.open("rb") as file, archive.open(member, "w") as into:
                shutil.copyfileobj(file, into)


@dataclass(frozen=True)
class Member:
    """One entry of an archive. plain: a file, no link, device or anything else; open: what is in it"""

    name: str
    size: int
    plain: bool
    open: Callable[[], IO[bytes] | None]


def unpack(path: Path, folder: Path) -> None:
    """Write the files of an archive into an empty folder, all of them judged before the first is written.

    raises  UserError for an archive that is damaged, or holds paths out of it, links, pickles, a name twice, or more
            than there is room for
    """
    try:
        with _read(path) as members:
            _judge(path, members, shutil.disk_usage(folder).free)
            for member in members:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as file, target.open("xb") as into:  # type: ignore[union-attr]
                    shutil.copyfileobj(file, into)  # type: ignore[arg-type]
                if (found := target.stat().st_size) != member.size:
                    raise UserError(f"{path}: {member.name} has {found} bytes, expected {member.size}; copy it again")
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{path} is not readable as an archive ({error}); copy it again") from error


@contextmanager
def _read(path: Path) -> Iterator[list[Member]]:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as file:
            entries = [entry for entry in file.infolist() if not entry.is_dir()]
            yield [
                Member(entry.filename, entry.file_size, _is_plain(entry), lambda entry=entry: file.open(entry))  # type: ignore[misc]
                for entry in entries
            ]
    else:
        with tarfile.open(path, "r:") as tar:
            yield [
                Member(entry.name, entry.size, entry.isreg(), lambda entry=entry: tar.extractfile(entry))  # type: ignore[misc]
                for entry in tar.getmembers()
                if not entry.isdir()
            ]


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    """zip keeps what a file is in the upper half of its attributes, if at all: 0o12 is a link."""
    return (entry.external_attr >> 28) in (0, 0o10) and not entry.flag_bits & 1  # nor encrypted


def _judge(path: Path, members: list[Member], room: int) -> None:
    """raises UserError, naming the first, if a member may not be unpacked, or all together are too large"""
    seen: set[str] = set()
    for member in members:
        name = member.name
        if not is_inside(name):
            raise UserError(f"{path} holds {name!r}, a path out of its folder; do not use it")
        if not member.plain:
            raise UserError(f"{path} holds {name!r}, which is no plain file; a bundle has no links")
        if is_pickle(PurePosixPath(name)):
            raise UserError(f"{path} holds {name!r}, a pickle, which may run anything; nothing was unpacked")
        if name.lower() in seen:
            raise UserError(f"{path} holds {name!r} twice; copy it again")
        seen.add(name.lower())
    if (size := sum(member.size for member in members)) > room:
        raise UserError(f"{path} holds {size >> 20} MiB, there are {room >> 20} free; free some room and run again")
