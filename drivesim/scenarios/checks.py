"""What cannot be: names and tracks that are there twice, agents that nobody could ever see, cars in one another."""

from collections.abc import Sequence

import numpy as np

from drivesim.errors import UserError
from drivesim.scenarios.scene import EGO_SIZE_M, Actor, Scene
from drivesim.scenarios.schema import Agent
from drivesim.scenarios.sight import Sight

TOUCH_M = 0.05  # boxes may reach so far into one another: sizes are rounded
EGO = "the camera car"


def numbered(agents: Sequence[Agent], taken: set[int], where: str) -> list[int]:
    """The track of each agent. raises UserError for a name or number that is there twice"""
    names = [agent.name for agent in agents]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(
                f"{where}: agents[{names.index(name)}] and agents[{i}] are both called {name!r}; rename one"
            )
    owner: dict[int, str] = {}
    for agent in agents:
        if agent.track is None:
            continue
        if agent.track in taken or agent.track in owner:
            other = owner.get(agent.track, "one of the base")
            raise UserError(f"{where}: {agent.name} has track {agent.track}, and so has {other}; give another number")
        owner[agent.track] = agent.name
    following = max([0, *taken, *owner]) + 1
    free = iter(range(following, following + len(agents)))
    return [next(free) if agent.track is None else agent.track for agent in agents]


def check_seen(scene: Scene, sight: Sight) -> None:
    """raises UserError for something that the scenario asks for and that is never in the picture"""
    for i, actor in enumerate(scene.actors):
        if not actor.asked or sight.boxed[i].any():
            continue
        if actor.boxes is None and not actor.in_space.any():
            raise UserError(f"{scene.source}: {actor} is never there; see appears_s and leaves_s")
        if actor.boxes is None and not (scene.in_camera(actor)[0][:, 2] > 0).any():
            raise UserError(f"{scene.source}: {actor} is behind the camera the whole time; move it ahead")
        if actor.boxes is None:
            near = int(np.nanargmin(np.abs(sight.depth[i])))
            place = f"nearest in {scene.when(near)}, {sight.depth[i, near]:.1f} m ahead"
            raise UserError(f"{scene.source}: {actor} is never in the picture ({place}); move it into view")
        raise UserError(f"{scene.source}: {actor} is wholly outside the picture the whole time; corners are fractions")


def check_apart(scene: Scene) -> None:
    """raises UserError if something that the scenario asks for stands in something else, or in the camera car"""
    solid = [(actor, _shape(actor)) for actor in scene.actors if actor.in_space.any()]
    ego = ego_actor(scene)
    ours = [] if ego is None else [(ego, _shape(ego))]
    for i, (actor, shape) in enumerate(solid):
        for other, its_shape in ours + solid[:i]:
            if not (actor.added or (scene.redriven if other is ego else other.added)):
                continue  # as it was recorded: annotations touch
            meeting = np.flatnonzero(overlaps(shape, its_shape))
            if len(meeting):
                who = EGO if other is ego else str(other)
                until = f" to {scene.when(int(meeting[-1]))}" if len(meeting) > 1 else ""
                raise UserError(
                    f"{scene.source}: {scene.when(int(meeting[0]))}{until}: {actor} and {who} overlap; move them apart"
                )


def ego_actor(scene: Scene) -> Actor | None:
    """The car around the camera, in the middle of which the camera is; None where its way is not known."""
    if scene.poses is None:
        return None
    heading = np.arctan2(scene.poses[:, 0, 2], scene.poses[:, 2, 2])
    size = np.tile([*EGO_SIZE_M, scene.height_m], (len(heading), 1))
    return Actor(EGO, 0, "car", scene.poses[:, :3, 3], heading, size)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether two rectangles on the ground overlap, [T]; False where one is unknown. a, b [T, 5] x, z, yaw, length,
    width. By separating axes: they do not if their shadows on a side of either do not."""
    offset = b[:, :2] - a[:, :2]
    reach = np.hypot(a[:, 3], a[:, 4]) + np.hypot(b[:, 3], b[:, 4])
    near = np.flatnonzero(2 * np.hypot(*offset.T) < reach)  # seldom; NaN is not
    a, b, offset = a[near], b[near], offset[near]
    meeting = np.isfinite(a[:, 2]) & np.isfinite(b[:, 2])
    for yaw in (a[:, 2], a[:, 2] + np.pi / 2, b[:, 2], b[:, 2] + np.pi / 2):
        axis = np.stack([np.sin(yaw), np.cos(yaw)], -1)
        meeting &= np.abs((offset * axis).sum(-1)) < _shadow(a, yaw) + _shadow(b, yaw) - TOUCH_M
    found = np.zeros(len(reach), bool)
    found[near] = meeting
    return found


def _shadow(shape: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Half of what rectangles [n, 5] measure along yaw [n]."""
    turned = yaw - shape[:, 2]
    return (np.abs(np.cos(turned)) * shape[:, 3] + np.abs(np.sin(turned)) * shape[:, 4]) / 2


def _shape(actor: Actor) -> np.ndarray:
    """[T, 5] x, z, yaw, length, width."""
    return np.column_stack([actor.centre[:, [0, 2]], actor.yaw, actor.size[:, :2]])
