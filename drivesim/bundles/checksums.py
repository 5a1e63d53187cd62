"""CHECKSUMS: the SHA-256 of every file of a packed bundle, as `sha256sum --check CHECKSUMS` reads it.

The model card is left out, since who publishes a bundle goes on writing it; of a bundle without CHECKSUMS, one that
training fills, model_index.json holds the hashes of weights and folders alone.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from drivesim.bundles.safety import is_inside, walk
from drivesim.errors import UserError

NAME = "CHECKSUMS"
CARD = "README.md"
CHUNK = 1 << 20


def sha256(path: Path, tell: Callable[[int], object] = lambda read: None) -> str:
    """SHA-256 of a file; `tell` is called with the bytes that were read since it was called last."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            tell(len(chunk))
    return digest.hexdigest()


def write(root: Path) -> None:
    """Write CHECKSUMS of all that is in the folder now."""
    names = sorted(path.relative_to(root).as_posix() for path in walk(root))
    lines = [f"{sha256(root / name)}  {name}\n" for name in names if name not in (NAME, CARD)]
    (root / NAME).write_text("".join(lines))


def read(root: Path) -> dict[str, str]:
    """SHA-256 by path of the files that CHECKSUMS names; empty where there is none.

    raises  UserError for lines that are none of its kind, or name a path outside the folder
    """
    path = root / NAME
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable ({error}); copy the bundle again") from error
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise UserError(f"{path}: line {number} is no SHA-256 and name; copy the bundle again")
        if not is_inside(match[2]):
            raise UserError(f"{path} names {match[2]!r}, a path out of its folder; do not use this bundle")
        found[match[2]] = match[1]
    return found


def mismatches(
    root: Path, wanted: Callable[[Path], bool], digest: Callable[[Path], str] = sha256
) -> Iterator[tuple[Path, str]]:
    """`wanted` files that are missing, or others than those that CHECKSUMS names, each with a line that says so."""
    for name, expected in read(root).items():
        path = root / name
        if not wanted(path):
            continue
        if not path.is_file():
            yield path, f"{path} is missing, which {NAME} names; copy the bundle again"
        elif digest(path) != expected:
            yield (
                path,
                f"{path} is damaged or was changed (its SHA-256 is not the one in {NAME}); copy the bundle again",
            )
