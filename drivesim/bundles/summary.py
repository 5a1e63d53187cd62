"""What there is to say of a bundle: its stages, its data and its making, from configs, heads of files and records."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from drivesim.bundle import Bundle
from drivesim.bundles.headers import Header
from drivesim.bundles.public import public_command

UNKNOWN = "unknown"


@dataclass(frozen=True)
class StageFacts:
    """None where a record does not say.

    parameters  numbers in its file, in which the image network is not counted again
    minutes     of training;  loss  on held-out windows, not to be compared between stages
    built_on    the stages it was trained on, with their hashes then;  stale  one of them that is another now
    """

    name: str
    parameters: int
    dtype: str
    bytes: int
    steps: int | None
    minutes: float | None
    loss: float | None
    built_on: dict[str, str]
    stale: str | None
    sha256: str
    record: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, bundle: Bundle, stage: str) -> "StageFacts":
        """raises UserError if its weights are missing or no safetensors"""
        record, entry = bundle.record(stage), bundle.index["stages"][stage]
        path = bundle.weights(stage)
        header = Header.of(path)
        seconds = _number(record, "train_seconds")
        steps = _number(record, "steps")
        return cls(
            name=stage,
            parameters=header.parameters,
            dtype=header.dtype,
            bytes=path.stat().st_size,
            steps=None if steps is None else int(steps),
            minutes=None if seconds is None else seconds / 60,
            loss=_number(record, "validation_loss"),
            built_on=entry["built_on"],
            stale=bundle.stale(stage),
            sha256=entry["sha256"],
            record=record,
        )


@dataclass(frozen=True)
class Summary:
    """height, width of the final video, low_height, low_width of the working resolution; reads: it is told words."""

    stages: list[StageFacts]
    height: int
    width: int
    low_height: int
    low_width: int
    fps: float
    reads: bool
    licence: str
    sampler: dict[str, Any]

    @classmethod
    def of(cls, bundle: Bundle) -> "Summary":
        """raises UserError for a bundle that cannot be read"""
        index, data = bundle.index, bundle.data
        factor = _number(index, "factor") or 1
        return cls(
            stages=[StageFacts.of(bundle, stage) for stage in index.get("stages", {})],
            height=int(data["height"] * factor),
            width=int(data["width"] * factor),
            low_height=int(data["height"]),
            low_width=int(data["width"]),
            fps=_number(index, "fps") or data["key_fps"],
            reads=bundle.has_folder("image", "text_encoder"),
            licence=str(index.get("licence", "")),
            sampler=_dict(index, "sampler"),
        )

    @property
    def minutes(self) -> float:
        return sum(stage.minutes or 0.0 for stage in self.stages)

    @property
    def parameters(self) -> int:
        return sum(stage.parameters for stage in self.stages)

    @property
    def bytes(self) -> int:
        return sum(stage.bytes for stage in self.stages)

    @property
    def datasets(self) -> list["Dataset"]:
        """What the stages were trained on, each data set once, with the stages that saw it."""
        found: dict[str, Dataset] = {}
        for stage in self.stages:
            dataset = Dataset.of(stage.record)
            found.setdefault(repr(dataset), dataset).stages.append(stage.name)
        return list(found.values())

    def recorded(self, key: str) -> list[str]:
        """The values that the stages' records have for `key`, each once."""
        values = (stage.record.get(key) for stage in self.stages)
        return list(dict.fromkeys(str(value) for value in values if value not in (None, "")))

    @property
    def machines(self) -> list[str]:
        """What it was trained on, without the timings that led to the choice of precision."""
        return list(dict.fromkeys(machine.partition(" (")[0] for machine in self.recorded("machine")))

    @property
    def commands(self) -> list[str]:
        """The command lines that trained it, each once."""
        return list(filter(None, map(public_command, self.recorded("command"))))


@dataclass(frozen=True)
class Dataset:
    """What a stage learned from, as its record says; clips None where it says no more than a name."""

    name: str
    source: str
    clips: int | None
    hours: float | None
    licences: dict[str, int]
    where: str
    stages: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Dataset":
        told, selection = _dict(record, "dataset"), _dict(record, "selection")
        return cls(
            name=str(told.get("name") or PurePath(str(record.get("data") or UNKNOWN)).name),
            source=str(told.get("source", UNKNOWN)),
            clips=told.get("clips"),
            hours=_number(told, "hours"),
            licences=_dict(told, "licences"),
            where=str(selection.get("where", "")),
        )

    def __str__(self) -> str:
        return ", ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        yield self.name if self.source == UNKNOWN else f"{self.name} (source {self.source})"
        if self.clips is not None:
            yield f"{self.clips} clips"
        if self.hours is not None:
            yield f"{self.hours:.2f} h"
        if self.where:
            yield f"those where {self.where}"


def licences(datasets: list[Dataset]) -> str:
    """Of the data, with the number of clips of each where there are several."""
    counts: dict[str, int] = {}
    for dataset in datasets:
        for name, clips in dataset.licences.items():
            counts[name] = max(counts.get(name, 0), clips)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({clips} clips)" for name, clips in counts.items()) or "not recorded"


def _dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    """A record is read as far as it can be: nothing but words depends on it."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _number(values: dict[str, Any], key: str) -> float | None:
    found = values.get(key)
    known = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return found if known else None
