"""The text files of KITTI, read so that every complaint names the file and the line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.source import Refused


def read_lines(path: Path) -> list[str]:
    """The lines of a file, less empty ones at its end. raises Refused if it is missing or no text"""
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except FileNotFoundError:
        raise Refused(f"{path} is missing") from None
    except UnicodeDecodeError:
        raise Refused(f"{path} is no text file") from None
    except OSError as error:
        raise Refused(f"{path} is not readable ({error.strerror})") from error


def numbers(words: Sequence[str], count: int, where: str) -> np.ndarray:
    """float64 [count]. raises Refused, with `where` they stand, for another count and for what is no finite number"""
    if len(words) != count:
        raise Refused(f"{where}: found {len(words)} values, expected {count}")
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise Refused(f"{where}: {error}") from None
    if not np.isfinite(values).all():
        raise Refused(f"{where}: {words[int(np.flatnonzero(~np.isfinite(values))[0])]} is no finite number")
    return values
