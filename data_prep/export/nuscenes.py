"""A store as a data set of nuScenes: thirteen tables, pictures of key frames and of the frames between them, maps.

docs/export.md says what is assumed where a store knows less than nuScenes does. Tokens are hashes of names, so that
the same store gives the same bytes.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from data_prep.export.drive import Drive, kept_frames, read_drive, stride_of, time_us
from data_prep.export.job import Job
from data_prep.export.roadmap import Layer, road_mask
from data_prep.export.rows import Row, map_name, picture_name, scene_rows, token
from data_prep.export.scenes import Scene, scenes_of, unfit
from data_prep.export.vocabulary import ATTRIBUTES, CATEGORIES, VISIBILITIES, describe, level
from drivesim.config import option
from drivesim.data.schema import SPLITS
from drivesim.errors import UserError

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip


@dataclass
class NuscenesOptions:
    """Options of format=nuscenes."""

    version: str = option("v1.0-drivesim", "folder of the tables: NuScenes(version=..., dataroot=out)")

    def check(self) -> None:
        """raises UserError for a version that is no name of a folder"""
        taken = ("samples", "sweeps", "maps")
        if not self.version.strip(".") or set("/\\") & set(self.version) or self.version in taken:
            raise UserError(f"nuscenes.version is {self.version!r}; expected the name of a folder, v1.0-mini say")


@dataclass
class NuscenesWriter:
    """Fills `job.folder` with the tree."""

    job: Job
    options: NuscenesOptions

    def write(self) -> dict[str, Any]:
        """Write everything; returns what is worth noting: the scenes with their clips, splits and origins."""
        tables: dict[str, list[Row]] = defaultdict(list)
        notes: dict[str, Row] = {}
        for scene in scenes_of(self.job.store.index):
            if clips := self._with_pictures(scene):
                drive = read_drive(self.job.store, replace(scene, clips=clips))
                for table, rows in scene_rows(drive, self.job.store, self._description(drive)).items():
                    tables[table] += rows
                self._save_map(drive)
                notes[scene.name] = {"split": scene.split, "clips": clips, "origin_m": drive.origin.tolist()}
        channels = sorted({channel for note in notes.values() for channel in note["clips"]})
        self._save_tables(tables | _vocabulary(channels))
        self._save_splits(notes)
        return {"version": self.options.version, "scenes": notes}

    def _with_pictures(self, scene: Scene) -> dict[str, str]:
        """Save the pictures of a scene; its clips that were asked for, are fit and could be read."""
        job, clips = self.job, {}
        for channel, clip in scene.clips.items():
            if clip not in self._wanted:
                continue
            frames = job.store.frames(clip)
            if reason := unfit(bool(job.store.index.loc[clip, "has_boxes"]), frames, job.store.boxes(clip)):
                job.leave_out(clip, reason)
            elif job.save(clip, _names(scene, channel, kept_frames(scene, len(frames)))):
                clips[channel] = clip
        return clips

    @cached_property
    def _wanted(self) -> set[str]:
        return set(self.job.clips)

    def _description(self, drive: Drive) -> str:
        row = self.job.store.index.loc[next(iter(drive.scene.clips.values()))]
        return describe(float(row["night"]), row["weather"], row["source"], bool(row["synthetic"]))

    def _save_map(self, drive: Drive) -> None:
        path = self.job.folder / map_name(drive.scene.name)
        path.parent.mkdir(exist_ok=True)
        rows = self._drivable[self._drivable["clip"].isin(drive.scene.clips.values())]
        layers = [
            Layer(
                cv2.imdecode(np.frombuffer(row.png, np.uint8), cv2.IMREAD_GRAYSCALE),
                row.x_m,
                row.y_m,
                row.metres_per_pixel,
            )
            for row in rows.itertuples()
        ]
        cv2.imwrite(str(path), road_mask(drive.places, layers))

    @cached_property
    def _drivable(self) -> pd.DataFrame:
        maps = self.job.store.table("maps")
        return maps[maps["layer"] == "drivable_area"]

    def _save_tables(self, tables: dict[str, list[Row]]) -> None:
        folder = self.job.folder / self.options.version
        folder.mkdir(exist_ok=True)
        for name in TABLES:
            rows = ",\n".join(json.dumps(row) for row in tables[name])
            (folder / f"{name}.json").write_text(f"[\n{rows}\n]\n")

    def _save_splits(self, notes: dict[str, Row]) -> None:
        """The devkit's own file for splits that are not those of nuScenes; their names must not be official ones."""
        splits = {f"drivesim_{split}": [name for name in notes if notes[name]["split"] == split] for split in SPLITS}
        path: Path = self.job.folder / self.options.version / "splits.json"
        path.write_text(json.dumps(splits, indent=1) + "\n")


def _names(scene: Scene, channel: str, count: int) -> dict[int, str]:
    stride, clip = stride_of(scene), scene.clips[channel]
    return {n: picture_name(clip, channel, n % stride == 0, time_us(scene, n)) for n in range(count)}


def _vocabulary(channels: list[str]) -> dict[str, list[Row]]:
    """The tables that are the same whatever the scenes."""
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": about}
            for name, about in CATEGORIES.values()
        ],
        "attribute": [
            {
                "token": token("attribute", name),
                "name": name,
                "description": "Defined by nuScenes; not told by drivesim.",
            }
            for name in ATTRIBUTES
        ],
        "visibility": [
            {"token": key, "level": level(key), "description": f"visibility of whole object is {level(key)[1:]}%"}
            for key in VISIBILITIES
        ],
        "sensor": [{"token": token("sensor", name), "channel": name, "modality": "camera"} for name in channels],
    }
