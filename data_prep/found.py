"""The files under a folder, and which of them must be left out."""

import os
from dataclasses import dataclass
from pathlib import Path

from data_prep.naming import printable
from data_prep.walk import folders_below


@dataclass(frozen=True)
class Found:
    """A file below the folder that was searched; problem says why it must be left out, empty where it need not."""

    path: Path  # relative to the folder
    problem: str = ""


def find(root: Path, suffixes: tuple[str, ...]) -> list[Found]:
    """Files below `root` whose name ends in one of `suffixes`, sorted; hidden ones are passed over.

    Links are followed, not in circles. A file that is there under two names is found once, under the name that is no
    link; the other is given with this problem, as is a folder that may not be read.
    """
    found: list[Found] = []
    for folder, below, names in folders_below(root):
        here = folder.relative_to(root)
        found += [Found(here / name) for name in names if name.lower().endswith(suffixes)]
        closed = [name for name in below if not os.access(folder / name, os.R_OK | os.X_OK)]
        found += [Found(here / name, "is a folder that may not be read") for name in closed]
    return _once(root, sorted(found, key=lambda file: file.path))


def _once(root: Path, files: list[Found]) -> list[Found]:
    """The same file twice would stand in two splits."""
    first: dict[tuple[int, int], Path] = {}
    second: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: ((root / file.path).is_symlink(), file.path)):
        try:
            status = (root / file.path).stat()
        except OSError:
            continue  # a link to nowhere; told when it is opened
        known = first.setdefault((status.st_dev, status.st_ino), file.path)
        if known != file.path and not file.problem:
            second[file.path] = known
    return [
        Found(file.path, f"is {printable(second[file.path])} under another name") if file.path in second else file
        for file in files
    ]
