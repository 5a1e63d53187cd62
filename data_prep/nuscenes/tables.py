"""The rows that are needed of a nuScenes version, and what is wrong with the others, before anything is indexed."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.nuscenes.records import FIELDS, LEADS_TO, Row, check_folder, read_rows

# Rows of the other tables matter only to rows of these, which pass on what is wrong with them.
REPORTED = ("scene", "sample", "sample_data", "sample_annotation")


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used, and why. scene: token, empty where it cannot be told; camera: empty for all."""

    reason: str
    scene: str
    camera: str


def read_tables(root: Path, version: str, cameras: Sequence[str]) -> tuple[dict[str, list[Row]], list[Fault]]:
    """The rows by table, all of whose tokens lead somewhere, and the faults of the rows left out.

    Only pictures of `cameras` are kept, with their poses, and of every row only the fields that are used: the tables
    of the whole data set fill many gigabytes.
    raises  UserError if a table cannot be read
    """
    reader = _Reader(check_folder(root, version), cameras)
    return reader.good, list(reader.faults())


class _Reader:
    def __init__(self, folder: Path, cameras: Sequence[str]) -> None:
        self.folder, self.cameras = folder, cameras
        self.good: dict[str, list[Row]] = {}
        self._known: dict[str, dict[str, Row]] = {}  # by token, the broken ones too
        self._bad: dict[str, dict[str, str]] = {}  # token -> reason
        self._broken: list[tuple[str, Row, str]] = []
        for table in ("category", "visibility", "sensor", "calibrated_sensor", "log", "scene", "sample"):
            self._add(table, self._read(table))
        pictures = self._read("sample_data", lambda row: self._channel(row) in self.cameras)
        posed = {row["ego_pose_token"] for row in pictures if isinstance(row.get("ego_pose_token"), str)}
        self._add("ego_pose", self._read("ego_pose", lambda row: row["token"] in posed))
        self._add("sample_data", pictures)
        for table in ("instance", "sample_annotation"):
            self._add(table, self._read(table))

    def faults(self) -> Iterator[Fault]:
        """What is wrong, and with which scene and camera."""
        for table, row, reason in self._broken:
            yield Fault(reason, self._scene(table, row), self._channel(row) if table == "sample_data" else "")

    def _read(self, table: str, keep: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        fields = ("token", *FIELDS[table])
        rows = read_rows(self.folder / f"{table}.json")
        return [{name: _shared(row[name]) for name in fields if name in row} for row in rows if keep(row)]

    def _add(self, table: str, rows: list[Row]) -> None:
        known, bad = self._known.setdefault(table, {}), self._bad.setdefault(table, {})
        good = self.good[table] = []
        for row in rows:
            token, reason = row["token"], self._reason(table, row)
            if token in known:
                reason = f"{table} {token}: two rows have this token"
            elif reason is not None:
                bad[token] = reason
            known.setdefault(token, row)
            if reason is None:
                good.append(row)
            elif table in REPORTED:
                self._broken.append((table, row, reason))

    def _reason(self, table: str, row: Row) -> str | None:
        """What is wrong with a row, or with one that it leads to."""
        for name, (is_right, expected) in FIELDS[table].items():
            if name not in row:
                return f"{table} {row['token']}: {name} is missing"
            if not is_right(row[name]):
                return f"{table} {row['token']}: {name} is {str(row[name])[:60]!r}, expected {expected}"
        for name, target in LEADS_TO.get(table, {}).items():
            token = row[name]
            if token in self._bad[target]:
                return self._bad[target][token]
            if token not in self._known[target] and not (token == "" and target == "visibility"):
                return f"{table} {row['token']}: {name} {token!r} is not in {target}"
        return None

    def _find(self, table: str, token: Any) -> Row:
        """A row, broken perhaps, or an empty one."""
        return self._known[table].get(token, {}) if isinstance(token, str) else {}

    def _channel(self, row: Row) -> str:
        """The sensor of a row of sample_data; where its calibration is lost, the folder of the file tells."""
        calibration = self._find("calibrated_sensor", row.get("calibrated_sensor_token"))
        if sensor := self._find("sensor", calibration.get("sensor_token")):
            return str(sensor.get("channel"))
        folders = str(row.get("filename")).split("/")
        return next((camera for camera in self.cameras if camera in folders), "")

    def _scene(self, table: str, row: Row) -> str:
        """Token of the scene that a row leads to; where it leads to none, that of its neighbours in time."""
        if found := self._own_scene(table, row):
            return found
        if table == "sample_annotation":
            return self._scene_of_instance.get(str(row.get("instance_token")), "")
        near = (self._find(table, row.get(link)) for link in ("prev", "next"))
        return next((found for other in near if (found := self._own_scene(table, other))), "")

    def _own_scene(self, table: str, row: Row) -> str:
        if table == "scene":
            return row["token"]
        if table == "sample":
            return self._find("scene", row.get("scene_token")).get("token", "")
        sample = self._find("sample", row.get("sample_token"))
        return self._scene("sample", sample) if sample else ""

    @cached_property
    def _scene_of_instance(self) -> dict[str, str]:
        rows = self.good["sample_annotation"]
        return {row["instance_token"]: self._own_scene("sample_annotation", row) for row in rows}


def _shared(value: Any) -> Any:
    """Tokens come in several tables; one copy of each is enough."""
    return sys.intern(value) if type(value) is str else value
