"""KITTI raw and KITTI tracking as a source of `drivesim prepare`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.kitti import raw, tracking
from data_prep.naming import printable
from data_prep.options import ClipOptions, data_root
from data_prep.recording import clips_of
from data_prep.source import Dropped, RawClip, Unit
from drivesim.config import option
from drivesim.errors import UserError

CAMERAS = ("image_02", "image_03")


@dataclass
class KittiConfig(ClipOptions):
    """Options of source=kitti."""

    fps: float = option(10.0, "frames a second to resample to; KITTI has about 10")
    licence: str = option("CC BY-NC-SA 3.0", "noted in the index of the store")
    cameras: list[str] = option(["image_02"], "image_02 (left colour camera), image_03 (right), or [image_02,image_03]")

    def check(self, source: str = "kitti") -> None:
        """raises UserError for values that cannot work"""
        super().check(source)
        if not self.cameras or not set(self.cameras) <= set(CAMERAS):
            raise UserError(f"kitti.cameras is {self.cameras}; expected some of {', '.join(CAMERAS)}")


class KittiSource:
    """A unit is one camera of a drive (raw) or sequence (tracking); what the data is, is seen from its folders.

    raises  UserError if `root` is no folder or a value of `config` cannot work
    """

    def __init__(self, config: KittiConfig, root: Path | str | None) -> None:
        config.check()
        self.config, self.root = config, data_root("kitti", root, "the data")

    def units(self) -> list[Unit]:
        """One unit a drive and camera. raises UserError if `root` is neither layout, or both"""
        cameras = [camera for camera in CAMERAS if camera in self.config.cameras]
        drives, sequences = raw.units(self.root, cameras), tracking.units(self.root, cameras)
        if drives and sequences:
            raise UserError(
                f"root={self.root} holds KITTI raw ({drives[0].route}) and KITTI tracking ({sequences[0].route}), "
                "which show the same drives; give the folder of one of them"
            )
        if not drives and not sequences:
            raise UserError(
                f"root={self.root} is neither KITTI raw (DATE/DATE_drive_NNNN_sync/image_02/data) nor KITTI tracking "
                "(training/image_02/NNNN); give the folder that holds one of them"
            )
        return drives or sequences

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        """The clips of one unit, one after the other, and where its files do not match."""
        folder = Path(unit.path)
        drive = raw.read(self.root, folder) if folder.name == "data" else tracking.read(self.root, folder)
        yield from (Dropped(unit.name, note) for note in drive.notes())
        template = RawClip(
            name=unit.name,
            route=unit.route,
            fps=self.config.fps,
            source=printable(unit.path),
            licence=self.config.licence,
            has_boxes=drive.objects is not None,
            frames=iter(()),
            camera=folder.parent.name,
        )
        yield from clips_of(template, drive.shots(), self.config)
