"""Layouts from outside: JSON and CSV files (docs/layout_file.md), scenarios, or a stored clip, resampled to the video's
frames."""

import csv
import difflib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drivesim.checks import check_keys, label_or_nan, number
from drivesim.clip import CLASSES, NO_BOX, NO_WEATHER, SOLID, Camera, Layout
from drivesim.data.schema import WEATHERS
from drivesim.data.store import ClipStore, is_store
from drivesim.errors import UserError
from drivesim.files import atomic_path

SUFFIXES = (".json", ".csv")
FILE_KEYS = ("fps", "frames", "lens")
LENS_KEYS = ("fx", "fy", "cx", "cy")
LABEL_KEYS = {
    "night": "night",
    "crowdedness": "crowdedness",
    "travel_m": "travel",
    "heading_rad": "heading",
    "speed_mps": "speed",
    "turn_rad_s": "turn",
    "steering_rad": "steering",
}  # -> Layout
FRAME_KEYS = ("time_s", *LABEL_KEYS, "weather", "boxes")
CORNERS = ("x1", "y1", "x2", "y2")
BOX_KEYS = ("track", "class", *CORNERS)
COLUMNS = (*FRAME_KEYS[:-1], *BOX_KEYS, *SOLID)
ALWAYS = ("time_s", "night", "crowdedness", "travel_m", "heading_rad", *BOX_KEYS)  # columns that are always written
# What a file of boxes beside a video (docs/videos.md) says more. It is a layout too; night and weather are those of
# frames that do not say, the other fields steer nothing.
VIDEO_FILE_KEYS = ("unit", "licence", "weather", "caption", "night")
VIDEO_BOX_KEYS = ("visibility", "x_m", "y_m")
UNKNOWN = "unknown"  # class of a CSV row that says "the boxes of this frame are not known"
RANGES = {"night": (0, 1), "crowdedness": (0,), "length_m": (0,), "width_m": (0,), "height_m": (0,)}  # least, most
DEFAULT_FPS = 30.0
MAX_TRACK = 2**31 - 1  # tracks are int32 in the clip store
SLACK_S = 1e-3  # times are often written with three decimals


@dataclass(frozen=True)
class Lens:
    """A pinhole camera without a size: focal lengths and principal point as fractions of the picture's width (x) and
    height (y)."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class TimedLayout:
    """A layout whose frames have times of their own.

    layout   [T] frames, with as many slots as the fullest frame needs
    times_s  [T] increasing seconds; 0 is the first frame of the video to make
    frame_s  how long the last frame lasts, seconds
    source   where it comes from, for messages
    keep_largest  leave out the smallest boxes when there are more than slots, as training does; else refuse
    names    of tracks, where the slots of each frame are in order of priority: the first are kept, a line says which
             are left out
    lens     that the boxes were seen through; None where it is not known
    """

    layout: Layout
    times_s: np.ndarray
    frame_s: float
    source: str
    keep_largest: bool = False
    names: Mapping[int, str] | None = None
    lens: Lens | None = None

    def check(self, seconds: float, slots: int) -> "TimedLayout":
        """What is to be sampled of it. raises UserError if it ends before `seconds`, or a frame holds more boxes than
        `slots`, unless it is known which to leave out"""
        covered = max(0.0, float(self.times_s[-1]) + self.frame_s)
        if covered + SLACK_S < seconds:
            frames = int((self.times_s > -self.frame_s).sum())
            found = f"{self.source} has {frames} frames, {covered:.2f} s"
            raise UserError(f"{found}; {seconds:g} s were asked for: lower seconds or give more frames")
        counts = (self.layout.classes != NO_BOX).sum(-1)
        if self.names is not None and int(counts.max()) > slots:
            print(f"drivesim: {self.source}: {self.left_out(slots)}", file=sys.stderr)
            return replace(self, layout=self.layout.first(slots))
        if not self.keep_largest and int(counts.max()) > slots:
            frame = int(counts.argmax())
            found = f"{self.source}: frame {frame} has {int(counts[frame])} boxes"
            raise UserError(f"{found}, the model takes {slots}; remove some")
        return self

    def sample(self, seconds: float, fps: float, slots: int) -> Layout:
        """[round(seconds * fps)] frames at 0, 1/fps, 2/fps, ... with `slots` slots each. raises UserError (`check`)"""
        layout = self.check(seconds, slots).layout
        at = np.arange(round(seconds * fps)) / fps
        return resample(layout, self.times_s, at).pad(slots)

    def left_out(self, slots: int) -> str:
        """One line: which tracks are left out where by a model that takes `slots` boxes, beside those it keeps."""
        frames: dict[int, list[int]] = {}
        for t, slot in torch.nonzero(self.layout.classes[:, slots:] != NO_BOX).tolist():
            frames.setdefault(int(self.layout.tracks[t, slots + slot]), []).append(t)
        if not frames:
            return f"no frame has more than {slots} boxes"
        told = [
            f"{(self.names or {}).get(track, f'track {track}')} in {_runs(at)}" for track, at in sorted(frames.items())
        ]
        return (
            f"the model takes {slots} boxes a frame; left out: {', '.join(told)}; raise the priority of what must stay"
        )


def load_layout(spec: str, seconds: float, fps: float, slots: int) -> Layout | None:
    """The layout that `spec` asks for, [round(seconds * fps)] frames; None for "none". See `read_layout`."""
    timed = read_layout(spec)
    return None if timed is None else timed.sample(seconds, fps, slots)


def read_layout(spec: str) -> TimedLayout | None:
    """Read "none", a .json or .csv file, a scenario (a .yaml file, or a name of the library), or STORE:CLIP[:START_S],
    a stored clip from its second START_S on.

    raises  UserError naming file, frame and track of what is wrong
    """
    if spec == "none":
        return None
    from drivesim.scenarios import build, files  # whose bases are read here in turn

    path = Path(spec)
    if path.suffix.lower() in SUFFIXES:
        return _read_file(path)
    if files.find(spec):
        return build.build(spec).timed()
    if ":" in spec:
        return _read_clip(spec)
    expected = "expected a .json or .csv file, a scenario (.yaml, or its name), STORE:CLIP[:START_S], or none"
    raise UserError(f"layout {spec}: {expected}; {files.unknown(spec)}")


def save_layout(layout: Layout, fps: float, path: Path | str, lens: Lens | None = None) -> Path:
    """Write a layout [T] of `fps` frames a second as .json or .csv; `read_layout` gives it back exactly.

    lens    that the boxes were seen through, which a .csv does not hold

    raises  UserError for another suffix
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"layout {path}: expected a name that ends in .json or .csv")
    if path.suffix.lower() == ".json":
        return stream_layout([layout], fps, path, lens)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = [row for frame in _frame_dicts([layout], fps) for row in _csv_rows(frame)]
        said = {*ALWAYS, *(key for row in rows for key in row)}
        writer = csv.DictWriter(file, [column for column in COLUMNS if column in said])
        writer.writeheader()
        writer.writerows(rows)
    return path


def stream_layout(portions: Iterable[Layout], fps: float, path: Path, lens: Lens | None = None) -> Path:
    """Write layouts [T] that follow each other as one .json file, one of them in memory at a time."""
    head = json.dumps({"fps": fps} | ({} if lens is None else {"lens": asdict(lens)}))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(head[:-1] + ', "frames": [')
        for number, frame in enumerate(_frame_dicts(portions, fps)):
            file.write((", " if number else "") + json.dumps(frame, allow_nan=False))
        file.write("]}")
    return path


def _runs(numbers: list[int]) -> str:
    """Rising frame numbers for people: frames 3-9, 12."""
    ends = [i for i in range(len(numbers)) if i + 1 == len(numbers) or numbers[i + 1] > numbers[i] + 1]
    runs = [(numbers[begin], numbers[end]) for begin, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]
    return "frames " + ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def resample(layout: Layout, times_s: np.ndarray, at_s: np.ndarray) -> Layout:
    """The layout at other times: boxes move linearly where a track is in both neighbours, else the nearer one holds;
    so does the weather.

    layout [S], times_s [S] increasing, at_s [T]; before the first and after the last time the end frame holds
    """
    if len(times_s) == 1:
        return layout[torch.zeros(len(at_s), dtype=torch.long)]
    after = np.searchsorted(times_s, at_s, side="right").clip(1, len(times_s) - 1)
    share = (at_s - times_s[after - 1]) / (times_s[after] - times_s[after - 1])
    share = share.clip(0, 1)  # 0 at the frame before, 1 at the frame after
    near, far = (
        layout[torch.from_numpy(np.where(share <= 0.5, *pair))] for pair in ((after - 1, after), (after, after - 1))
    )
    pull = torch.from_numpy(np.minimum(share, 1 - share)).float()  # weight of the farther frame

    same = (near.tracks[:, :, None] == far.tracks[:, None, :]) & (near.classes[:, :, None] == far.classes[:, None, :])
    same &= near.classes[:, :, None] != NO_BOX  # [T, N, N]
    partner, both = same.int().argmax(-1)[..., None], same.any(-1)[..., None]
    far_boxes, far_solids = (
        t.gather(1, partner.expand(*near.classes.shape, t.shape[-1])) for t in (far.boxes, far.solids)
    )
    boxes = torch.where(both, torch.lerp(near.boxes, far_boxes, pull[:, None, None]), near.boxes)
    change = far_solids - near.solids
    change[..., -1] = (change[..., -1] + math.pi) % (2 * math.pi) - math.pi  # a yaw goes the short way round
    change = change.masked_fill(~both | change.isnan(), 0)

    def blend(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(b.isnan(), a, torch.lerp(a, b, pull))

    labels = {name: blend(getattr(near, name), getattr(far, name)) for name in LABEL_KEYS.values()}
    return replace(near, boxes=boxes, solids=near.solids + pull[:, None, None] * change, **labels)


def _read_clip(spec: str) -> TimedLayout:
    root, clip, start_s = split_clip(spec)
    store = ClipStore(root)
    if clip not in store.index.index:
        close = difflib.get_close_matches(clip, store.clips(), n=3) or store.clips()[:3]
        raise UserError(f"layout {spec}: {root} has no clip {clip!r}; try {', '.join(close)}")
    info = store.index.loc[clip]
    times = np.arange(int(info.frames)) / info.fps - start_s
    if not 0 <= start_s < info.frames / info.fps:
        raise UserError(f"layout {spec}: start {start_s:g} s lies outside the clip of {info.frames / info.fps:.2f} s")
    if not info.has_boxes:
        print(f"drivesim: layout {spec}: the clip has no boxes; only its other labels are used", file=sys.stderr)
    fullest = int(store.boxes(clip).groupby("frame").size().max() if len(store.boxes(clip)) else 1)
    lens = lens_of(store.camera(clip))
    return TimedLayout(store.layout(clip, fullest), times, 1 / info.fps, f"layout {spec}", True, lens=lens)


def lens_of(camera: Camera) -> Lens | None:
    """None where the intrinsics are not known."""
    (fx, _, cx), (_, fy, cy) = camera.intrinsics[:2].tolist()
    lens = Lens(fx / camera.width, fy / camera.height, cx / camera.width, cy / camera.height)
    return lens if all(map(math.isfinite, astuple(lens))) else None


def split_clip(spec: str) -> tuple[str, str, float]:
    """STORE:CLIP[:START_S]; a clip may be called 0001 and a folder may hold colons, so the store on disk decides."""
    root, _, clip = spec.rpartition(":")
    head, _, name = root.rpartition(":")
    try:
        start_s = float(clip)
    except ValueError:
        return root, clip, 0.0
    if not head or is_store(root):
        return root, clip, 0.0
    return head, name, start_s


def _read_file(path: Path) -> TimedLayout:
    source = f"layout {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        fps, lens, frames = _parse_json(text, source) if path.suffix.lower() == ".json" else _parse_csv(text, source)
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist; give a .json or .csv file, STORE:CLIP[:START_S], or none") from error
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); give a .json or .csv file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text; save it as UTF-8") from error
    if not frames:
        raise UserError(f"{source} has no frames; give at least one")
    return replace(_build(frames, fps, source), lens=lens)


def _parse_json(text: str, source: str) -> tuple[float, Lens | None, list[Any]]:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{source} is not valid JSON ({error}); see docs/layout_file.md") from error
    check_keys(content, FILE_KEYS + VIDEO_FILE_KEYS, source)
    if content.get("unit", "fractions") != "fractions":
        raise UserError(f"{source}: unit is {content['unit']!r}; a layout has no size of its own, give fractions")
    if not isinstance(content.get("frames"), list):
        raise UserError(f'{source}: expected "frames", a list; see docs/layout_file.md')
    fps = number(content.get("fps", DEFAULT_FPS), f"{source}: fps", 0)
    if fps == 0:
        raise UserError(f"{source}: fps is 0, expected more than 0")
    for i, frame in enumerate(content["frames"]):
        check_keys(frame, FRAME_KEYS, f"{source}: frame {i}")
        frame.setdefault("time_s", i / fps)
        frame.setdefault("night", content.get("night"))
        frame.setdefault("weather", content.get("weather"))
    return fps, _parse_lens(content.get("lens"), f"{source}: lens"), content["frames"]


def _parse_lens(value: Any, where: str) -> Lens | None:
    if value is None:
        return None
    check_keys(value, LENS_KEYS, where)
    lens = Lens(*(number(value.get(key), f"{where}: {key}") for key in LENS_KEYS))
    if min(lens.fx, lens.fy) <= 0:
        raise UserError(f"{where}: fx is {lens.fx:g} and fy {lens.fy:g}, expected more than 0")
    return lens


def _parse_csv(text: str, source: str) -> tuple[float, Lens | None, list[dict]]:
    reader = csv.DictReader(text.splitlines())
    found = list(reader.fieldnames or [])
    missing = [name for name in ("time_s", *BOX_KEYS) if name not in found]
    if missing or (unknown := [name for name in found if name not in COLUMNS]):
        wrong = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(map(repr, unknown))}"
        raise UserError(f"{source}: the first line {wrong}; expected {','.join(COLUMNS)}")
    try:
        rows = [(float(row["time_s"]), row) for row in reader]
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: line {reader.line_num}: time_s is no number; give seconds") from error
    groups = [(time, [row for _, row in rows]) for time, rows in groupby(rows, key=lambda pair: pair[0])]
    return DEFAULT_FPS, None, [_csv_frame(i, time, group, source) for i, (time, group) in enumerate(groups)]


def _csv_frame(index: int, time_s: float, rows: list[dict], source: str) -> dict:
    """The frame that a group of CSV rows describes, shaped like one of the JSON file."""

    def value(row: dict, key: str) -> Any:
        try:
            return float(row[key]) if row.get(key) else None
        except ValueError:
            return row[key]  # told by the check that JSON values go through

    frame = {"time_s": time_s} | {key: value(rows[0], key) for key in LABEL_KEYS}
    frame["weather"] = rows[0].get("weather") or None
    if any(None in row for row in rows):
        raise UserError(f"{source}: frame {index} has a line with more than {len(COLUMNS)} values; remove some")
    if rows[0]["class"] == UNKNOWN:
        return frame
    boxes = [row for row in rows if row["class"]]
    keys = BOX_KEYS + SOLID
    return frame | {"boxes": [{k: row[k] if k == "class" else value(row, k) for k in keys} for row in boxes]}


def _build(frames: list[dict], fps: float, source: str) -> TimedLayout:
    """Check every number and put the frames into tensors; boxes that reach over the edge are clipped, with a line."""
    boxes = [list(_boxes(frame.get("boxes"), f"{source}: frame {i}")) for i, frame in enumerate(frames)]
    layout = Layout.unknown(len(frames), slots=max(1, *map(len, boxes), 1))
    times, clipped = np.zeros(len(frames)), 0
    for i, frame in enumerate(frames):
        where = f"{source}: frame {i}"
        times[i] = number(frame["time_s"], f"{where}: time_s", 0)
        for key, name in LABEL_KEYS.items():
            getattr(layout, name)[i] = label_or_nan(frame.get(key), f"{where}: {key}", *RANGES.get(key, ()))
        layout.weather[i] = weather_number(frame.get("weather"), f"{where}: weather")
        layout.known[i] = frame.get("boxes") is not None
        for slot, (track, kind, corners, solid) in enumerate(boxes[i]):
            inside = np.clip(corners, 0, 1)
            clipped += bool((inside != corners).any())
            layout.boxes[i, slot] = torch.from_numpy(inside)
            layout.classes[i, slot], layout.tracks[i, slot] = kind, track
            layout.solids[i, slot] = torch.tensor(solid)
    if times[0] > SLACK_S:
        raise UserError(f"{source}: frame 0 is at {times[0]:g} s; the first must be at 0, where the video starts")
    if (late := np.flatnonzero(np.diff(times) <= 0)).size:
        i = int(late[0]) + 1
        raise UserError(
            f"{source}: frame {i} is at {times[i]:g} s, not after frame {i - 1} at {times[i - 1]:g} s; sort them"
        )
    if clipped:
        print(
            f"drivesim: {source}: {clipped} boxes reach over the edge and are clipped to the picture", file=sys.stderr
        )
    return TimedLayout(layout, times, 1 / fps, source)


def weather_number(value: Any, where: str) -> int:
    """The place of a word among WEATHERS, NO_WEATHER for None. raises UserError for any other"""
    if value is None:
        return NO_WEATHER
    if value not in WEATHERS:
        raise UserError(f"{where} is {value!r}, expected one of {', '.join(WEATHERS)}")
    return WEATHERS.index(value)


def _boxes(boxes: Any, where: str) -> Iterator[tuple[int, int, np.ndarray, list[float]]]:
    """(track, class index, corners [4], SOLID) of each box of a frame; none where the boxes are not known."""
    if boxes is not None and not isinstance(boxes, list):
        raise UserError(f"{where}: boxes is {boxes!r}, expected a list")
    tracks = set()
    for i, box in enumerate(boxes or []):
        check_keys(box, BOX_KEYS + SOLID + VIDEO_BOX_KEYS, f"{where}: box {i}")
        track = number(box.get("track"), f"{where}: box {i}: track", 0, MAX_TRACK)
        here = f"{where}: track {track:g}"
        if track != int(track) or track in tracks:
            raise UserError(
                f"{here} is {'not whole' if track != int(track) else 'there twice'}; number objects 0, 1, 2 ..."
            )
        tracks.add(track)
        if box.get("class") not in CLASSES:
            raise UserError(f"{here}: unknown class {box.get('class')!r}; known: {', '.join(CLASSES)}")
        corners = np.array([number(box.get(key), f"{here}: {key}") for key in CORNERS], np.float32)
        x1, y1, x2, y2 = corners
        if x2 <= x1 or y2 <= y1:
            raise UserError(f"{here}: size {x2 - x1:g} x {y2 - y1:g} is not positive; expected x1 < x2 and y1 < y2")
        if x1 >= 1 or y1 >= 1 or x2 <= 0 or y2 <= 0:
            raise UserError(
                f"{here}: wholly outside the picture; corners are fractions of its width and height, 0 to 1"
            )
        solid = [label_or_nan(box.get(key), f"{here}: {key}", *RANGES.get(key, ())) for key in SOLID]
        yield int(track), CLASSES.index(box["class"]), corners, solid


def _frame_dicts(portions: Iterable[Layout], fps: float) -> Iterator[dict]:
    """Every frame of layouts [T] that follow each other, as the JSON file holds it."""
    frames = (layout[t] for layout in portions for t in range(layout.num_frames))
    return (_frame_dict(frame, number / fps) for number, frame in enumerate(frames))


def _frame_dict(frame: Layout, time_s: float) -> dict:
    """One frame (no leading dimension) as the JSON file holds it."""
    labels = {key: float(getattr(frame, name)) for key, name in LABEL_KEYS.items()}
    labels = {key: value for key, value in labels.items() if not math.isnan(value)}
    weather = {} if frame.weather == NO_WEATHER else {"weather": WEATHERS[int(frame.weather)]}
    boxes = [
        {
            "track": int(track),
            "class": CLASSES[kind],
            **dict(zip(CORNERS, map(float, box), strict=True)),
            **{key: value for key, value in zip(SOLID, solid.tolist(), strict=True) if not math.isnan(value)},
        }
        for track, kind, box, solid in zip(frame.tracks, frame.classes, frame.boxes, frame.solids, strict=True)
        if kind != NO_BOX
    ]
    return {"time_s": time_s, **labels, **weather, **({"boxes": boxes} if frame.known else {})}


def _csv_rows(frame: dict) -> Iterator[dict]:
    labels = {key: value for key, value in frame.items() if key != "boxes"}
    if not frame.get("boxes"):
        yield labels | {"class": "" if "boxes" in frame else UNKNOWN}
    for box in frame.get("boxes", []):
        yield labels | box
