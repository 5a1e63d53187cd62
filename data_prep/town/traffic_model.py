"""The town's traffic for scenarios: who is where, as a store of the town would have it, without keeping a picture."""

from collections import deque

import cv2
import pyarrow as pa

from data_prep.town.world import Setting, World
from data_prep.writer import ClipRows, frame_rate
from drivesim.data.schema import BOXES, FRAMES
from drivesim.scenarios.recorded import Recording
from drivesim.scenarios.schema import Traffic

ROUTES = 2  # kind of route in seeds: not those of a store, which are 0 and 1


def record(traffic: Traffic, seconds: float, fps: float) -> Recording:
    """Drive through a town of its own, `seconds` long, and note what is in sight. Frames are painted at the town's
    usual size, since that is what tells who hides whom: 20 ms each."""
    cv2.setNumThreads(1)
    setting = Setting(
        seed=(traffic.seed, ROUTES, 0),
        seconds=seconds,
        crowdedness=traffic.crowdedness,
        speed_mps=(traffic.speed_mps[0], traffic.speed_mps[1]),
    )
    world, rows = World(setting), ClipRows("town", frame_rate(fps))
    frames = (world.frame(index / fps) for index in range(max(1, round(seconds * fps))))
    deque(rows.collect(frames), maxlen=0)  # only the rows are wanted
    tables = pa.Table.from_pylist(rows.frames, FRAMES), pa.Table.from_pylist(rows.boxes, BOXES)
    return Recording(*tables, fps, setting.height, setting.width)
