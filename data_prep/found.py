"""The files under a folder: which are to be prepared, what lies there that cannot be, and names for all of them."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LONGEST_NAME = 150  # file systems take 255 bytes, and clips add numbers and suffixes to the name of their unit


@dataclass(frozen=True)
class Found:
    """A file below the folder that was searched; problem says why it must be left out, empty where it need not."""

    path: Path  # relative to the folder
    problem: str = ""


def find(root: Path, suffixes: tuple[str, ...]) -> list[Found]:
    """Files below `root` whose name ends in one of `suffixes`, sorted; hidden ones are passed over.

    Links to files are followed; a file that is there under two names is found once, under the name that is no link.
    Links to folders are not followed: they may lead in circles, or to a whole disk.
    """
    found: list[Found] = []
    unreadable: list[OSError] = []
    for folder, below, names in os.walk(root, onerror=unreadable.append):
        here = Path(folder)
        found += [_folder_link(root, here / name) for name in below if _leads_out(root, here / name)]
        found += [
            Found((here / name).relative_to(root))
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    found += [
        Found(Path(error.filename).relative_to(root), f"cannot be read ({error.strerror})") for error in unreadable
    ]
    return _once(root, sorted(found, key=lambda file: file.path))


def _leads_out(root: Path, folder: Path) -> bool:
    """A link to a folder elsewhere; what it points to below `root` is found where it lies."""
    return folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve())


def _folder_link(root: Path, folder: Path) -> Found:
    where = f"is a link to the folder {folder.resolve()}, which is not followed"
    return Found(folder.relative_to(root), f"{where}; link its files one by one, or give that folder as root")


def _once(root: Path, files: list[Found]) -> list[Found]:
    """The same file twice would stand in two splits: the second name is left out."""
    first: dict[tuple[int, int], Path] = {}
    second: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: ((root / file.path).is_symlink(), file.path)):
        try:
            stat = (root / file.path).stat()
        except OSError:
            continue  # a dangling link; told when it is opened
        known = first.setdefault((stat.st_dev, stat.st_ino), file.path)
        if known != file.path and not file.problem:
            second[file.path] = known
    return [
        Found(file.path, f"is {printable(second[file.path])} under another name") if file.path in second else file
        for file in files
    ]


def printable(text: str | Path) -> str:
    """Text that any file or terminal takes: bytes of a file name that are no UTF-8 become \\x.. escapes."""
    return os.fsencode(str(text)).decode("utf-8", "backslashreplace")


def unit_names(paths: Iterable[Path]) -> list[str]:
    """For each path a name for files; a hash tells apart those that would become the same, or too long."""
    paths = list(paths)
    slugs = [re.sub(r"[^A-Za-z0-9.-]+", "_", path.as_posix()).strip("._") or "video" for path in paths]
    taken = Counter(slugs)
    return [
        slug if taken[slug] == 1 and len(slug) <= LONGEST_NAME else f"{slug[:LONGEST_NAME]}-{_hash(path)}"
        for slug, path in zip(slugs, paths, strict=True)
    ]


def _hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.as_posix())).hexdigest()[:6]
