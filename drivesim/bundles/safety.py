"""What a bundle may hold: nothing that leads out of it, and nothing that runs when it is read.

A bundle comes from anyone, by download or mail. Names in it are judged before any of them is opened.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from drivesim.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # may run anything when they are read
# Neither empty nor of dots alone, without what separates folders, drives or lines on any system.
_PART = r"(?!\.{1,2}(?:/|$))[^/\\:\x00-\x1f]+"


def is_name(text: str) -> bool:
    """Whether `text` names something right in a folder."""
    return re.fullmatch(_PART, text) is not None


def is_inside(text: str) -> bool:
    """Whether `text` is a path, of parts joined by `/`, that stays within the folder it starts in."""
    return re.fullmatch(f"{_PART}(/{_PART})*", text) is not None


def no_pickles(folder: str, names: list[str]) -> list[str]:
    """`ignore` of shutil.copytree."""
    return [name for name in names if is_pickle(PurePath(name))]


def is_pickle(path: PurePath) -> bool:
    return path.suffix.lower() in PICKLES


def refuse(problems: list[str]) -> None:
    """raises UserError of the first problem and how many more there are, if there are any"""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")


def outward_links(root: Path) -> Iterator[str]:
    """One line for every link that leads out of the folder."""
    for path in walk(root):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            yield (
                f"{path} is a link to {os.readlink(path)}, outside the bundle; a bundle is whole by itself, so copy "
                "the file itself there"
            )


def pickled(root: Path) -> Iterator[str]:
    """One line for every pickle in the folder, by its name."""
    for path in filter(is_pickle, walk(root)):
        yield (
            f"{path} is a pickle, which may run anything and is not read; delete it, or make a copy of the bundle "
            "without it: `drivesim bundle pack`"
        )


def walk(root: Path) -> Iterator[Path]:
    """Everything below a folder but folders, sorted; links to folders are named and not followed."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*links, *files]))


def bad_names(stages: dict[str, dict]) -> Iterator[str]:
    """Names in an index, of stages and of folders in them, that are no plain ones."""
    for stage, entry in stages.items():
        yield from (name for name in (stage, *entry.get("folders", {})) if not is_name(name))
