"""Times beside a folder of pictures: one a line for the pictures in their order, or lines of a name and its time."""

import csv
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from data_prep.naming import printable
from data_prep.source import Refused

FILES = ("timestamps.txt", "timestamps.csv")
UNITS = {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6"), "ns": Decimal("1e-9")}  # seconds
HEADERS = (["time"], ["name", "time"])


def read_times(path: Path, names: Sequence[str], unit: str) -> dict[str, float]:
    """Seconds since the first time, by name of the picture and in the order of the file.

    names   the pictures of the folder in order, which lines without a name go by
    unit    of the numbers, one of UNITS
    raises  Refused, with the line, for what is no time, and if pictures and lines do not match
    """
    rows = _rows(path)
    if len(rows[0][1]) == 2:
        named = _named(path, rows, set(names))
    else:
        if len(rows) != len(names):
            raise Refused(f"{printable(path)} has {len(rows)} times for {len(names)} pictures; give each its time")
        named = [(name, number, cells[0]) for name, (number, cells) in zip(names, rows, strict=True)]
    times = [_number(text, f"{printable(path)} line {number}") * UNITS[unit] for _, number, text in named]
    # Subtracted before they become floats, which cannot hold the nanoseconds since 1970.
    return {name: float(time - times[0]) for (name, _, _), time in zip(named, times, strict=True)}


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Number and cells of each line that is not empty, all with the same number of cells; a header is passed over."""
    rows = []
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except (OSError, csv.Error) as error:
        raise Refused(f"{printable(path)} is not readable ({error})") from error
    if rows and [cell.lower() for cell in rows[0][1]] in HEADERS:
        rows = rows[1:]
    if not rows:
        raise Refused(f"{printable(path)} holds no time")
    for number, cells in rows:
        if len(cells) > 2 or len(cells) != len(rows[0][1]):
            expected = "a time" if len(rows[0][1]) == 1 else "a name and a time"
            raise Refused(f"{printable(path)} line {number}: found {len(cells)} values, expected {expected}")
    return rows


def _named(path: Path, rows: Sequence[tuple[int, list[str]]], pictures: set[str]) -> list[tuple[str, int, str]]:
    """Name, line and time of each row. A picture that is missing keeps its row, and is found out when it is read."""
    seen: set[str] = set()
    for number, (name, _) in rows:
        if name in seen or "/" in name or name in ("", ".", ".."):
            told = "is named again" if name in seen else "is no name of a picture in this folder"
            raise Refused(f"{printable(path)} line {number}: {printable(name)!r} {told}")
        seen.add(name)
    if 2 * len(seen & pictures) < len(seen):
        missing = len(seen - pictures)
        raise Refused(f"{missing} of the {len(seen)} pictures that {printable(path)} names are missing")
    return [(name, number, time) for number, (name, time) in rows]


def _number(text: str, where: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite():
        raise Refused(f"{where}: {printable(text)!r} is no time")
    return value
