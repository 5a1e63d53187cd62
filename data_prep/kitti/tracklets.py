"""Tracklets of KITTI raw: `tracklet_labels.xml`, in Velodyne coordinates, after `tracklets.h` of its kit."""

from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from data_prep.kitti.calibration import Calibration
from data_prep.kitti.objects import CLASSES, LEFT_OUT, Labelled, visibility, wrapped
from data_prep.kitti.text import numbers
from data_prep.source import Refused
from drivesim.geometry import corners

# The levels are words; each stands for the middle of what its word leaves. -1, and 99 in files, is unset.
OCCLUSION = {0: 1.0, 1: 0.5, 2: 0.0}  # visible, partly, fully occluded
TRUNCATION = {0: 1.0, 1: 0.5, 2: 0.0, 3: 0.0}  # in the picture, truncated, out of it, behind it
UNSET = {"occlusion": "-1", "truncation": "-1"}  # older files lack these
# Velodyne (x forward, y left, z up) with its axes named as a camera's, in which drivesim.geometry thinks.
LEVEL = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])


def read_tracklets(path: Path, calibration: Calibration) -> dict[int, list[Labelled]]:
    """The labelled objects of each frame; the track is the tracklet's place in the file.

    raises Refused if the file is no XML, or a value is missing or no number
    """
    try:
        items = ElementTree.parse(path).getroot().findall("tracklets/item")
    except (ElementTree.ParseError, UnicodeDecodeError, OSError) as error:
        raise Refused(f"{path} is not readable ({error})") from error
    found: dict[int, list[Labelled]] = defaultdict(list)
    for track, item in enumerate(items):
        where = f"{path} tracklet {track}"
        kind = item.findtext("objectType", "").strip()
        if kind in LEFT_OUT:
            continue
        if kind not in CLASSES:
            raise Refused(f"{where}: objectType {kind!r} is none of {', '.join([*CLASSES, *LEFT_OUT])}")
        first = int(_values(item, ["first_frame"], where)[0])
        for index, labelled in enumerate(_tracklet(item, track, CLASSES[kind], calibration, where)):
            found[first + index].append(labelled)
    return dict(found)


def _tracklet(item: Element, track: int, name: str, calibration: Calibration, where: str) -> list[Labelled]:
    """One object in each frame from its first on."""
    height, width, length = _values(item, ["h", "w", "l"], where)
    size = np.array([length, width, height])
    names = ["tx", "ty", "tz", "rz", "occlusion", "truncation"]
    poses = item.findall("poses/item")
    rows = np.array([_values(pose, names, f"{where} pose {i}") for i, pose in enumerate(poses)]).reshape(-1, 6)
    bottom, turn = rows[:, :3], rows[:, 3]
    # A turn by rz about z (up) is one by -rz about y (down) there, and rz 0 looks forward, as yaw 0 does.
    centre = (bottom + np.array([0, 0, height / 2])) @ LEVEL.T
    solids = corners(centre, np.tile(size, (len(rows), 1)), -turn)
    ahead = np.stack([-np.sin(turn), np.zeros_like(turn), np.cos(turn)], -1)
    rotation, shift = calibration.velo_to_rect[:3, :3] @ LEVEL.T, calibration.velo_to_rect[:3, 3]
    # The laser's ground is not quite level in the camera: the corners keep the tilt, the yaw cannot.
    centre, solids, ahead = centre @ rotation.T + shift, solids @ rotation.T + shift, ahead @ rotation.T
    return [
        Labelled(
            track,
            name,
            visibility(OCCLUSION, int(rows[i, 4]), TRUNCATION, int(rows[i, 5])),
            centre[i],
            (float(length), float(width), float(height)),
            wrapped(float(np.arctan2(ahead[i, 0], ahead[i, 2]))),
            solids[i],
        )
        for i in range(len(rows))
    ]


def _values(element: Element, names: list[str], where: str) -> np.ndarray:
    """Numbers of the children called `names`."""
    words = [element.findtext(name, UNSET.get(name, "")).strip() or f"<{name}> missing" for name in names]
    return numbers(words, len(names), f"{where} ({', '.join(names)})")
