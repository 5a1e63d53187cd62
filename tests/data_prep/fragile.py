"""A source whose units do what their names say; importable by worker processes."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.source import Dropped, Frame, RawClip, Unit

FRAMES = 3


@dataclass
class Fragile:
    """Two clips a unit. In the second one a unit named dies kills its process, dies_once does so the first time,
    breaks raises; unreadable raises before the first."""

    names: list[str]
    folder: Path  # for notes of what was begun

    def units(self) -> list[Unit]:
        return [Unit(name, name) for name in self.names]

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        if unit.name == "unreadable":
            raise KeyError("sample_token")
        return (
            RawClip(f"{unit.name}_{number}", unit.route, 10.0, "test", "", False, self._frames(unit, number))
            for number in range(2)
        )

    def _frames(self, unit: Unit, number: int) -> Iterator[Frame]:
        for level in range(FRAMES):
            yield Frame(np.full((16, 32, 3), 60 * number + level, np.uint8))
        if number == 1:
            with open(self.folder / unit.name, "a") as note:
                note.write("begun\n")
            begun = len((self.folder / unit.name).read_text().splitlines())
            if unit.name == "dies" or (unit.name == "dies_once" and begun == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if unit.name == "breaks":
                raise ZeroDivisionError("no such luck")
