"""Labels of KITTI tracking: `label_02/0000.txt`, a row an object and frame, after the readme of its development kit."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from data_prep.kitti.objects import CLASSES, LEFT_OUT, Labelled, visibility, wrapped
from data_prep.kitti.text import numbers, read_lines
from data_prep.source import NAN, Refused
from drivesim.geometry import corners

COLUMNS = 17
MAX_INT = 2**31 - 1  # tracks are int32 in the clip store
TYPE = 2  # the one column that is a word
# The levels are words; each stands for the middle of what its word leaves: "partly" less than half, "largely" more.
OCCLUSION = {0: 1.0, 1: 0.75, 2: 0.25}  # fully visible, partly, largely occluded; 3 is unknown
TRUNCATION = {0: 1.0, 1: 0.75, 2: 0.25}


def read_labels(path: Path, camera: str) -> dict[int, list[Labelled]]:
    """The labelled objects of each frame. The labels' boxes on the picture are those of image_02; another camera's
    come from the 3D boxes. raises Refused if the file is missing or a row wrong"""
    found: dict[int, list[Labelled]] = defaultdict(list)
    for number, line in enumerate(read_lines(path), start=1):
        words, where = line.split(), f"{path} line {number}"
        if len(words) != COLUMNS:
            raise Refused(f"{where}: found {len(words)} values, expected {COLUMNS}")
        kind = words.pop(TYPE)
        if kind in LEFT_OUT:
            continue
        if kind not in CLASSES:
            raise Refused(f"{where}: type {kind!r} is none of {', '.join([*CLASSES, *LEFT_OUT])}")
        row = numbers(words, COLUMNS - 1, where)
        if (row[:4] % 1 != 0).any() or np.abs(row[:4]).max() > MAX_INT:
            raise Refused(f"{where}: frame, track, truncated and occluded are {words[:4]}, expected whole numbers")
        found[int(row[0])].append(_labelled(row, CLASSES[kind], camera == "image_02"))
    return dict(found)


def _labelled(row: np.ndarray, name: str, has_xyxy: bool) -> Labelled:
    """row [16]: frame, track, truncated, occluded, alpha, left, top, right, bottom, h, w, l, x, y, z, rotation_y"""
    track, truncated, occluded = (int(value) for value in row[1:4])
    height, width, length = row[9:12]
    centre, size = row[12:15] - [0, height / 2, 0], np.array([length, width, height])
    if (size <= 0).any():  # -1 or -1000 stand for "no 3D box"
        centre, size = np.full(3, NAN), np.full(3, NAN)
    yaw = wrapped(row[15] + np.pi / 2)  # at rotation_y 0 the length lies along the camera's x axis, at yaw 0 along z
    return Labelled(
        track,
        name,
        visibility(OCCLUSION, occluded, TRUNCATION, truncated),
        centre,
        tuple(size.tolist()),
        yaw,
        corners(centre[None], size[None], np.array([yaw]))[0],
        row[5:9] if has_xyxy else None,
    )
