"""Kinds of values in a scenario file: each reads what YAML holds, refuses what it cannot be, and says both as JSON
Schema, so that the published schema cannot say other than the reader does."""

import dataclasses
import difflib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from scipy.interpolate import PchipInterpolator

from drivesim.checks import number
from drivesim.errors import UserError

T = TypeVar("T")


class Kind(Protocol):
    """What a value may be."""

    def read(self, value: Any, where: str) -> Any:
        """The value, checked. raises UserError that begins with `where`"""

    def schema(self) -> dict[str, Any]:
        """The same as JSON Schema (draft 2020-12)."""


@dataclass(frozen=True)
class Keyframes(Generic[T]):
    """A value over time: times_s increasing seconds, values of the same length; the ends hold on."""

    times_s: tuple[float, ...]
    values: tuple[T, ...]

    def at(self, times_s: np.ndarray) -> np.ndarray:
        """[T] seconds -> [T] numbers, linear between keyframes."""
        return np.interp(times_s, self.times_s, np.array(self.values, float))

    def eased(self, times_s: np.ndarray) -> np.ndarray:
        """The same without kinks, as cars steer: monotone cubics, at rest where it holds on before or after."""
        knots, values = list(self.times_s), [float(value) for value in self.values]  # type: ignore[arg-type]
        if knots[0] > times_s[0]:
            knots, values = [knots[0] - 1, *knots], [values[0], *values]
        if knots[-1] < times_s[-1]:
            knots, values = [*knots, knots[-1] + 1], [*values, values[-1]]
        if len(knots) == 1:
            return np.full(len(times_s), values[0])
        return PchipInterpolator(knots, values)(times_s.clip(knots[0], knots[-1]))

    def held(self, times_s: np.ndarray) -> list[T]:
        """The value of the last keyframe at or before each of the times, of values that nothing lies between."""
        return [self.values[max(0, bisect_right(self.times_s, time) - 1)] for time in times_s]


def constant(value: T) -> Keyframes[T]:
    return Keyframes((0.0,), (value,))


@dataclass(frozen=True)
class Number:
    """A number from least (or, with `above`, from just above it) to most; or one of some words that stand for one."""

    least: float = -inf
    most: float = inf
    above: bool = False
    words: Mapping[str, float] = field(default_factory=dict)

    def read(self, value: Any, where: str) -> float:
        if isinstance(value, str) and self.words:
            if value not in self.words:
                raise UserError(f"{where} is {value!r}, expected a number or one of {', '.join(self.words)}")
            return self.words[value]
        found = number(value, where, self.least, self.most)
        if self.above and found == self.least:
            raise UserError(f"{where} is {found:g}, expected more than {self.least:g}")
        return found

    def schema(self) -> dict[str, Any]:
        low = {} if self.least == -inf else {"exclusiveMinimum" if self.above else "minimum": self.least}
        said: dict[str, Any] = {"type": "number"} | low | ({} if self.most == inf else {"maximum": self.most})
        return {"anyOf": [said, {"enum": list(self.words)}]} if self.words else said


@dataclass(frozen=True)
class Whole:
    """A whole number from 0 up to `most`; or one of some words."""

    most: int
    words: tuple[str, ...] = ()

    def read(self, value: Any, where: str) -> int | str:
        if isinstance(value, str) and value in self.words:
            return value
        found = number(value, where, 0, self.most)
        if found != int(found):
            raise UserError(f"{where} is {found:g}, expected a whole number")
        return int(found)

    def schema(self) -> dict[str, Any]:
        said = {"type": "integer", "minimum": 0, "maximum": self.most}
        return {"anyOf": [said, {"enum": list(self.words)}]} if self.words else said


@dataclass(frozen=True)
class Text:
    """Words, not empty."""

    def read(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where} is {value!r}, expected words")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Flag:
    """true or false."""

    def read(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise UserError(f"{where} is {value!r}, expected true or false")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Word:
    """One of a few words."""

    known: tuple[str, ...]

    def read(self, value: Any, where: str) -> str:
        if value not in self.known:
            raise UserError(f"{where} is {value!r}{hint(value, self.known)}; expected one of {', '.join(self.known)}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.known)}


@dataclass(frozen=True)
class Row:
    """A short list of so many values of one kind: [1, 2, 3]."""

    of: Kind
    names: tuple[str, ...]

    def read(self, value: Any, where: str) -> tuple:
        if not isinstance(value, list) or len(value) != len(self.names):
            raise UserError(f"{where} is {value!r}, expected [{', '.join(self.names)}]")
        return tuple(self.of.read(part, f"{where}: {n}") for n, part in zip(self.names, value, strict=True))

    def schema(self) -> dict[str, Any]:
        size = len(self.names)
        return {"type": "array", "items": self.of.schema(), "minItems": size, "maxItems": size}


@dataclass(frozen=True)
class Curve:
    """A value for all the time, or keyframes of it: [[time_s, value], ...]."""

    of: Kind

    def read(self, value: Any, where: str) -> Keyframes:
        if not isinstance(value, list):
            return constant(self.of.read(value, where))
        if not value:
            raise UserError(f"{where} is [], expected a value, or keyframes [[time_s, value], ...]")
        times, values = [], []
        for i, pair in enumerate(value):
            here = f"{where}: keyframe {i}"
            if not isinstance(pair, list) or len(pair) != 2:
                raise UserError(f"{here} is {pair!r}, expected [time_s, value]")
            times.append(number(pair[0], f"{here}: time_s", 0))
            values.append(self.of.read(pair[1], here))
        check_order(times, where)
        return Keyframes(tuple(times), tuple(values))

    def schema(self) -> dict[str, Any]:
        pair = {"type": "array", "prefixItems": [{"type": "number", "minimum": 0}, self.of.schema()]}
        frames = {"type": "array", "items": pair | {"minItems": 2, "maxItems": 2}, "minItems": 1}
        return {"anyOf": [self.of.schema(), frames]}


@dataclass(frozen=True)
class Many:
    """A list of at least so many values of one kind, which messages name by their place and their name."""

    of: Kind
    least: int = 0

    def read(self, value: Any, where: str) -> tuple:
        if not isinstance(value, list) or len(value) < self.least:
            raise UserError(
                f"{where} is {str(value)[:40]}, expected a list{f' of {self.least} or more' * (self.least > 0)}"
            )
        return tuple(self.of.read(part, f"{where}[{i}]{_named(part)}") for i, part in enumerate(value))

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.of.schema(), "minItems": self.least}


@dataclass(frozen=True)
class Record:
    """An object whose keys are the fields of a dataclass, each made with `said`."""

    cls: type

    def read(self, value: Any, where: str) -> Any:
        fields = {key_of(f): f for f in dataclasses.fields(self.cls)}
        if not isinstance(value, dict):
            raise UserError(f"{where} is {str(value)[:40]!r}, expected an object with {', '.join(fields)}")
        for key in value:
            if key not in fields:
                raise UserError(f"{where}: unknown key {key!r}{hint(key, tuple(fields))}; known: {', '.join(fields)}")
        for key, f in fields.items():
            if key not in value and f.default is dataclasses.MISSING:
                raise UserError(f"{where}: {key} is missing; it says {f.metadata['help']}")
        given = {
            f.name: f.metadata["kind"].read(value[key], f"{where}: {key}") for key, f in fields.items() if key in value
        }
        return self.cls(**given)

    def schema(self) -> dict[str, Any]:
        fields = dataclasses.fields(self.cls)
        keys = {key_of(f): f.metadata["kind"].schema() | {"description": f.metadata["help"]} for f in fields}
        required = [key_of(f) for f in fields if f.default is dataclasses.MISSING]
        about = " ".join((self.cls.__doc__ or "").split())
        return {
            "type": "object",
            "description": about,
            "properties": keys,
            "required": required,
            "additionalProperties": False,
        }


def said(kind: Kind, help: str, default: Any = dataclasses.MISSING, key: str = "") -> Any:
    """A field of a dataclass that a scenario file gives; required without a default. key: its name there, if another"""
    return field(default=default, metadata={"kind": kind, "help": help, "key": key})


def key_of(f: dataclasses.Field) -> str:
    return f.metadata["key"] or f.name


def check_order(times_s: Sequence[float], where: str) -> None:
    """raises UserError unless each time is later than the one before"""
    for i in range(1, len(times_s)):
        if times_s[i] <= times_s[i - 1]:
            found = f"keyframe {i} is at {times_s[i]:g} s, not after keyframe {i - 1} at {times_s[i - 1]:g} s"
            raise UserError(f"{where}: {found}; sort them")


def hint(word: Any, known: Sequence[str]) -> str:
    """ "; did you mean ...?" if something known is spelt much the same, else nothing."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _named(part: Any) -> str:
    return f" ({part['name']})" if isinstance(part, dict) and isinstance(part.get("name"), str) else ""
