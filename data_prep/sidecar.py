"""Boxes and labels in a file beside a video, as docs/videos.md describes: drive.boxes.json or .csv for drive.mp4.

The format is that of layout files (docs/layout_file.md) with more fields, so every layout file is a sidecar too.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.annotations import Annotations, Instant
from data_prep.source import NAN, Box
from drivesim.checks import check_keys, label_or_nan, number
from drivesim.classes import CLASSES
from drivesim.data.schema import WEATHERS
from drivesim.data.video import frame_times, iterate, probe
from drivesim.errors import UserError

SUFFIXES = (".boxes.json", ".boxes.csv")
UNITS = ("fractions", "pixels")
FILE_KEYS = ("fps", "unit", "licence", "weather", "caption", "night", "frames", "lens")
LABEL_RANGES = {
    "night": (0.0, 1.0),
    "crowdedness": (0.0, np.inf),
    "speed_mps": (0.0, np.inf),
    "travel_m": (-np.inf, np.inf),
    "heading_rad": (-np.inf, np.inf),
    "turn_rad_s": (-np.inf, np.inf),
    "steering_rad": (-np.inf, np.inf),
}
FRAME_KEYS = ("time_s", "frame", *LABEL_RANGES, "boxes")
CORNERS = ("x1", "y1", "x2", "y2")
CENTRE, SIZE = ("x_m", "y_m", "z_m"), ("length_m", "width_m", "height_m")
BOX_KEYS = ("track", "class", *CORNERS, "visibility", *CENTRE, *SIZE, "yaw")
COLUMNS = ("unit", "licence", "weather", "caption", *FRAME_KEYS[:-1], *BOX_KEYS)
TEXTS = ("unit", "licence", "weather", "caption", "class")  # columns that hold no number
UNKNOWN = "unknown"  # class of a CSV row that says "the boxes of this frame are not known"
DEFAULT_FPS = 30.0
MAX_TRACK = 2**31 - 1  # tracks are int32 in the clip store
LATE_S = 1.0  # a time this much after the end of the video is a mistake in the unit, not in the last digit


@dataclass(frozen=True)
class Sidecar:
    """What the file says; licence, weather and caption are empty where it does not say."""

    notes: Annotations
    licence: str
    weather: str
    caption: str


@dataclass(frozen=True)
class _Moment:
    """A frame as it is written, with a text for messages that says where."""

    where: str
    values: dict[str, Any]
    boxes: list[tuple[str, dict[str, Any]]] | None


@dataclass(frozen=True)
class _Video:
    """What the numbers of a sidecar are measured by. recorded: (height, width); 0 frames or seconds: not known."""

    path: Path
    recorded: tuple[int, int]
    seconds: float
    frames: int


def sidecar_of(video: Path) -> Path | None:
    """The file beside a video, None if there is none. raises UserError if there are two"""
    beside = [path for suffix in SUFFIXES if (path := video.with_name(video.stem + suffix)).exists()]
    if len(beside) > 1:
        raise UserError(f"{beside[0].name} and {beside[1].name} are both there; keep one of them")
    return beside[0] if beside else None


def read_sidecar(path: Path, video: Path, gap_s: float) -> Sidecar:
    """Read and check the sidecar of a video.

    gap_s   the longest pause between two boxes of a track that is bridged, seconds
    raises  UserError naming file, frame or line, and field of what is wrong, or if the video cannot be read
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text; save it as UTF-8") from error
    header, moments = _json(text, path.name) if path.suffix.lower() == ".json" else _csv(text, path.name)
    unit = _one_of(header.get("unit"), UNITS, f"{path.name}: unit") or UNITS[0]
    weather = _one_of(header.get("weather"), WEATHERS, f"{path.name}: weather")
    licence, caption = (_text(header.get(key), f"{path.name}: {key}") for key in ("licence", "caption"))
    night = label_or_nan(header.get("night"), f"{path.name}: night", 0, 1)
    instants = _instants(moments, _measured(video), unit == "pixels", path.name)
    return Sidecar(Annotations(instants, gap_s, night), licence, weather, caption)


def _measured(path: Path) -> _Video:
    frames = iterate(path)
    next(frames)
    return _Video(path, frames.shown.recorded, probe(path).duration_s, frames.promised)


def _json(text: str, name: str) -> tuple[dict[str, Any], list[_Moment]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not valid JSON ({error}); see docs/videos.md") from error
    check_keys(content, FILE_KEYS, name)
    if not isinstance(content.get("frames", []), list):
        raise UserError(f'{name}: expected "frames", a list; see docs/videos.md')
    fps = number(content.get("fps", DEFAULT_FPS), f"{name}: fps", 1e-3)
    moments = [_json_moment(frame, i, fps, name) for i, frame in enumerate(content.get("frames", []))]
    weathers = [_one_of(moment.values.get("weather"), WEATHERS, f"{moment.where}: weather") for moment in moments]
    content.setdefault("weather", next(filter(None, weathers), None))  # the store keeps one for a clip
    return content, moments


def _json_moment(frame: Any, index: int, fps: float, name: str) -> _Moment:
    where = f"{name}: frame {index}"
    check_keys(frame, (*FRAME_KEYS, "weather"), where)
    boxes = frame.get("boxes")
    if boxes is not None and not isinstance(boxes, list):
        raise UserError(f"{where}: boxes is {boxes!r}, expected a list")
    if frame.get("time_s") is None and frame.get("frame") is None:
        frame = frame | {"time_s": index / fps}
    named = None if boxes is None else [(f"{where}, box {count}", box) for count, box in enumerate(boxes)]
    return _Moment(where, frame, named)


def _csv(text: str, name: str) -> tuple[dict[str, Any], list[_Moment]]:
    """A table in any order of rows; what is said once for the file or a frame is taken from its first row."""
    reader = csv.DictReader(text.splitlines())
    found = list(reader.fieldnames or [])
    if unknown := [column for column in found if column not in COLUMNS]:
        raise UserError(f"{name}: line 1 has unknown {unknown[0]!r}; known: {','.join(COLUMNS)}")
    if not {"time_s", "frame"} & set(found):
        raise UserError(f"{name}: line 1 has neither time_s nor frame; known: {','.join(COLUMNS)}")
    rows = [(f"{name}: line {reader.line_num}", _csv_row(row, f"{name}: line {reader.line_num}")) for row in reader]
    groups: dict[tuple, list[tuple[str, dict[str, Any]]]] = {}
    for where, row in rows:
        groups.setdefault((row.get("time_s"), row.get("frame")), []).append((where, row))
    return (rows[0][1] if rows else {}), [_csv_moment(group) for group in groups.values()]


def _csv_row(row: dict[Any, Any], where: str) -> dict[str, Any]:
    """Numbers where they are readable as such; what is not is told by the check of its field."""
    if None in row:
        raise UserError(f"{where} has more values than line 1 has names; remove some")
    values: dict[str, Any] = {}
    for key, value in row.items():
        if value:
            try:
                values[key] = value if key in TEXTS else float(value)
            except ValueError:
                values[key] = value
    return values


def _csv_moment(rows: Sequence[tuple[str, dict[str, Any]]]) -> _Moment:
    where, first = rows[0]
    if first.get("class") == UNKNOWN:
        return _Moment(where, first, None)
    described = any(first.get(key) is not None for key in BOX_KEYS[2:])
    if "class" not in first and not described and len(rows) == 1:
        return _Moment(where, first, [])
    return _Moment(where, first, [(line, {key: row[key] for key in BOX_KEYS if key in row}) for line, row in rows])


def _instants(moments: Sequence[_Moment], video: _Video, pixels: bool, name: str) -> list[Instant]:
    """Checked, in order of time. raises UserError"""
    times = _times(moments, video)
    instants = [
        Instant(time, _boxes(moment, video, pixels), _labels(moment))
        for time, moment in zip(times, moments, strict=True)
        if np.isfinite(time)
    ]
    instants.sort(key=lambda instant: instant.time_s)
    for before, after in pairwise(instants):
        if before.time_s == after.time_s:
            raise UserError(f"{name}: two frames are at {after.time_s:g} s; join them")
    _check_classes(instants, name)
    return instants


def _times(moments: Sequence[_Moment], video: _Video) -> Iterator[float]:
    """Seconds of each moment; NaN for a frame in a part of the video that is lost."""
    numbered = any(moment.values.get("frame") is not None for moment in moments)
    begins = frame_times(video.path) if numbered else np.zeros(0)
    for moment in moments:
        time, frame = moment.values.get("time_s"), moment.values.get("frame")
        if time is not None:
            last = video.seconds + LATE_S if video.seconds else np.inf
            yield number(time, f"{moment.where}: time_s", 0, last)
            continue
        last = video.frames - 1 if video.frames else np.inf
        index = number(frame, f"{moment.where}: frame", 0, last)
        if index != int(index):
            raise UserError(f"{moment.where}: frame is {index:g}, expected a whole number")
        yield float(begins[int(index)]) if index < len(begins) else NAN


def _labels(moment: _Moment) -> dict[str, float]:
    labels = {
        name: label_or_nan(moment.values.get(name), f"{moment.where}: {name}", *limits)
        for name, limits in LABEL_RANGES.items()
    }
    return {name: value for name, value in labels.items() if not np.isnan(value)}


def _boxes(moment: _Moment, video: _Video, pixels: bool) -> list[Box] | None:
    if moment.boxes is None:
        return None
    boxes = [_box(box, where, video, pixels) for where, box in moment.boxes]
    tracks: set[int] = set()
    for (where, _), box in zip(moment.boxes, boxes, strict=True):
        if box.track in tracks:
            raise UserError(f"{where}: track {box.track} is there twice at one time; number objects 0, 1, 2 ...")
        tracks.add(box.track)
    return boxes


def _box(box: Any, where: str, video: _Video, pixels: bool) -> Box:
    check_keys(box, BOX_KEYS, where)
    track = number(box.get("track"), f"{where}: track", 0, MAX_TRACK)
    if track != int(track):
        raise UserError(f"{where}: track is {track:g}, expected a whole number")
    if box.get("class") not in CLASSES:
        raise UserError(f"{where}: class is {box.get('class')!r}, expected one of {', '.join(CLASSES)}")
    x, y, z = (label_or_nan(box.get(key), f"{where}: {key}") for key in CENTRE)
    length, width, height = (label_or_nan(box.get(key), f"{where}: {key}", 0) for key in SIZE)
    return Box(
        track=int(track),
        name=box["class"],
        xyxy=_corners(box, where, video.recorded, pixels),
        visibility=label_or_nan(box.get("visibility"), f"{where}: visibility", 0, 1),
        centre_m=(x, y, z),
        size_m=(length, width, height),
        yaw=label_or_nan(box.get("yaw"), f"{where}: yaw"),
    )


def _corners(
    box: dict[str, Any], where: str, recorded: tuple[int, int], pixels: bool
) -> tuple[float, float, float, float]:
    """Fractions; a box may reach over the edge, as an object does that is half in view."""
    height, width = recorded if pixels else (1, 1)
    given = [number(box.get(key), f"{where}: {key}") for key in CORNERS]
    x1, y1, x2, y2 = (value / side for value, side in zip(given, (width, height) * 2, strict=True))
    if x2 <= x1 or y2 <= y1:
        raise UserError(f"{where}: x1,y1,x2,y2 are {given}; expected x1 < x2 and y1 < y2")
    if x1 >= 1 or y1 >= 1 or x2 <= 0 or y2 <= 0:
        unit = (
            f"pixels of a picture of {width}x{height}" if pixels else 'fractions, 0 to 1 (for pixels say unit "pixels")'
        )
        raise UserError(f"{where}: x1,y1,x2,y2 are {given}, wholly outside the picture; expected {unit}")
    return x1, y1, x2, y2


def _check_classes(instants: Sequence[Instant], name: str) -> None:
    """An object stays what it is; two that share a number would be blended into each other."""
    seen: dict[int, str] = {}
    for instant in instants:
        for box in instant.boxes or ():
            if seen.setdefault(box.track, box.name) != box.name:
                found = f"{name}: track {box.track} is a {seen[box.track]}, and a {box.name} at {instant.time_s:g} s"
                raise UserError(f"{found}; give each object a number of its own")


def _text(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} is {value!r}, expected text")
    return " ".join((value or "").split())


def _one_of(value: Any, known: tuple[str, ...], where: str) -> str:
    if value is not None and value not in known:
        raise UserError(f"{where} is {value!r}, expected one of {', '.join(known)}")
    return value or ""
