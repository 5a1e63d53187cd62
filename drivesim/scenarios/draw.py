"""A scenario as a video, before any model has made one: boxes on a bare road, and the same from above."""

import cv2
import numpy as np

from drivesim.clip import CLASSES
from drivesim.generation.draw import COLOURS, INK, PAPER, draw_layout
from drivesim.geometry import NEAR_M
from drivesim.scenarios.build import Built
from drivesim.scenarios.checks import ego_actor
from drivesim.scenarios.scene import Actor, Scene

SKY, GROUND, NIGHT = (196, 214, 230), (128, 128, 122), 0.25  # RGB by day, and how much of it is left at night
LANE_M, LANES = 3.5, (-1.5, -0.5, 0.5, 1.5)  # lines beside the road's middle, in lanes, that show where it goes
DRAWN_M, STEP_M = 70.0, 2.0  # of road ahead
INSET = 0.42  # of the picture's height
AHEAD_M, BEHIND_M = 60.0, 8.0  # of the view from above
TICK_M = 10.0  # between its lines


def draw_frame(built: Built, frame: int, height: int, width: int) -> np.ndarray:
    """One frame [height, width, 3] uint8 RGB: what is asked for in class colours, with the labels and the time."""
    scene, layout = built.scene, built.layout[frame]
    picture = _backdrop(scene, frame, height, width)
    speed = float(layout.speed)
    words = [f"{max(0.0, scene.times_s[frame]):.1f} s"] + ([] if np.isnan(speed) else [f"{speed:.1f} m/s"])
    picture = draw_layout(picture, layout, ", ".join(words))
    inset = from_above(built, frame, round(height * INSET))
    gap = max(2, height // 64)
    picture[gap : gap + inset.shape[0], width - gap - inset.shape[1] : width - gap] = inset
    return picture


def from_above(built: Built, frame: int, side: int) -> np.ndarray:
    """The road from above, [side, side, 3] uint8 RGB, the camera car dark at the bottom; a line every ten metres.
    Hidden ones are hollow, and so are those of which only the box on the picture is known: a ring where it stands."""
    scene, scale = built.scene, side / (AHEAD_M + BEHIND_M)

    def pixels(points: np.ndarray) -> np.ndarray:
        """Camera-frame x, z [n, 2] -> whole pixels [n, 2]."""
        return np.round([side / 2, side - BEHIND_M * scale] + points * [scale, -scale]).astype(np.int32)

    picture = np.full((side, side, 3), PAPER, np.uint8)
    for metres in np.arange(0, AHEAD_M, TICK_M):
        row = int(pixels(np.array([[0.0, metres]]))[0, 1])
        cv2.line(picture, (0, row), (side, row), (215, 215, 215), 1)
    edge = scene.camera.width / scene.camera.intrinsics[0, 0] / 2 * AHEAD_M
    sight = pixels(np.array([[-edge, AHEAD_M], [0, 0], [edge, AHEAD_M]]))
    cv2.polylines(picture, [sight], False, (170, 170, 170), 1, cv2.LINE_AA)
    for line in _lanes(scene, frame):
        cv2.polylines(picture, [pixels(line[:, [0, 2]])], False, (170, 170, 170), 1, cv2.LINE_AA)
    for i, actor in enumerate(scene.actors):
        colour = COLOURS[CLASSES.index(actor.kind)]
        thickness = cv2.FILLED if built.sight.shown[i, frame] else 1
        if actor.in_space[frame]:
            _outline(picture, pixels(_footprint(scene, actor, frame)), colour, thickness)
        elif built.sight.shown[i, frame] and np.isfinite(depth := built.sight.depth[i, frame]):
            middle = built.sight.boxes[i, frame, [0, 2]].mean() * scene.camera.width - scene.camera.intrinsics[0, 2]
            place = np.array([[middle / scene.camera.intrinsics[0, 0] * depth, depth]])
            cv2.circle(picture, pixels(place)[0].tolist(), max(2, side // 60), colour, 1, cv2.LINE_AA)
    if (ego := ego_actor(scene)) is not None:
        _outline(picture, pixels(_footprint(scene, ego, frame)), INK, cv2.FILLED)
    return cv2.rectangle(picture, (0, 0), (side - 1, side - 1), INK, 1)


def _outline(picture: np.ndarray, corners: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
    if thickness == cv2.FILLED:
        cv2.fillConvexPoly(picture, corners, colour, cv2.LINE_AA)
    cv2.polylines(picture, [corners], True, colour, 1, cv2.LINE_AA)


def _footprint(scene: Scene, actor: Actor, frame: int) -> np.ndarray:
    """The four corners of an actor on the ground, camera-frame x, z [4, 2]."""
    centre, yaw = scene.in_camera(actor)
    along = np.array([np.sin(yaw[frame]), np.cos(yaw[frame])]) * actor.size[frame, 0] / 2
    across = np.array([np.cos(yaw[frame]), -np.sin(yaw[frame])]) * actor.size[frame, 1] / 2
    return centre[frame, [0, 2]] + np.stack([along + across, along - across, -along - across, -along + across])


def _backdrop(scene: Scene, frame: int, height: int, width: int) -> np.ndarray:
    """Sky over ground, as light as the time of day, and the lines of the lanes where the road is known."""
    night = np.nan_to_num(float(scene.labels.night[frame]))
    light = 1 - (1 - NIGHT) * night
    picture = np.empty((height, width, 3), np.uint8)
    horizon = round(float(scene.camera.intrinsics[1, 2]) / scene.camera.height * height)
    picture[:horizon], picture[horizon:] = np.array(SKY) * light, np.array(GROUND) * light
    size = np.array([width, height]) / [scene.camera.width, scene.camera.height]
    for line in _lanes(scene, frame):
        ahead = line[line[:, 2] > NEAR_M]
        if len(ahead) > 1:
            points = np.round(scene.camera.project(ahead) * size).clip(-10 * width, 10 * width).astype(np.int32)
            cv2.polylines(picture, [points], False, tuple(int(200 * light) for _ in range(3)), 1, cv2.LINE_AA)
    return picture


def _lanes(scene: Scene, frame: int) -> list[np.ndarray]:
    """Lines on the ground, camera-frame points [n, 3] each."""
    if scene.road is None or scene.poses is None:
        return []
    along = float(scene.labels.travel[frame]) + np.arange(-BEHIND_M, DRAWN_M, STEP_M)
    pose, lines = scene.poses[frame], []
    for lane in LANES:
        points = scene.road.at(along, lane * LANE_M)[0] + [0, scene.height_m, 0]
        lines.append((points - pose[:3, 3]) @ pose[:3, :3])
    return lines
