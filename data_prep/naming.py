"""Names for recordings that are found as files and folders, whatever characters those are called by."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

LONGEST_NAME = 150  # file systems take 255 bytes, and clips add numbers and suffixes to the name of their unit


def printable(path: Path | str) -> str:
    """A path as text that can be printed and stored: bytes that are no UTF-8 are written as \\xff, folders with /."""
    text = path.as_posix() if isinstance(path, Path) else path
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def unit_names(paths: Sequence[Path]) -> list[str]:
    """The paths as file names, each another; a hash tells apart those that would become the same one, or too long."""
    slugs = [_slug(path) for path in paths]
    taken = Counter(slugs)
    return [
        slug if taken[slug] == 1 and len(slug) <= LONGEST_NAME else f"{slug[:LONGEST_NAME]}-{_digest(path)}"
        for slug, path in zip(slugs, paths, strict=True)
    ]


def _slug(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", path.as_posix()).strip("._") or "recording"


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
