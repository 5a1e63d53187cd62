"""KITTI tracking: training/ and testing/ with image_02/NNNN, after the readme of its development kit."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.kitti.calibration import tracking_calibration
from data_prep.kitti.drive import Drive, numbered_pictures
from data_prep.kitti.labels import read_labels
from data_prep.kitti.oxts import tracking_motions
from data_prep.source import Unit

SPLITS = {"training": "", "testing": "test"}  # the training sequences are shared out
HERTZ = 10.0  # the benchmark gives no times; the raw data it was cut from has about this rate


def units(root: Path, cameras: Sequence[str]) -> list[Unit]:
    """A unit a sequence and camera. Nothing is labelled in the testing sequences: they are the test split."""
    return [
        Unit(f"{part}_{name}_{camera}", f"{part}/{name}", "kitti", f"{part}/{camera}/{name}", split)
        for part, split in SPLITS.items()
        for name in sorted({path.name for path in root.glob(f"{part}/image_0[23]/*") if _is_sequence(path)})
        for camera in cameras
    ]


def _is_sequence(path: Path) -> bool:
    return path.name.isascii() and path.name.isdecimal() and path.is_dir()


def read(root: Path, folder: Path) -> Drive:
    """The sequence and camera whose pictures are in `folder`. raises Refused with the reason if it cannot be used"""
    part, camera, name = root / folder.parts[0], folder.parts[1], folder.name
    pictures = numbered_pictures(root / folder)
    return Drive(
        pictures,
        {number: number / HERTZ for number in range(min(pictures), max(pictures) + 1)},
        tracking_calibration(part / "calib" / f"{name}.txt", camera),
        tracking_motions(part / "oxts" / f"{name}.txt"),
        read_labels(part / "label_02" / f"{name}.txt", camera) if folder.parts[0] == "training" else None,
    )
