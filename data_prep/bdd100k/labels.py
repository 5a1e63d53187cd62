"""The JSON files of BDD100K: weather and time of day, speed, and boxes by track.

Label files are lists of frames in the Scalabel format (https://doc.scalabel.ai/format.html), or objects that hold such
a list under "frames".
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.annotations import Instant
from data_prep.source import NAN, Box
from drivesim.checks import number
from drivesim.errors import UserError

WEATHER = {
    "clear": "clear",
    "partly cloudy": "cloudy",
    "overcast": "cloudy",
    "rainy": "rain",
    "snowy": "snow",
    "foggy": "fog",
}  # "undefined" is unknown
NIGHT = {"daytime": 0.0, "dawn/dusk": 0.5, "night": 1.0}
# Names of the tracking set of 2020, then those of the sets before it. A train, "other vehicle", a traffic light and a
# sign are none of the classes.
CLASSES = {
    "car": "car",
    "truck": "truck",
    "trailer": "truck",
    "bus": "bus",
    "pedestrian": "pedestrian",
    "other person": "pedestrian",
    "person": "pedestrian",
    "rider": "cyclist",
    "bicycle": "cyclist",
    "motorcycle": "cyclist",
    "bike": "cyclist",
    "motor": "cyclist",
}
CYCLES = ("bicycle", "motorcycle", "bike", "motor")
_LIST = re.compile(r'\s*(?:\{.*?"frames"\s*:\s*)?\[', re.DOTALL)
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Sky:
    """weather: one of drivesim.data.schema.WEATHERS or empty; night: 0 day .. 1 night or NaN."""

    weather: str = ""
    night: float = NAN


def sky_of(attributes: Any) -> Sky:
    """What the attributes of a frame, {"weather": ..., "timeofday": ...}, say."""
    if not isinstance(attributes, dict):
        return Sky()
    return Sky(WEATHER.get(str(attributes.get("weather")), ""), NIGHT.get(str(attributes.get("timeofday")), NAN))


def read_skies(path: Path) -> dict[str, Sky]:
    """Video -> sky, from the labels of one split: a list of frames, one of each video.

    raises  UserError if it cannot be read
    """
    frames = _elements(path)
    return {Path(str(frame.get("name"))).stem: sky_of(frame.get("attributes")) for frame in frames}


def read_sky(path: Path) -> Sky:
    """From the label file that the sets before 2020 have for each video. raises UserError if it cannot be read"""
    content = _content(path)
    return sky_of(content.get("attributes") if isinstance(content, dict) else None)


def read_speed(path: Path) -> list[Instant]:
    """Speeds of one video, seconds after its begin. raises UserError if the file cannot be read"""
    content = _object(_content(path), str(path))
    start = number(content.get("startTime"), f"{path}: startTime")  # milliseconds
    instants = []
    for i, entry in enumerate(_list(content.get("locations") or content.get("gps"), f"{path}: locations")):
        place = _object(entry, f"{path}: location {i}")
        time_s = (number(place.get("timestamp"), f"{path}: location {i}: timestamp") - start) / 1000
        speed = number(place.get("speed"), f"{path}: location {i}: speed")
        if speed >= 0:  # -1 where the phone had no fix
            instants.append(Instant(time_s, labels={"speed_mps": speed}))
    return sorted(instants, key=lambda instant: instant.time_s)


def read_tracks(path: Path, size: tuple[int, int]) -> dict[str, list[Box]]:
    """Picture -> its boxes, as fractions of pictures of `size` (height, width).

    Visibility is unknown: the labels say whether an object is occluded, not how much. Boxes of crowds are left out.
    raises  UserError naming file, picture and label of what is wrong
    """
    content = _content(path)
    entries = _list(content.get("frames") if isinstance(content, dict) else content, f"{path}: frames")
    frames = [_object(frame, f"{path}: frame {i}") for i, frame in enumerate(entries)]
    numbers: dict[str, int] = {}
    return {Path(str(frame.get("name"))).name: _boxes(frame, path, size, numbers) for frame in frames}


def _boxes(frame: dict[str, Any], path: Path, size: tuple[int, int], numbers: dict[str, int]) -> list[Box]:
    """numbers: identity -> track, of the whole video; identities are texts, tracks of a clip are numbers."""
    boxes: list[tuple[str, Box]] = []
    picture = f"{path}: {frame.get('name')}"
    for i, entry in enumerate(_list(frame.get("labels"), f"{picture}: labels")):
        where = f"{picture}, label {i}"
        label = _object(entry, where)
        category, traits = str(label.get("category")), _object(label.get("attributes") or {}, f"{where}: attributes")
        if category not in CLASSES or label.get("box2d") is None or traits.get("crowd") or traits.get("Crowd"):
            continue
        track = numbers.setdefault(str(label.get("id")), len(numbers))
        boxes.append((category, Box(track, CLASSES[category], _corners(label["box2d"], where, size))))
    return _with_riders(boxes)


def _corners(box: Any, where: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    given = _object(box, f"{where}: box2d")
    x1, y1, x2, y2 = (number(given.get(key), f"{where}: {key}") for key in ("x1", "y1", "x2", "y2"))
    if x2 < x1 or y2 < y1:
        raise UserError(f"{where}: x1,y1,x2,y2 are {[x1, y1, x2, y2]}; expected x1 <= x2 and y1 <= y2")
    height, width = size
    return x1 / width, y1 / height, x2 / width, y2 / height


def _with_riders(boxes: Sequence[tuple[str, Box]]) -> list[Box]:
    """One box for a rider and what he rides, as other data sets have it; they are two in BDD100K.

    A rider takes the cycle that his box covers most of; a cycle without a rider stays.
    """
    kept = {box.track: box for category, box in boxes if category != "rider"}
    cycles = [box for category, box in boxes if category in CYCLES]
    for rider in [box for category, box in boxes if category == "rider"]:
        near = max(cycles, key=lambda cycle: _overlap(rider, cycle), default=None)
        if near is not None and _overlap(rider, near) > 0:
            cycles.remove(near)
            del kept[near.track]
            (ax, ay, bx, by), (cx, cy, dx, dy) = rider.xyxy, near.xyxy
            rider = replace(rider, xyxy=(min(ax, cx), min(ay, cy), max(bx, dx), max(by, dy)))
        kept[rider.track] = rider
    return list(kept.values())


def _overlap(a: Box, b: Box) -> float:
    """Area of the intersection."""
    width = min(a.xyxy[2], b.xyxy[2]) - max(a.xyxy[0], b.xyxy[0])
    height = min(a.xyxy[3], b.xyxy[3]) - max(a.xyxy[1], b.xyxy[1])
    return max(width, 0.0) * max(height, 0.0)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object, found {str(value)[:40]!r}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    """Nothing is an empty list, as in the Scalabel format."""
    if value is not None and not isinstance(value, list):
        raise UserError(f"{where}: expected a list, found {str(value)[:40]!r}")
    return value or []


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); unpack it again or leave it out") from error


def _elements(path: Path) -> Iterator[dict[str, Any]]:
    """The frames of a label file one by one: those of 70,000 videos take 1.3 GiB when parsed at once, so 0.5 GiB."""
    try:
        text = path.read_text(encoding="utf-8")
        if (begin := _LIST.match(text)) is None:
            raise ValueError("no list of frames")
        at, decode = _BETWEEN.match(text, begin.end()).end(), json.JSONDecoder().raw_decode  # type: ignore[union-attr]
        while text[at : at + 1] != "]":
            frame, at = decode(text, at)
            if isinstance(frame, dict):
                yield frame
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); unpack it again or leave it out") from error
