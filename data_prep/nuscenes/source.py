"""nuScenes as a source of `drivesim prepare`: which scenes and cameras there are, and the clips of each.

The devkit takes seconds to import, so it is imported only where nuScenes is what is asked for.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.nuscenes.records import check_folder, read_rows
from data_prep.options import ClipOptions, data_root
from data_prep.recording import clips_of
from data_prep.source import Dropped, RawClip, Unit
from drivesim.config import option
from drivesim.data.schema import SPLITS
from drivesim.errors import UserError

PUBLISHED, LICENCE = ("v1.0-mini", "v1.0-trainval", "v1.0-test"), "CC BY-NC-SA 4.0"


@dataclass
class NuscenesConfig(ClipOptions):
    """Options of source=nuscenes."""

    fps: float = option(12.0, "frames a second to resample to; 2 with sweeps=false; a slower recording repeats frames")
    clip_seconds: float = option(20.0, "longest clip; a scene has 20 s")
    licence: str = option("", "noted in the index of the store; by default that of nuScenes, for its own versions")
    version: str = option("v1.0-mini", "folder of tables under root: v1.0-mini, v1.0-trainval, v1.0-test, or another")
    cameras: list[str] = option(["CAM_FRONT"], "channels; each becomes clips of its own")
    sweeps: bool = option(True, "all pictures, 12 a second; false: key frames only, 2 a second")

    def check(self, source: str = "nuscenes") -> None:
        """raises UserError for values that cannot work"""
        super().check(source)
        if not self.cameras:
            raise UserError("nuscenes.cameras is empty; give some, as in nuscenes.cameras=[CAM_FRONT,CAM_BACK]")


@dataclass(frozen=True)
class Planned:
    """A unit of work, and what it is in the tables: the token of its scene, and the channel."""

    unit: Unit
    scene: str
    camera: str


class NuscenesSource:
    """Every scene of a version, seen by each of the cameras. One unit is one scene and one camera.

    raises  UserError if `root` holds no such version or a value of `config` cannot work
    """

    def __init__(self, config: NuscenesConfig, root: Path | str | None) -> None:
        config.check()
        self.config, self.root = config, data_root("nuscenes", root, "samples, sweeps and v1.0-...")
        self.cameras = tuple(dict.fromkeys(config.cameras))

    def units(self) -> list[Unit]:
        """All cameras of the first scene, of the second ... raises UserError if there is none, or a table is missing"""
        planned = plan(self.root, self.config.version, self.cameras)
        if not self.config.sweeps:
            self._check_rate()
        return [piece.unit for piece in planned.values()]

    def clips(self, unit: Unit) -> Iterator[RawClip | Dropped]:
        """The clips of one camera in one scene; what is damaged comes as Dropped or as Refused."""
        from data_prep.nuscenes.database import open_database
        from data_prep.nuscenes.drive import Drive

        config, planned = self.config, plan(self.root, self.config.version, self.cameras)
        piece = planned[unit.name]
        database = open_database(self.root, config.version, self.cameras)
        if piece == next(iter(planned.values())):  # told once, though it may concern any of them
            yield from (Dropped(config.version, fault.reason) for fault in database.faults if not fault.scene)
        drive = Drive(database, piece.scene, piece.camera, config.sweeps)
        template = RawClip(
            name=unit.name,
            route=unit.route,
            fps=config.fps,
            source=f"{config.version}/{unit.route}",
            licence=config.licence or (LICENCE if config.version in PUBLISHED else ""),
            has_boxes=bool(database.sample_annotation),  # the test set comes without
            frames=iter(()),
            camera=piece.camera,
            weather=drive.weather,
            caption=" ".join(drive.scene["description"].split()),
            maps=drive.maps(),
        )
        yield from (Dropped(unit.name, loss) for loss in drive.losses)
        yield from clips_of(template, drive.shots(), config)

    def _check_rate(self) -> None:
        """raises UserError if the key frames come much slower than fps: each would be shown again and again"""
        times = defaultdict(list)
        for row in read_rows(check_folder(self.root, self.config.version) / "sample.json"):
            if isinstance(row.get("timestamp"), int | float):
                times[str(row.get("scene_token"))].append(row["timestamp"])
        steps = np.concatenate([np.diff(np.sort(of_scene)) for of_scene in times.values()] or [np.empty(0)])
        if len(steps) and self.config.fps * np.median(steps) * 1e-6 > 1.5:
            rate = 1e6 / np.median(steps)
            raise UserError(
                f"nuscenes.fps is {self.config.fps:g}, but key frames come at {rate:.3g} a second; "
                f"add nuscenes.fps={rate:.0f}, or leave out nuscenes.sweeps=false"
            )


@lru_cache(maxsize=1)
def plan(root: Path, version: str, cameras: tuple[str, ...]) -> dict[str, Planned]:
    """What there is to do, by name of the unit, in the order of the table `scene`.

    raises  UserError if a table is missing or damaged, or there is no scene or no such camera
    """
    folder = check_folder(root, version)
    known = sorted({str(row.get("channel")) for row in read_rows(folder / "sensor.json") if _is_camera(row)})
    if unknown := [camera for camera in cameras if camera not in known]:
        raise UserError(f"nuscenes.cameras has {', '.join(unknown)}; {folder} knows {', '.join(known) or 'no camera'}")
    scenes = {row["token"]: _name(row) for row in read_rows(folder / "scene.json")}
    if not scenes:
        raise UserError(f"{folder / 'scene.json'} holds no scene; expected at least one, unpack the table anew")
    taken, splits = Counter(scenes.values()), splits_of(folder) or official_splits(version)
    planned = {}
    for token, name in scenes.items():
        route = name if taken[name] == 1 else f"{name}-{_file_friendly(token)[:8]}"
        for camera in cameras:
            unit = Unit(f"{route}_{_file_friendly(camera)}", route, group="nuscenes", split=splits.get(name, ""))
            planned[unit.name] = Planned(unit, token, camera)
    return planned


def splits_of(folder: Path) -> dict[str, str]:
    """Name of a scene -> train, val or test, as splits.json beside the tables tells for data of one's own, in the
    devkit's words: {"drivesim_val": [scenes], ...}. Empty where there is none. raises UserError if it cannot be read"""
    path = folder / "splits.json"
    if not path.exists():
        return {}
    try:
        given = json.loads(path.read_text())
        return {
            str(scene): split for split in SPLITS for name in given if name.endswith(split) for scene in given[name]
        }
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(
            f"{path} is not readable ({error}); expected lists of scenes by split, or no such file"
        ) from error


def official_splits(version: str) -> dict[str, str]:
    """Name of a scene -> train, val or test, as published; of v1.0-mini its own two."""
    from nuscenes.utils.splits import create_splits_scenes

    names = {"mini_train": "train", "mini_val": "val"} if version.endswith("mini") else {}
    official = create_splits_scenes()
    return {
        scene: split
        for name, split in (names or {"train": "train", "val": "val", "test": "test"}).items()
        for scene in official[name]
    }


def _is_camera(row: dict) -> bool:
    return row.get("modality") == "camera"


def _name(row: dict) -> str:
    """A scene's name as part of a file's; the token where it has none."""
    name = row.get("name")
    return _file_friendly(name if isinstance(name, str) and name else row["token"])


def _file_friendly(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("._") or "scene"
