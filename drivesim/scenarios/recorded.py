"""What a scenario may start from: a stored clip, traffic from a model, or a layout file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import entry_points

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy.spatial.transform import Rotation

from drivesim.clip import CLASSES, NO_BOX, SOLID, Camera, Layout
from drivesim.data.store import POSE, ClipStore, frame_labels
from drivesim.errors import UserError
from drivesim.generation.layout_file import TimedLayout, split_clip
from drivesim.scenarios.road import Road
from drivesim.scenarios.scene import Actor, Scene
from drivesim.scenarios.schema import CameraSpec, Traffic
from drivesim.scenarios.sight import left_by_others, pinhole

MODELS = "drivesim.traffic"  # group of entry points, so that the library never imports what makes the town
Model = Callable[[Traffic, float, float], "Recording"]  # (what is asked for, seconds, frames a second)
LABELS = ("night", "crowdedness", "travel", "heading", "weather", "speed", "turn", "steering")  # of whole frames
NEAR_M = 30.0  # boxes nearer than this tell how high the camera is


@dataclass(frozen=True)
class Recording:
    """A clip without its pictures.

    frames, boxes  rows of drivesim.data.schema.FRAMES and BOXES
    height, width  pixels that the intrinsics are of
    start_s        the second of the clip at which the video begins
    """

    frames: pa.Table
    boxes: pa.Table
    fps: float
    height: int
    width: int
    weather: str = ""
    has_boxes: bool = True
    start_s: float = 0.0


def from_clip(spec: str, source: str, camera: CameraSpec | None) -> Scene:
    """The scene of STORE:CLIP[:START_S], from that second on. raises UserError if there is no such clip or second"""
    root, clip, start_s = split_clip(spec)
    store = ClipStore(root)
    row = store.row(clip)
    if not 0 <= start_s < row.frames / row.fps:
        found = f"start {start_s:g} s lies outside the clip of {row.frames / row.fps:.2f} s"
        raise UserError(f"{source}: base {spec}: {found}")
    frames, boxes = store.tables_of(clip)
    size = float(row.fps), int(row.height), int(row.width)
    return from_recording(Recording(frames, boxes, *size, row.weather, bool(row.has_boxes), start_s), source, camera)


def from_model(traffic: Traffic, seconds: float, fps: float, source: str, camera: CameraSpec | None) -> Scene:
    """The scene that a traffic model makes. raises UserError if there is no such model"""
    models = {entry.name: entry for entry in entry_points(group=MODELS)}
    if traffic.model not in models:
        known = ", ".join(models) or "none"
        raise UserError(f"{source}: traffic: there is no model {traffic.model!r}; installed: {known}")
    return from_recording(models[traffic.model].load()(traffic, seconds, fps), source, camera)


def from_recording(recording: Recording, source: str, camera: CameraSpec | None) -> Scene:
    """A scene whose actors are where they were recorded. camera: of a recording that has none

    raises  UserError if there would be two
    """
    first = int(recording.start_s * recording.fps + 1e-6)
    rows = recording.frames.slice(first).to_pandas()
    labels = frame_labels(recording.frames, recording.weather, recording.fps)[slice(first, None)]
    labels = replace(labels, travel=labels.travel - labels.travel[0], heading=labels.heading - labels.heading[0])
    poses = _poses(rows)
    filmed = _camera(rows, recording)
    if filmed is not None and camera is not None:
        raise UserError(f"{source}: camera is that of the base; leave it out")
    spec = camera or CameraSpec()
    boxes = recording.boxes.to_pandas()
    boxes = boxes[boxes["frame"] >= first].assign(frame=lambda table: table["frame"] - first)
    scene = Scene(
        source=source,
        title="",
        times_s=(np.arange(len(rows)) + first) / recording.fps - recording.start_s,
        frame_s=1 / recording.fps,
        camera=filmed or spec_camera(spec),
        height_m=_height(boxes, spec),
        poses=poses,
        road=None if poses is None else _road(poses, labels),
        labels=labels,
        known=np.full(len(rows), recording.has_boxes),
        actors=[_actor(int(track), seen, poses, len(rows)) for track, seen in boxes.groupby("track")],
    )
    others = left_by_others(scene)
    return replace(scene, actors=[replace(a, others=o) for a, o in zip(scene.actors, others, strict=True)])


def from_layout(timed: TimedLayout, source: str, camera: CameraSpec) -> Scene:
    """The scene of a layout file: boxes on the picture, of which at most the depth is known."""
    layout, frames = timed.layout, len(timed.times_s)
    tracks: dict[int, Actor] = {}
    for t, slot in torch.nonzero(layout.classes != NO_BOX).tolist():
        track = int(layout.tracks[t, slot])
        actor = tracks.setdefault(track, _unseen(track, CLASSES[int(layout.classes[t, slot])], frames))
        assert actor.boxes is not None
        assert actor.solids is not None
        actor.boxes[t], actor.solids[t] = layout.boxes[t, slot].numpy(), layout.solids[t, slot].numpy()
    labels = replace(Layout.unknown(frames), **{name: getattr(layout, name) for name in LABELS})
    known, height = layout.known.numpy(), camera.height_m
    actors = list(tracks.values())
    place = spec_camera(camera)
    return Scene(source, "", timed.times_s, timed.frame_s, place, height, None, None, labels, known, actors)


def spec_camera(spec: CameraSpec) -> Camera:
    return pinhole(spec.field_of_view_deg, spec.horizon, spec.aspect)


def _unseen(track: int, kind: str, frames: int) -> Actor:
    """An actor that is nowhere yet."""
    nowhere = np.full((frames, 3), np.nan)
    boxes, solids = np.full((frames, 4), np.nan), np.full((frames, len(SOLID)), np.nan)
    return Actor("", track, kind, nowhere, nowhere[:, 0], nowhere.copy(), boxes, solids, added=False, asked=False)


def _actor(track: int, seen: pd.DataFrame, poses: np.ndarray | None, frames: int) -> Actor:
    """One track of the boxes table, its rows `seen`."""
    actor, at = _unseen(track, str(seen["class"].iloc[0]), frames), seen["frame"].to_numpy()
    assert actor.boxes is not None
    assert actor.solids is not None
    actor.boxes[at] = seen[["x1", "y1", "x2", "y2"]].to_numpy()
    actor.solids[at] = seen[list(SOLID)].to_numpy()
    centre, yaw, size, share = (np.full((frames, n), np.nan) for n in (3, 1, 3, 1))
    centre[at] = seen[["x_m", "y_m", "z_m"]].to_numpy()
    size[at] = seen[["length_m", "width_m", "height_m"]].to_numpy()
    yaw[at, 0], share[at, 0] = seen["yaw"].to_numpy(), seen["visibility"].to_numpy()
    if poses is not None:
        along = np.concatenate([np.sin(yaw), np.zeros_like(yaw), np.cos(yaw)], -1)
        centre = np.einsum("tij,tj->ti", poses[:, :3, :3], centre) + poses[:, :3, 3]
        along = np.einsum("tij,tj->ti", poses[:, :3, :3], along)
        yaw = np.arctan2(along[:, :1], along[:, 2:])
    return replace(actor, centre=centre, yaw=yaw[:, 0], size=size, share=share[:, 0])


def _poses(rows: pd.DataFrame) -> np.ndarray | None:
    """Camera to first camera [T, 4, 4]; None if one is unknown."""
    place, turn = np.split(rows[POSE].to_numpy(float), [3], axis=1)
    if not np.isfinite(np.hstack([place, turn])).all():
        return None
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = Rotation.from_quat(turn).as_matrix(), place
    return np.linalg.inv(poses[0]) @ poses


def _road(poses: np.ndarray, labels: Layout) -> Road:
    """The way that the camera took; where it looks is where the road goes."""
    heading = np.arctan2(poses[:, 0, 2], poses[:, 2, 2])
    return Road(labels.travel.numpy().astype(float), poses[:, :3, 3], heading)


def _camera(rows: pd.DataFrame, recording: Recording) -> Camera | None:
    fx, fy, cx, cy = rows[["fx", "fy", "cx", "cy"]].iloc[0]
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], float)
    return Camera(matrix, recording.height, recording.width) if np.isfinite(matrix).all() else None


def _height(boxes: pd.DataFrame, camera: CameraSpec) -> float:
    """How high the camera is over what the boxes stand on; as `camera` says where no box in space tells."""
    bottom = (boxes["y_m"] + boxes["height_m"] / 2)[boxes["z_m"] < NEAR_M].dropna()
    return float(bottom.median()) if len(bottom) else camera.height_m
