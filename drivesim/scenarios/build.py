"""From a scenario to what steers a video: the scene, what is seen of it, the layout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from drivesim.clip import CLASSES, VEHICLES, Layout
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError
from drivesim.generation.layout_file import SUFFIXES as LAYOUT_SUFFIXES
from drivesim.generation.layout_file import TimedLayout, lens_of, read_layout
from drivesim.scenarios import agents, checks, edits, recorded
from drivesim.scenarios.files import find, read_scenario, unknown
from drivesim.scenarios.road import Drive, drive
from drivesim.scenarios.scene import Scene
from drivesim.scenarios.schema import CameraSpec, Ego, Scenario
from drivesim.scenarios.sight import Sight, look

FPS = 10.0  # between which boxes move linearly: a tenth of a second of a near car is under a pixel of 128
ORIGIN = "scenario"


@dataclass(frozen=True)
class Built:
    """A scenario worked out.

    names  of tracks, as messages call them;  layout [T], the slots of each frame in order of priority
    """

    scene: Scene
    sight: Sight
    layout: Layout
    names: dict[int, str]

    def timed(self) -> TimedLayout:
        """As a video is steered by it."""
        scene = self.scene
        lens = lens_of(scene.camera)
        return TimedLayout(self.layout, scene.times_s, scene.frame_s, scene.source, names=self.names, lens=lens)


def build(spec: str) -> Built:
    """Work out what `spec` asks for: a .yaml file, a name of the library, or any base (docs/scenarios.md).

    raises  UserError naming file, frame and track of what is wrong
    """
    path = find(spec)
    if path is None:
        return finish(_base(Scenario(base=spec), f"{ORIGIN} {spec}", (spec,)))
    return finish(_scene(spec, ()))


def finish(scene: Scene) -> Built:
    """Look at a scene, refuse what cannot be, and make its layout."""
    sight = look(scene)
    checks.check_seen(scene, sight)
    checks.check_apart(scene)
    names = {actor.track: str(actor) for actor in scene.actors}
    return Built(scene, sight, layout_of(scene, sight), names)


def compose(scenario: Scenario, source: str, within: Sequence[str] = ()) -> Scene:
    """The scene that a scenario describes. within: the scenarios that this one is the base of"""
    scene = _start(scenario, source, within)
    before = scene
    if scenario.ego is not None and (scenario.base or scenario.traffic):
        scene = edits.redriven(scene, _drive(scenario.ego, scene.times_s, source))
    scene = edits.edited(scene, scenario.edits)
    tracks = checks.numbered(scenario.agents, {actor.track for actor in before.actors}, source)
    made = [
        agents.make(agent, track, scene, f"{source}: agents[{i}] ({agent.name})")
        for i, (agent, track) in enumerate(zip(scenario.agents, tracks, strict=True))
    ]
    known = scene.known | bool(made)
    scene = replace(scene, title=scenario.title or scene.title, actors=[*scene.actors, *made], known=known)
    return replace(scene, labels=_labelled(scenario, before, scene))


def layout_of(scene: Scene, sight: Sight) -> Layout:
    """The layout [T] with as many slots as the fullest frame needs; in each frame first what has priority, then what
    is nearest."""
    shown = sight.shown
    layout = replace(scene.labels, known=torch.from_numpy(scene.known.copy())).pad(
        max(1, int(shown.sum(0).max(initial=0)))
    )
    priority = np.array([actor.priority for actor in scene.actors])
    for t in range(len(scene.times_s)):
        there = np.flatnonzero(shown[:, t])
        order = there[np.lexsort((there, sight.depth[there, t], -priority[there]))]
        for slot, i in enumerate(order):
            layout.boxes[t, slot] = torch.from_numpy(sight.boxes[i, t]).float()
            layout.solids[t, slot] = torch.from_numpy(sight.solids[i, t]).float()
            layout.classes[t, slot] = CLASSES.index(scene.actors[i].kind)
            layout.tracks[t, slot] = scene.actors[i].track
    return layout


def vehicles_in_view(scene: Scene) -> np.ndarray:
    """[T] how many vehicles are asked for."""
    vehicles = [actor.kind in VEHICLES for actor in scene.actors]
    return look(scene).shown[vehicles].sum(0)


def _scene(spec: str, within: Sequence[str]) -> Scene:
    path = find(spec)
    assert path is not None
    source = f"{ORIGIN} {spec}"
    if (key := str(path.resolve())) in within:
        raise UserError(f"{source}: its base leads back to itself; give another base")
    return compose(read_scenario(path, source), source, (*within, key))


def _start(scenario: Scenario, source: str, within: Sequence[str]) -> Scene:
    """What the scenario begins with: its base, or an empty road. raises UserError for what does not go together"""
    if scenario.base and scenario.traffic:
        raise UserError(f"{source}: has both base and traffic; leave one out")
    if not scenario.base and not scenario.traffic and scenario.edits:
        raise UserError(f"{source}: has edits but no base; give base or traffic, or change the agents themselves")
    if scenario.base:
        if scenario.fps is not None:
            raise UserError(f"{source}: fps is that of the base; leave it out")
        return _cut(_base(scenario, source, within), scenario.seconds, source)
    if scenario.seconds is None:
        raise UserError(f"{source}: seconds is missing; say how long it lasts, or give base")
    fps = scenario.fps or FPS
    if scenario.traffic:
        return recorded.from_model(scenario.traffic, scenario.seconds, fps, source, scenario.camera)
    times = np.arange(int(np.ceil(scenario.seconds * fps - 1e-6))) / fps
    way = _drive(scenario.ego or Ego(), times, source)
    camera, labels = scenario.camera or CameraSpec(), edits.driven(Layout.unknown(len(times)), way)
    return Scene(
        source,
        scenario.title,
        times,
        1 / fps,
        recorded.spec_camera(camera),
        camera.height_m,
        way.poses,
        way.road,
        labels,
        np.ones(len(times), bool),
    )


def _base(scenario: Scenario, source: str, within: Sequence[str]) -> Scene:
    spec = scenario.base
    if find(spec) is not None:
        if scenario.camera is not None:
            raise UserError(f"{source}: camera is that of the base; leave it out")
        return replace(_scene(spec, within), source=source)
    if Path(spec).suffix.lower() in LAYOUT_SUFFIXES:
        timed = read_layout(spec)
        assert timed is not None
        return recorded.from_layout(timed, source, scenario.camera or CameraSpec())
    if ":" in spec:
        return recorded.from_clip(spec, source, scenario.camera)
    raise UserError(
        f"{source}: there is no {spec!r}; expected a .yaml, .json or .csv file, STORE:CLIP[:START_S], or a scenario: "
        f"{unknown(spec)}"
    )


def _drive(ego: Ego, times_s: np.ndarray, source: str) -> Drive:
    if ego.path is not None and ego.turn_deg_s is not None:
        raise UserError(f"{source}: ego has both path and turn_deg_s; leave one out")
    if ego.path is not None and any(a == b for a, b in zip(ego.path, ego.path[1:], strict=False)):
        raise UserError(f"{source}: ego: path has one point twice in a row; leave one out")
    return drive(ego, times_s)


def _cut(scene: Scene, seconds: float | None, source: str) -> Scene:
    """The first `seconds` of a scene."""
    if seconds is None:
        return scene
    if seconds > scene.seconds + 1e-3:
        raise UserError(f"{source}: seconds is {seconds:g}, the base has {scene.seconds:.2f}; lower seconds")
    return first_frames(scene, int((scene.times_s < seconds - 1e-6).sum()))


def first_frames(scene: Scene, frames: int) -> Scene:
    def short(value):
        return value if value is None else value[:frames]

    over_time = ("centre", "yaw", "size", "boxes", "solids", "share", "others")
    actors = [replace(actor, **{name: short(getattr(actor, name)) for name in over_time}) for actor in scene.actors]
    return replace(
        scene,
        times_s=short(scene.times_s),
        poses=short(scene.poses),
        labels=short(scene.labels),
        known=short(scene.known),
        actors=actors,
    )


def _labelled(scenario: Scenario, before: Scene, scene: Scene) -> Layout:
    """Labels of the scene: what the scenario says, else what the base said. Vehicles in view are counted; in a base as
    many more or fewer than were recorded as its changes bring."""
    times, labels = scene.times_s.clip(0), scene.labels
    if scenario.time_of_day is not None:
        labels = replace(labels, night=torch.from_numpy(scenario.time_of_day.at(times)).float())
    if scenario.weather is not None:
        labels = replace(labels, weather=torch.tensor([WEATHERS.index(w) for w in scenario.weather.held(times)]))
    if scenario.crowdedness is not None:
        return replace(labels, crowdedness=torch.from_numpy(scenario.crowdedness.at(times)).float())
    begun = scenario.base or scenario.traffic
    if begun and not (scenario.edits or scenario.agents or scenario.ego):
        return labels
    count = torch.from_numpy(vehicles_in_view(scene)).float()
    if begun:
        count = (labels.crowdedness + count - torch.from_numpy(vehicles_in_view(before))).clamp_min(0)
    return replace(labels, crowdedness=count)
