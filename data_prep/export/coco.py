"""A store as a COCO detection data set: JPEG pictures and one annotations.json (https://cocodataset.org/#format-data)."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from data_prep.export.job import Job
from data_prep.export.marks import marks
from drivesim.clip import CLASSES, VEHICLES
from drivesim.config import option
from drivesim.errors import UserError

CATEGORY_IDS = {name: number for number, name in enumerate(CLASSES, start=1)}


@dataclass
class CocoOptions:
    """Options of format=coco."""

    every: int = option(1, "take every so many frames of a clip, from its first one on")
    min_visibility: float = option(0.15, "leave out boxes seen less than this, as training does; 0 keeps all")

    def check(self) -> None:
        """raises UserError for values that cannot work"""
        if self.every < 1:
            raise UserError(f"coco.every is {self.every}; expected 1 or more")
        if not 0 <= self.min_visibility <= 1:
            raise UserError(f"coco.min_visibility is {self.min_visibility}; expected 0..1")


@dataclass
class CocoWriter:
    """Fills `job.folder` with images/ and annotations.json."""

    job: Job
    options: CocoOptions

    def write(self) -> dict[str, Any]:
        """Write everything; returns what is worth noting."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for clip in self.job.clips:
            numbers = range(0, int(self.job.store.index.loc[clip, "frames"]), self.options.every)
            if not self.job.store.index.loc[clip, "has_boxes"]:
                self.job.leave_out(clip, "its boxes are unknown")
            elif self.job.save(clip, {number: f"images/{_file(clip, number)}" for number in numbers}):
                self._add(clip, numbers, images, annotations)
        self._save(images, annotations)
        return {"images": len(images), "annotations": len(annotations)}

    def _add(self, clip: str, numbers: range, images: list, annotations: list) -> None:
        info, boxes = self.job.store.index.loc[clip], self.job.store.boxes(clip)
        marked = marks(self.job.store, clip)
        # NaN, which says that nobody knows, is kept.
        by_frame = dict(iter(boxes[~(boxes["visibility"] < self.options.min_visibility)].groupby("frame")))
        for number in numbers:
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": _file(clip, number),
                    "width": int(info.width),
                    "height": int(info.height),
                    "clip": clip,
                    "frame": number,
                    "split": info.split,
                    "license": self._licences[info.licence],
                    **marked[number],
                }
            )
            for row in by_frame.get(number, boxes[:0]).to_dict("records"):
                annotations.append(_annotation(len(annotations) + 1, images[-1], row))

    @cached_property
    def _licences(self) -> dict[str, int]:
        """Licence -> id, of the clips asked for."""
        names = sorted(self.job.store.index.loc[self.job.clips, "licence"].unique())
        return {name: number for number, name in enumerate(names, start=1)}

    def _save(self, images: list, annotations: list) -> None:
        document = {
            "info": {"description": f"exported by drivesim from a store of {self.job.store.info.get('source', '?')}"},
            "licenses": [{"id": number, "name": name, "url": ""} for name, number in self._licences.items()],
            "categories": [
                {"id": number, "name": name, "supercategory": "vehicle" if name in VEHICLES else "person"}
                for name, number in CATEGORY_IDS.items()
            ],
            "images": images,
            "annotations": annotations,
        }
        (self.job.folder / "annotations.json").write_text(json.dumps(document) + "\n")


def _file(clip: str, number: int) -> str:
    return f"{clip}/{number:06d}.jpg"


def _annotation(number: int, image: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    x, y = row["x1"] * image["width"], row["y1"] * image["height"]
    width, height = (row["x2"] - row["x1"]) * image["width"], (row["y2"] - row["y1"]) * image["height"]
    known = {} if pd.isna(row["visibility"]) else {"visibility": float(row["visibility"])}
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": CATEGORY_IDS[row["class"]],
        "bbox": [float(value) for value in (x, y, width, height)],
        "area": float(width * height),
        "iscrowd": 0,
        "track_id": int(row["track"]),
    } | known
