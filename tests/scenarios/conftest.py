from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.annotations import camera_pose
from data_prep.source import Box, Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.clip import Camera
from drivesim.geometry import corners, picture_box

HEIGHT, WIDTH, FPS, FRAMES = 64, 128, 10.0, 20
CAMERA = Camera(np.array([[80.0, 0, 64], [0, 80, 28], [0, 0, 1]]), HEIGHT, WIDTH)
SPEED_MPS, HEIGHT_M = 5.0, 1.5
SIZE = (4.0, 1.8, 1.5)
LEADER, PARKED, HIDDEN = 7, 3, 9


def boxed(track: int, x: float, z: float, visibility: float, kind: str = "car") -> Box | None:
    centre = np.array([[x, HEIGHT_M - SIZE[2] / 2, z]])
    xyxy = picture_box(CAMERA, corners(centre, np.array([SIZE]), np.zeros(1))[0])
    return xyxy and Box(track, kind, xyxy, visibility, tuple(centre[0].tolist()), SIZE, 0.0)


def drive(heading: float, posed: bool) -> Iterator[Frame]:
    """Straight on at SPEED_MPS, a leader 12 m ahead, one parked at 30 m on the left, one hidden by the leader."""
    for t in range(FRAMES):
        way = SPEED_MPS * t / FPS
        boxes = [boxed(LEADER, 0, 12, 1.0), boxed(PARKED, -4, 30 - way, 0.9), boxed(HIDDEN, 0, 24, 0.05)]
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pose = camera_pose(100 + way * np.sin(heading), 50 + way * np.cos(heading), heading) if posed else None
        known = {"pose": pose, "intrinsics": CAMERA.intrinsics} if posed else {}
        yield Frame(image, [box for box in boxes if box], speed_mps=SPEED_MPS, night=0.0, vehicles=2.0, **known)


def flat(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The same, of which only the boxes on the picture are known."""
    for frame in frames:
        frame.boxes = [Box(box.track, box.name, box.xyxy, box.visibility) for box in frame.boxes]
        yield frame


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """Clips "solid", with poses and boxes in space, and "flat", with boxes on the picture alone."""
    root = tmp_path_factory.mktemp("scenes") / "store"
    for name, frames in {"solid": drive(0.4, True), "flat": flat(drive(0.4, False))}.items():
        clip = RawClip(name, name, FPS, "test", "CC0-1.0", True, frames, weather="cloudy")
        write_clip(root, clip, "test")
    merge(root, {"source": "test"})
    return root


@pytest.fixture
def scenario(tmp_path) -> Callable[..., str]:
    """scenario(seconds=2, agents=[...]) writes a file and gives its name."""

    def write(name: str = "a.yaml", **content) -> str:
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return str(tmp_path / name)

    return write


def car(name: str = "a", kind: str = "car", **road) -> dict:
    own = {key: road.pop(key) for key in ("track", "priority", "size_m", "appears_s", "leaves_s") if key in road}
    return {"name": name, "class": kind, "road": {"ahead_m": 20} | road} | own
