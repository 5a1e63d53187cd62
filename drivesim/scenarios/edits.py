"""What a scenario changes of its base: tracks taken away, shifted or slowed, and the way that the camera drives."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from drivesim.clip import Layout
from drivesim.errors import UserError
from drivesim.geometry import NEAR_M
from drivesim.scenarios.road import Drive
from drivesim.scenarios.scene import Actor, Scene
from drivesim.scenarios.schema import Edit

PACE_S = 0.5  # over which the speed is taken that a track goes on with beyond the end of the base


def edited(scene: Scene, edits: Sequence[Edit]) -> Scene:
    """The scene with the edits made, one after the other. raises UserError for a track that is not there"""
    for i, edit in enumerate(edits):
        where = f"{scene.source}: edits[{i}]"
        tracks = sorted(actor.track for actor in scene.actors)
        if edit.track != "all" and edit.track not in tracks:
            found = ", ".join(map(str, tracks[:12])) + (" ..." if len(tracks) > 12 else "")
            raise UserError(f"{where}: the base has no track {edit.track}; it has {found or 'none'}")
        if edit == Edit(track=edit.track):
            raise UserError(f"{where} changes nothing; give remove, ahead_m, left_m, speed or priority")
        kept = [actor for actor in scene.actors if not (edit.remove and edit.track in ("all", actor.track))]
        actors = [_changed(scene, a, edit, where) if edit.track in ("all", a.track) else a for a in kept]
        scene = replace(scene, actors=actors)
    return scene


def redriven(scene: Scene, drive: Drive) -> Scene:
    """The same world, through which the camera drives another way. raises UserError for what has no place in it"""
    flat = [actor for actor in scene.actors if not actor.in_space.any()]
    if scene.actors and (scene.poses is None or flat):
        found = f"{flat[0]} has no place in space" if flat else "it is not known how its camera drives"
        raise UserError(f"{scene.source}: ego cannot be changed in this base: {found}; leave ego out")
    actors = [replace(actor, boxes=None, solids=None) for actor in scene.actors]
    labels = driven(scene.labels, drive)
    return replace(scene, actors=actors, poses=drive.poses, road=drive.road, labels=labels, redriven=True)


def driven(labels: Layout, drive: Drive) -> Layout:
    """The labels with how the camera drives. How the steering wheel is turned for it is not known."""
    way = {name: torch.from_numpy(getattr(drive, name)).float() for name in ("travel", "heading", "speed", "turn")}
    return replace(labels, **way, steering=torch.full_like(labels.steering, float("nan")))


def _changed(scene: Scene, actor: Actor, edit: Edit, where: str) -> Actor:
    if edit.priority is not None:
        actor = replace(actor, priority=edit.priority)
    if edit.speed != 1:
        actor = _paced(scene, actor, edit.speed, where)
    if edit.ahead_m or edit.left_m:
        move = _shifted if actor.in_space.any() else _shifted_on_picture
        actor = move(scene, actor, edit, where)
    return replace(actor, asked=actor.asked or edit.track != "all")


def _in_world(actor: Actor, centre: np.ndarray, yaw: np.ndarray) -> Actor:
    """The actor elsewhere: its box is worked out anew, and what hid it where it was is no longer told."""
    size = np.tile(np.nanmedian(actor.size, 0), (len(yaw), 1))
    return replace(
        actor, centre=centre, yaw=yaw, size=size, boxes=None, solids=None, share=None, others=None, added=True
    )


def _tracked(scene: Scene, actor: Actor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When an actor is there, seconds [K], and its centre [K, 3] and yaw [K] then, unwrapped."""
    there = actor.in_space
    return scene.times_s[there], actor.centre[there], np.unwrap(actor.yaw[there])


def _along(times_s: np.ndarray, at_s: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values [K] or [K, n] at times [K], linear, at other times [T]; NaN before the first and after the last."""
    columns = values.reshape(len(times_s), -1).T
    found = np.stack([np.interp(at_s, times_s, column, left=np.nan, right=np.nan) for column in columns], -1)
    return found if values.ndim > 1 else found[:, 0]


def _shifted(scene: Scene, actor: Actor, edit: Edit, where: str) -> Actor:
    """Moved as a rigid body: by so much as the camera sees it when it comes, and turning with the actor from then on,
    so that a car stays beside its lane through a bend, and a parked one where it stands."""
    times, centre, yaw = _tracked(scene, actor)
    first = int(np.flatnonzero(actor.in_space)[0])
    camera = np.eye(3) if scene.poses is None else scene.poses[first, :3, :3]
    x, _, z = camera @ [-edit.left_m, 0.0, edit.ahead_m]
    sin, cos = np.sin(yaw - yaw[0]), np.cos(yaw - yaw[0])
    moved = centre + np.stack([x * cos + z * sin, np.zeros_like(sin), z * cos - x * sin], -1)
    return _in_world(actor, _along(times, scene.times_s, moved), _along(times, scene.times_s, yaw))


def _paced(scene: Scene, actor: Actor, factor: float, where: str) -> Actor:
    """On the same way at another pace, from where it first is; straight on if the way was cut off by the end of the
    base."""
    if scene.poses is None or not actor.in_space.any():
        raise UserError(f"{where}: the base does not say where {actor} is in space; its speed cannot be changed")
    times, centre, yaw = _tracked(scene, actor)
    at = times[0] + factor * (scene.times_s - times[0])
    at = np.where(scene.times_s < times[0], np.nan, at)
    if times[-1] == scene.times_s[-1] and at[-1] > times[-1] and len(times) > 1:
        before = max(int(np.searchsorted(times, times[-1] - PACE_S)), 0)
        before = min(before, len(times) - 2)
        pace = (centre[-1] - centre[before]) / (times[-1] - times[before])
        centre = np.concatenate([centre, centre[-1:] + pace * (at[-1] - times[-1])])
        times, yaw = np.append(times, at[-1]), np.append(yaw, yaw[-1])
    return _in_world(actor, _along(times, at, centre), _along(times, at, yaw))


def _shifted_on_picture(scene: Scene, actor: Actor, edit: Edit, where: str) -> Actor:
    """Moved along the picture as its depth says, and smaller or larger as it is farther or nearer then."""
    assert actor.boxes is not None
    assert actor.solids is not None
    depth = scene.depth(actor)
    there = np.isfinite(actor.boxes).all(-1)
    if np.isinf(depth[there]).any():
        frame = int(np.flatnonzero(there & np.isinf(depth))[0])
        found = f"{scene.when(frame)}: {actor} ends above the horizon, so its distance is not known"
        raise UserError(f"{where}: {found}; give the camera of the base, or leave it where it is")
    farther = depth + edit.ahead_m
    if (farther[there] < NEAR_M).any():
        frame = int(np.flatnonzero(there & (farther < NEAR_M))[0])
        raise UserError(f"{where}: {scene.when(frame)}: {actor} would be behind the camera; ahead_m moves it too near")
    matrix, size = scene.camera.intrinsics, (scene.camera.width, scene.camera.height)
    centre = np.tile(matrix[:2, 2] / size, 2)
    aside = np.array([matrix[0, 0] / size[0], 0, matrix[0, 0] / size[0], 0]) * edit.left_m
    boxes = centre + (actor.boxes - centre) * (depth / farther)[:, None] - aside / farther[:, None]
    solids = actor.solids + np.array([edit.ahead_m, 0, 0, 0, 0])
    return replace(actor, boxes=boxes, solids=solids, added=True)
