"""Checks of what a user wrote into a JSON or CSV file; each message says where, what was found and what is expected."""

import math
from typing import Any

from drivesim.errors import UserError


def check_keys(value: Any, known: tuple[str, ...], where: str) -> None:
    """raises UserError unless `value` is an object that has no other keys than `known`"""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with {', '.join(known)}, found {str(value)[:40]}")
    if unknown := [key for key in value if key not in known]:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")


def number(value: Any, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float. raises UserError unless it is a finite number from `low` to `high`"""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} is {'missing' if value is None else repr(value)}, expected a number")
    if not math.isfinite(value if abs(value) < 1e300 else math.inf):
        raise UserError(f"{where} is {value if value != value else 'infinite'}, expected a finite number")
    if not low <= value <= high:
        limits = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
        raise UserError(f"{where} is {value:g}, expected {limits}")
    return float(value)


def label_or_nan(value: Any, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """The same where nothing is allowed too: NaN for None."""
    return math.nan if value is None else number(value, where, low, high)
