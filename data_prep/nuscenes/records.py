"""The JSON tables of a nuScenes version: which there are, what a row must have, and how to read one of any size."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from drivesim.errors import UserError

LARGEST = 1e18  # of any number; time stamps come near 1e16
CHUNK = 1 << 20  # characters read at a time
_BETWEEN = re.compile(r"[\s,]*")

Row = dict[str, Any]
Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and -LARGEST < value < LARGEST  # neither NaN nor infinite


def _numbers(count: int) -> Check:
    return lambda value: isinstance(value, list) and len(value) == count and all(map(_number, value))


def _turn(value: Any) -> bool:
    return _numbers(4)(value) and any(value)


def _size(value: Any) -> bool:
    return _numbers(3)(value) and min(value) > 0


def _intrinsics(value: Any) -> bool:
    """3x3 with focal lengths above 0, or empty, as it is for sensors that are no cameras."""
    square = isinstance(value, list) and len(value) == 3 and all(map(_numbers(3), value))
    return value == [] or (square and value[0][0] > 0 and value[1][1] > 0)


def _inside(value: Any) -> bool:
    """A path that stays within the root, as far as its letters tell. Links are the user's own business."""
    path = PurePosixPath(value) if _text(value) and value.isprintable() else PurePosixPath("..")
    return path.parts != () and not path.is_absolute() and ".." not in path.parts


TEXT = (_text, "text")
PLACE = (_numbers(3), "three numbers")
TURN = (_turn, "a quaternion")
TIME = (_number, "a time stamp")
SIDE = (lambda value: _number(value) and value > 0, "a number of pixels")

# What is used of each table, and what it must look like: github.com/nutonomy/nuscenes-devkit, docs/schema_nuscenes.md.
FIELDS: dict[str, dict[str, tuple[Check, str]]] = {
    "category": {"name": TEXT},
    "visibility": {"level": TEXT},
    "sensor": {"channel": TEXT, "modality": TEXT},
    "calibrated_sensor": {
        "sensor_token": TEXT,
        "translation": PLACE,
        "rotation": TURN,
        "camera_intrinsic": (_intrinsics, "3x3 numbers, or an empty list"),
    },
    "ego_pose": {"translation": PLACE, "rotation": TURN},
    "log": {"location": TEXT},
    "scene": {"name": TEXT, "description": TEXT, "log_token": TEXT},
    "sample": {"scene_token": TEXT, "timestamp": TIME, "prev": TEXT, "next": TEXT},
    "sample_data": {
        "sample_token": TEXT,
        "ego_pose_token": TEXT,
        "calibrated_sensor_token": TEXT,
        "filename": (_inside, "a path within root, without '..'"),
        "width": SIDE,
        "height": SIDE,
        "timestamp": TIME,
        "is_key_frame": (lambda value: isinstance(value, bool), "true or false"),
        "prev": TEXT,
        "next": TEXT,
    },
    "instance": {"category_token": TEXT},
    "sample_annotation": {
        "sample_token": TEXT,
        "instance_token": TEXT,
        "visibility_token": TEXT,  # empty where nobody looked
        "translation": PLACE,
        "size": (_size, "three numbers above 0"),
        "rotation": TURN,
    },
}
TABLES = (*FIELDS, "attribute", "map")
# Which table a token leads to. `prev` and `next` are followed where a scene is read (drive.py).
LEADS_TO = {
    "calibrated_sensor": {"sensor_token": "sensor"},
    "scene": {"log_token": "log"},
    "sample": {"scene_token": "scene"},
    "sample_data": {
        "sample_token": "sample",
        "ego_pose_token": "ego_pose",
        "calibrated_sensor_token": "calibrated_sensor",
    },
    "instance": {"category_token": "category"},
    "sample_annotation": {"sample_token": "sample", "instance_token": "instance", "visibility_token": "visibility"},
}


def check_folder(root: Path, version: str) -> Path:
    """The folder of the tables. raises UserError if it is not there, or a table is missing, empty or cut off"""
    folder = root / version
    if not folder.is_dir() or not version:
        found = sorted(path.parent.name for path in root.glob("*/scene.json"))
        have = f"has the tables of {', '.join(found)}" if found else "has no folder with a scene.json"
        raise UserError(f"root={root} {have}; expected {folder}: give nuscenes.version, and as root the folder above")
    for table in TABLES:
        path = folder / f"{table}.json"
        if not path.is_file():
            raise UserError(
                f"{path} is missing; {folder} must hold the {len(TABLES)} tables of nuScenes, unpack it anew"
            )
        with open(path, "rb") as file:
            head = file.read(64).lstrip()
            file.seek(max(0, path.stat().st_size - 64))
            tail = file.read().rstrip()
        if not head.startswith(b"[") or not tail.endswith(b"]"):
            raise _unreadable(path, "it does not begin with [ and end with ]")
    return folder


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table, one after the other: the largest has millions, of which only a few are wanted.

    raises  UserError if the file is no JSON list of rows with tokens
    """
    decode = json.JSONDecoder().raw_decode
    try:
        with open(path, encoding="utf-8") as file:
            text, at = file.read(CHUNK).lstrip()[1:], 0
            while True:
                at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
                if text.startswith("]", at):
                    return
                try:
                    row, at = decode(text, at)
                except json.JSONDecodeError:
                    more = file.read(max(CHUNK, len(text)))  # most likely the row goes on beyond what was read
                    if not more:
                        raise
                    text, at = text[at:] + more, 0
                    continue
                if not isinstance(row, dict) or not isinstance(row.get("token"), str):
                    raise ValueError(f"{str(row)[:60]} is no row with a token")
                yield row
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not readable ({reason}); expected a JSON list of rows, unpack the table anew")
