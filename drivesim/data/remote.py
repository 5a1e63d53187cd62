"""Files on a local disk, or anywhere that fsspec reaches: https, s3, gs, memory and so on."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.core import url_to_fs

from drivesim.errors import UserError

Place = Path | str  # of a file or folder: a Path is on the local disk, a str a URL
BLOCK = 1 << 20  # bytes asked for at once: a window of 16 frames of 512x1024 is about that long


def place(name: Path | str) -> Place:
    """A user's word as a local path or, where it has a scheme other than file://, a URL."""
    if isinstance(name, Path) or "://" not in name:
        return Path(name)
    scheme, _, rest = name.partition("://")
    return Path(rest) if scheme == "file" else name.rstrip("/")


def join(folder: Place, *names: str) -> Place:
    """The place of a file within a folder."""
    return folder.joinpath(*names) if isinstance(folder, Path) else "/".join([folder, *names])


def exists(file: Place) -> bool:
    """Whether a file is there and in reach. raises UserError if its URL makes no sense"""
    if isinstance(file, Path):
        return file.exists()
    with told(file):
        system, path = url_to_fs(file)
        return system.exists(path)


def read_text(file: Place) -> str:
    """The contents of a small file. raises UserError if it is missing or cannot be reached"""
    with told(file):
        if isinstance(file, Path):
            return file.read_text()
        system, path = url_to_fs(file)
        return system.cat_file(path).decode()


def open_file(file: Place, size: int | None = None) -> BinaryIO:
    """Open a file to read from any position; of a remote one only the parts that are read are fetched.

    size    bytes of it that matter, where known: spares asking for its length
    raises  UserError if it is missing or cannot be reached
    """
    with told(file):
        if isinstance(file, Path):
            return open(file, "rb")
        # Asked for anew each time: a connection that was opened before a fork must not be used after it.
        system, path = url_to_fs(file)
        known: dict[str, Any] = {} if size is None else {"size": size}
        opened = system.open(path, "rb", block_size=BLOCK, cache_type="readahead", **known)
        if not opened.seekable():
            raise UserError(f"{file} cannot be read in parts; use a server that answers range requests")
        return opened


@contextmanager
def told(file: Place) -> Iterator[None]:
    """Whatever goes wrong with a file becomes one line that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:  # fsspec takes a server that does not answer for one without the file
        reason = f" or out of reach ({_first_line(error.__cause__)})" if error.__cause__ else ""
        raise UserError(f"{file} is missing{reason}") from error
    except Exception as error:  # each of fsspec's drivers raises the errors of its own libraries
        raise UserError(f"{file} cannot be read ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class Part(io.RawIOBase):
    """`size` bytes from `offset` on of an open file, as a file of its own; closes the file with itself.

    raises  UserError from `read` if the file breaks off before, or can no longer be reached
    """

    def __init__(self, file: BinaryIO, offset: int, size: int, name: str) -> None:
        self._file, self._offset, self._size, self._name, self._at = file, offset, size, name, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        if not wanted:
            return 0
        with told(self._name):
            self._file.seek(self._offset + self._at)
            found = self._file.read(wanted)
        if not found:
            raise UserError(f"{self._name}: the file is cut off after {self._at} of {self._size} bytes")
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
