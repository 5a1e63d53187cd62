"""What the camera sees of a scene: boxes on the picture, and how much of each the nearer ones hide."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from tqdm import tqdm

from drivesim.clip import MIN_VISIBILITY, Camera
from drivesim.geometry import NEAR_M, corners, outline
from drivesim.scenarios.scene import Actor, Scene

BOXED_M = 80.0  # what is farther away gets no box, as in the procedural town
LONGEST_M = 30.0  # what is so far behind the camera does not reach before it
SMALLEST = 0.008  # of the picture's height: 4 pixels of 512, below which data sets here have no boxes
GRID = (128, 256)  # cells in which is counted who hides whom
FRACTION_BITS = 4  # of the fixed-point cells that OpenCV draws
SOON_S = 3.0  # after which progress is shown
TINY = 0.02  # a share that is as good as nothing: what was behind all others tells nothing of what else hid it


@dataclass(frozen=True)
class Sight:
    """Of A actors over T frames; NaN where there is no box.

    boxes   [A, T, 4] fractions of the picture, inside it
    solids  [A, T, 5] drivesim.clip.SOLID
    depth   [A, T] metres, also where only estimated
    share   [A, T] of each box, how much is seen
    """

    boxes: np.ndarray
    solids: np.ndarray
    depth: np.ndarray
    share: np.ndarray

    @property
    def boxed(self) -> np.ndarray:
        """[A, T] where it is in the picture, hidden or not."""
        return np.isfinite(self.boxes).all(-1)

    @property
    def shown(self) -> np.ndarray:
        """[A, T] where it is asked for: hidden cars steer nothing, and training leaves them out too."""
        return self.boxed & ~(self.share < MIN_VISIBILITY)


def look(scene: Scene) -> Sight:
    """What there is to see."""
    count, frames = len(scene.actors), len(scene.times_s)
    boxes, solids = np.full((count, frames, 4), np.nan), np.full((count, frames, 5), np.nan)
    depth = np.full((count, frames), np.nan)
    hulls: list[list[np.ndarray | None]] = []
    for i, actor in enumerate(scene.actors):
        outlines = _outlines(scene, actor)
        hulls.append(outlines)
        depth[i] = scene.depth(actor)
        if actor.boxes is None:
            boxes[i], solids[i] = _boxes(outlines), _solids(scene, actor)
        else:
            boxes[i] = _inside(actor.boxes)
            solids[i] = np.nan if actor.solids is None else actor.solids
    solids[np.isnan(boxes).any(-1)] = np.nan
    return Sight(boxes, solids, depth, _shares(scene.actors, hulls, depth))


def left_by_others(scene: Scene) -> np.ndarray:
    """Of each actor, the share [A, T] that the nearer ones leave to be seen."""
    hulls = [_outlines(scene, actor) for actor in scene.actors]
    return _uncovered(hulls, np.array([scene.depth(actor) for actor in scene.actors]).reshape(len(hulls), -1))


def _outlines(scene: Scene, actor: Actor) -> list[np.ndarray | None]:
    """Of each frame the points [k, 2] that the actor's box in space spans on the picture; None where it is out of the
    picture, or so far that it has no box nor hides one."""
    centre, yaw = scene.in_camera(actor)
    points: list[np.ndarray | None] = [None] * len(yaw)
    near = np.flatnonzero(actor.in_space & (centre[:, 2] <= BOXED_M) & (centre[:, 2] > -LONGEST_M))
    solid = corners(centre[near], actor.size[near], yaw[near])
    whole = (solid[..., 2] >= NEAR_M).all(-1)
    size = [scene.camera.width, scene.camera.height]
    ahead = scene.camera.project(solid[whole].reshape(-1, 3)).reshape(-1, 8, 2) / size
    inside = ((ahead.max(1) > 0) & (ahead.min(1) < 1)).all(-1)
    for t, shape in zip(near[whole][inside], ahead[inside], strict=True):
        points[t] = shape
    for t, corner in zip(near[~whole], solid[~whole], strict=True):
        points[t] = outline(scene.camera, corner)
    return points


def _boxes(outlines: list[np.ndarray | None]) -> np.ndarray:
    """Tight boxes [T, 4] within the picture; NaN where there is none, or it is too small to be boxed."""
    nowhere = np.full(4, np.nan)
    tight = [nowhere if o is None else np.concatenate([o.min(0), o.max(0)]) for o in outlines]
    boxes = _inside(np.stack(tight))
    small = boxes[:, 3] - boxes[:, 1] < SMALLEST
    return np.where(small[:, None], np.nan, boxes)


def _inside(boxes: np.ndarray) -> np.ndarray:
    """Boxes [T, 4] cut at the edges of the picture; NaN where nothing is left."""
    cut = boxes.clip(0, 1)
    return np.where((cut[:, 2:] > cut[:, :2]).all(-1, keepdims=True), cut, np.nan)


def _solids(scene: Scene, actor: Actor) -> np.ndarray:
    centre, yaw = scene.in_camera(actor)
    return np.concatenate([centre[:, 2:], actor.size, yaw[:, None]], -1)


def _shares(actors: Sequence[Actor], hulls: list, depth: np.ndarray) -> np.ndarray:
    """How much of each is seen. What was recorded holds as long as the others hide as much of it as then; if they hide
    more or less now, so much less or more is seen, and what houses hid of it stays hidden."""
    now = _uncovered(hulls, depth)
    share = now.copy()
    for i, actor in enumerate(actors):
        if actor.share is not None and actor.others is not None:
            changed = np.nan_to_num(actor.share, nan=1.0) * now[i].clip(TINY) / actor.others.clip(TINY)
            share[i] = np.where(now[i] == actor.others, actor.share, changed.clip(0, 1))
    return share


def _uncovered(hulls: list[list[np.ndarray | None]], depth: np.ndarray) -> np.ndarray:
    """[A, T] share of each hull's part in the picture that no nearer hull covers; 1 where there is no hull."""
    share = np.ones(depth.shape)
    for t in tqdm(range(depth.shape[1]), "who hides whom", unit="frame", delay=SOON_S, leave=False):
        free = np.ones(GRID, np.uint8)
        there = [(depth[i, t], i, hull) for i in range(len(hulls)) if (hull := hulls[i][t]) is not None]
        for _, i, hull in sorted(there, key=lambda nearest: nearest[:2]):
            mask = _filled(hull)
            own = np.count_nonzero(mask)
            share[i, t] = np.count_nonzero(mask & free) / own if own else 1.0
            free[mask > 0] = 0
    return share


def _filled(points: np.ndarray) -> np.ndarray:
    """Cells of GRID within the hull of points [k, 2], fractions of the picture: uint8, 1 inside."""
    mask = np.zeros(GRID, np.uint8)
    cells = points.clip(-50, 50) * (GRID[1], GRID[0]) - 0.5
    hull = cv2.convexHull(cells.astype(np.float32))
    cv2.fillConvexPoly(mask, np.round(hull * (1 << FRACTION_BITS)).astype(np.int32), (1,), cv2.LINE_8, FRACTION_BITS)
    return mask


def pinhole(field_of_view_deg: float, horizon: float, aspect: float) -> Camera:
    """A level camera, in pixels of a picture that is 512 high."""
    height, width = 512, round(512 * aspect)
    focal = width / 2 / np.tan(np.radians(field_of_view_deg) / 2)
    matrix = np.array([[focal, 0, width / 2], [0, focal, horizon * height], [0, 0, 1]])
    return Camera(matrix, height, width)
