"""KITTI raw, synced and rectified: DATE/DATE_drive_NNNN_sync, after the readme of its development kit."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.kitti.calibration import raw_calibration
from data_prep.kitti.drive import Drive, numbered_pictures
from data_prep.kitti.oxts import raw_motions
from data_prep.kitti.text import read_lines
from data_prep.kitti.tracklets import read_tracklets
from data_prep.source import Refused, Unit
from drivesim.errors import UserError

DRIVE = re.compile(r"(\d{4}_\d\d_\d\d_drive_\d{4})_sync", re.ASCII)
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,9}", re.ASCII)  # nanoseconds, which datetime does not know


def units(root: Path, cameras: Sequence[str]) -> list[Unit]:
    """A unit a drive and camera; `root` holds the days or is one. raises UserError if a drive is there twice"""
    found: dict[str, Path] = {}
    for path in sorted([*root.glob("*_drive_*_sync"), *root.glob("*/*_drive_*_sync")]):
        if (match := DRIVE.fullmatch(path.name)) and path.is_dir():
            if other := found.get(match[1]):
                raise UserError(f"root={root} holds {path.name} twice, in {other.parent} and {path.parent}; move one")
            found[match[1]] = path
    return [
        Unit(f"{name}_{camera}", name, "kitti", (found[name].relative_to(root) / camera / "data").as_posix())
        for name in sorted(found)
        for camera in cameras
    ]


def read(root: Path, folder: Path) -> Drive:
    """The drive and camera whose pictures are in `folder`. raises Refused with the reason if it cannot be used"""
    camera, drive = folder.parent.name, root / folder.parent.parent
    pictures = numbered_pictures(root / folder)
    calibration = raw_calibration(drive.parent, camera)
    tracklets = drive / "tracklet_labels.xml"
    return Drive(
        pictures,
        read_times(drive / camera / "timestamps.txt"),
        calibration,
        raw_motions(drive / "oxts" / "data"),
        read_tracklets(tracklets, calibration) if tracklets.exists() else None,
    )


def read_times(path: Path) -> dict[int, float]:
    """Seconds since the first line by frame. raises Refused if the file is missing or a line is no time"""
    stamps = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            if not STAMP.fullmatch(line.strip()):
                raise ValueError
            stamps.append(np.datetime64(line.strip(), "ns"))
        except ValueError:
            found = f"{path} line {number}: {line!r}"
            raise Refused(f"{found} is no time; expected 2011-09-26 13:02:25.964389445 or alike") from None
    if not stamps:
        raise Refused(f"{path} holds no time")
    times = np.array(stamps, "datetime64[ns]").astype(np.int64)
    return dict(enumerate(((times - times[:1]) / 1e9).tolist()))
