"""What a scenario file may say (docs/scenarios.md), and that as JSON Schema."""

from dataclasses import dataclass
from typing import Any

from drivesim.classes import CLASSES
from drivesim.clip import SPEED_MPS
from drivesim.data.schema import WEATHERS
from drivesim.scenarios.kinds import (
    Curve,
    Flag,
    Keyframes,
    Many,
    Number,
    Record,
    Row,
    Text,
    Whole,
    Word,
    constant,
    said,
)

MAX_TRACK = 2**31 - 1  # tracks are int32 in the clip store
MAX_SECONDS = 3600.0  # every frame of a scenario is worked out at once
TIMES_OF_DAY = {"day": 0.0, "dusk": 0.5, "night": 1.0}
METRES, DEGREES = Number(-1e4, 1e4), Number(-360, 360)
FRACTION = Number(-10, 10)  # a box may begin far outside the picture
# Length, width, height in metres: of the procedural town's people and average vehicles.
SIZES_M = {
    "car": (4.4, 1.8, 1.5),
    "truck": (8.0, 2.45, 3.3),
    "bus": (11.2, 2.5, 3.05),
    "pedestrian": (0.7, 0.6, 1.75),
    "cyclist": (1.75, 0.6, 1.8),
}
FIELD_OF_VIEW_DEG, HORIZON, CAMERA_HEIGHT_M, ASPECT = 77.0, 0.44, 1.5, 2.0  # the procedural town's


@dataclass(frozen=True)
class CameraSpec:
    """A level camera that looks ahead. Give that of the data a model was trained on; the default is the town's."""

    field_of_view_deg: float = said(Number(5, 170), "horizontal field of view, degrees", FIELD_OF_VIEW_DEG)
    horizon: float = said(Number(0, 1), "height of the horizon, fraction of the picture from its top", HORIZON)
    height_m: float = said(Number(0.2, 10), "metres above the road", CAMERA_HEIGHT_M)
    aspect: float = said(Number(0.5, 5), "width of the picture over its height", ASPECT)


@dataclass(frozen=True)
class Ego:
    """How the camera car drives: its speed, and where the road leads: by turn or along a path, else straight on."""

    speed_mps: Keyframes[float] = said(Curve(Number(0, 60)), "metres a second, or keyframes of it", constant(SPEED_MPS))
    turn_deg_s: Keyframes[float] | None = said(
        Curve(Number(-90, 90)), "degrees a second that it turns to the right, or keyframes of it", None
    )
    path: tuple[tuple[float, float], ...] | None = said(
        Many(Row(METRES, ("ahead_m", "left_m")), 1),
        "points it drives through, in order, each [metres ahead, metres to the left] of where it starts; straight on "
        "after the last",
        None,
    )
    left_m: Keyframes[float] = said(
        Curve(METRES),
        "metres that it keeps to the left of that way, to change lanes say, or keyframes of it",
        constant(0.0),
    )


@dataclass(frozen=True)
class RoadPlace:
    """Where an agent is on the road, which goes where the camera car's speed, turn and path lead, straight on beyond
    both ends. Each number may be keyframes; a speed is added up on top of ahead_m and left_m, along the heading."""

    ahead_m: Keyframes[float] = said(Curve(METRES), "metres along the road of the agent's middle, or keyframes of it")
    left_m: Keyframes[float] = said(Curve(METRES), "metres to its left, or keyframes of it", constant(0.0))
    relative_to: str = said(
        Word(("start", "ego")), "what ahead_m counts from: where the camera starts, or where it is at the time", "start"
    )
    speed_mps: Keyframes[float] | None = said(Curve(Number(0, 60)), "metres a second, or keyframes of it", None)
    heading_deg: Keyframes[float] | None = said(
        Curve(DEGREES),
        "where it faces, degrees to the right of the road's direction: 0 the same way, 180 oncoming, or keyframes of "
        "it; where it moves to if not given",
        None,
    )


@dataclass(frozen=True)
class Corners:
    """A box on the picture at one time, in fractions of its width and height; (0, 0) is the top left corner."""

    time_s: float = said(Number(0, MAX_SECONDS), "seconds from the start")
    x1: float = said(FRACTION, "left edge")
    y1: float = said(FRACTION, "upper edge")
    x2: float = said(FRACTION, "right edge")
    y2: float = said(FRACTION, "lower edge")


@dataclass(frozen=True)
class Agent:
    """A car or a person, placed on the road or on the picture."""

    name: str = said(Text(), "what messages call it; no two share one")
    kind: str = said(Word(CLASSES), f"one of {', '.join(CLASSES)}", key="class")
    track: int | None = said(Whole(MAX_TRACK), "its number; the next free one if not given", None)
    priority: float = said(
        Number(), "when a model takes fewer boxes, the highest are kept, of equal ones the nearest", 0.0
    )
    road: RoadPlace | None = said(Record(RoadPlace), "its place on the road over time, in metres", None)
    image: tuple[Corners, ...] | None = said(
        Many(Record(Corners), 1), "its box on the picture over time: keyframes, linear between them", None
    )
    size_m: tuple[float, ...] | None = said(
        Row(Number(0, 50, above=True), ("length", "width", "height")), "metres; usual for its class if not given", None
    )
    appears_s: float = said(Number(0, MAX_SECONDS), "from when it is there, seconds", 0.0)
    leaves_s: float | None = said(Number(0, MAX_SECONDS, above=True), "from when it is gone; never if not given", None)


@dataclass(frozen=True)
class Edit:
    """What becomes different of one track of the base, or of all."""

    track: int | str = said(Whole(MAX_TRACK, ("all",)), "number of the track, or all")
    remove: bool = said(Flag(), "take it away", False)
    ahead_m: float = said(METRES, "metres that it is shifted away from the camera", 0.0)
    left_m: float = said(METRES, "metres that it is shifted to the left, as the camera sees it", 0.0)
    speed: float = said(Number(0, 10), "how many times as fast it goes its way; 0: it stands", 1.0)
    priority: float | None = said(Number(), "as of agents", None)


@dataclass(frozen=True)
class Traffic:
    """The base made by a traffic model, with cars that keep their distance, wait and turn off."""

    model: str = said(Text(), "its name; town: the traffic of the procedural town", "town")
    seed: int = said(Whole(2**31 - 1), "another seed, other streets and other traffic", 0)
    crowdedness: float = said(Number(0, 10), "1 is usual, 0 empty streets", 1.0)
    speed_mps: tuple[float, ...] = said(
        Row(Number(0, 60, above=True), ("slowest", "fastest")), "cruising speeds, metres a second", (4.0, 12.0)
    )


@dataclass(frozen=True)
class Scenario:
    """What a video is to show over time. A value over time is one value, or keyframes [[time_s, value], ...]."""

    title: str = said(Text(), "one line that says what happens", "")
    seconds: float | None = said(
        Number(0, MAX_SECONDS, above=True), "duration; that of the base if not given, which else is required", None
    )
    fps: float | None = said(Number(0, 120, above=True), "frames a second that are worked out; 10, or the base's", None)
    time_of_day: Keyframes[float] | None = said(
        Curve(Number(0, 1, words=TIMES_OF_DAY)), "day, dusk, night, or 0 day .. 1 night", None
    )
    weather: Keyframes[str] | None = said(Curve(Word(WEATHERS)), f"one of {', '.join(WEATHERS)}", None)
    crowdedness: Keyframes[float] | None = said(
        Curve(Number(0, 1000)), "vehicles in view; counted from the agents in sight if not given", None
    )
    ego: Ego | None = said(Record(Ego), "how the camera car drives; at 8 m/s straight on, or as in the base", None)
    camera: CameraSpec | None = said(Record(CameraSpec), "the camera, unless the base has one", None)
    agents: tuple[Agent, ...] = said(Many(Record(Agent)), "cars and people", ())
    base: str = said(
        Text(), "what it starts from: STORE:CLIP[:START_S], another scenario, or a layout file (.json, .csv)", ""
    )
    traffic: Traffic | None = said(Record(Traffic), "or: traffic to start from", None)
    edits: tuple[Edit, ...] = said(Many(Record(Edit)), "what is different from the base", ())


def json_schema() -> dict[str, Any]:
    """The whole file as JSON Schema."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "drivesim scenario"}
    return head | Record(Scenario).schema()
