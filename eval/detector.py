"""A small detector of every class, and how well it finds boxes: COCO's average precision.

A head on the frozen maps of EfficientNet-lite0, anchor-free and per cell as FCOS (Tian et al. 2019): all that it
knows of driving comes from the frames it was trained on.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from tqdm import tqdm

from drivesim.clip import CLASSES, NO_BOX
from drivesim.data.store import ClipStore
from eval.layout import BoxHead, fit, spread, surest, targets, trunk

SLOTS = 100  # boxes a frame that are looked at, and finds a frame that count, as in COCO
FAINTEST = 0.03  # score of the faintest finds; average precision weighs them by their rank
MIN_VISIBILITY = 0.4  # boxes that show less of themselves count neither way
SMALLEST = 0.0005  # share of the picture, 16x16 pixels of 512x1024; nor do smaller ones
OVERALL = "mean"  # of average precision over the classes that occur


@dataclass(frozen=True)
class Labelled:
    """A frame and what is in it.

    frame   [128, 256, 3] uint8
    boxes   [n, 4] fractions x1 y1 x2 y2; labels [n] indices into CLASSES
    hidden  [n] those that hardly show, which need not be found
    """

    frame: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    hidden: np.ndarray


@dataclass(frozen=True)
class Found:
    """Finds in one frame: boxes [n, 4] fractions, labels [n], scores [n] in 0..1."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class Detector(BoxHead):
    """Frames -> boxes of every class."""

    def __init__(self) -> None:
        super().__init__(len(CLASSES))

    def detect(self, maps: list[Tensor]) -> Found:
        """The SLOTS surest finds in a frame, given its `trunk` maps [1, ...]."""
        every, scores, _ = self.candidates(maps)
        found = [surest(every, score, FAINTEST) for score in scores]
        labels = np.repeat(np.arange(len(CLASSES)), [len(boxes) for boxes, _ in found])
        boxes, surety = (np.concatenate(part) for part in zip(*found, strict=True))
        kept = np.argsort(-surety, kind="stable")[:SLOTS]
        return Found(boxes[kept], labels[kept], surety[kept])


@dataclass(frozen=True)
class Lessons:
    """Frames as the head is trained on them, each mirrored too: trunk maps [2n, ...] and `targets` [2n, ...]."""

    maps: list[Tensor]
    wanted: Tensor

    @classmethod
    def of(cls, frames: Sequence[Labelled], progress: bool = True) -> "Lessons":
        maps, wanted = [], []
        for given in tqdm(frames, "detector: maps", leave=False, disable=not progress):
            mirrored = np.stack([1 - given.boxes[:, 2], given.boxes[:, 1], 1 - given.boxes[:, 0], given.boxes[:, 3]], 1)
            maps.append(trunk(np.stack([given.frame, given.frame[:, ::-1]])))
            wanted += [targets(boxes, given.labels, len(CLASSES)) for boxes in (given.boxes, mirrored)]
        return cls([torch.cat(level) for level in zip(*maps, strict=True)], torch.stack(wanted))

    @staticmethod
    def cat(parts: Sequence["Lessons"]) -> "Lessons":
        levels = zip(*(part.maps for part in parts), strict=True)
        return Lessons([torch.cat(level) for level in levels], torch.cat([part.wanted for part in parts]))

    def __len__(self) -> int:
        return len(self.wanted)


def train_detector(
    lessons: Lessons, steps: int, seed: int, among: Tensor | None = None, progress: bool = True
) -> Detector:
    """A detector after `steps` batches of 8; weights and batches follow from the seed.

    among  numbers of the lessons to draw from; None: all
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = Detector()
    fit(detector, lessons.maps, lessons.wanted, math.inf, seed, progress, steps, among, "detector: train")
    return detector.eval()


def labelled_frames(store: ClipStore, clips: list[str], count: int, told: str) -> Iterator[Labelled]:
    """At most about `count` frames, spread evenly over clips that have boxes."""
    for clip, frames in spread(store, clips, count, told):
        layout, shown = (store.layout(clip, SLOTS, visibility) for visibility in (0.0, MIN_VISIBILITY))
        for t, image in frames:
            if t < layout.num_frames:
                there = layout.classes[t] != NO_BOX
                hidden = ~torch.isin(layout.tracks[t][there], shown.tracks[t])
                boxes, labels = layout.boxes[t][there], layout.classes[t][there]
                yield Labelled(image, boxes.numpy(), labels.numpy(), hidden.numpy())


def average_precision(truth: Sequence[Labelled], found: Sequence[Found]) -> dict[str, dict[str, float]]:
    """Average precision of finds, frame by frame, by COCO's own evaluation (Lin et al. 2014): for each class that
    occurs, and for their mean, `ap` over IoU 0.5 to 0.95, `ap50` at 0.5 (0..1), and `boxes`, how many there are to be
    found. Hidden and tiny boxes count neither way.

    raises  ValueError if there is nothing to find
    """
    if not any(countable(given).any() for given in truth):
        raise ValueError(f"{len(truth)} frames without a box that counts; average precision needs some")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports to people as it goes
        coco = COCO()
        coco.dataset = {"images": [{"id": i} for i in range(len(truth))], "annotations": _annotations(truth),
                        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)]}  # fmt: skip
        coco.createIndex()
        judge = COCOeval(coco, _finds(coco, found), "bbox")
        # Of what lies outside the range of areas a find is neither right nor wrong.
        judge.params.areaRng, judge.params.areaRngLbl = [[SMALLEST, 1.0]], ["all"]
        judge.params.maxDets = [SLOTS]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]  # [IoU, recall, class]; -1 where a class does not occur
    asked = [row["category_id"] for row in coco.dataset["annotations"] if row["area"] >= SMALLEST]
    counts = [asked.count(k) for k in range(len(CLASSES))]
    result = {name: {"ap": float(precision[:, :, k].mean()), "ap50": float(precision[0, :, k].mean()),
                     "boxes": counts[k]}
              for k, name in enumerate(CLASSES) if counts[k]}  # fmt: skip
    mean = {key: float(np.mean([row[key] for row in result.values()])) for key in ("ap", "ap50")}
    return {OVERALL: {**mean, "boxes": sum(counts)}, **result}


def countable(given: Labelled) -> np.ndarray:
    """[n] those boxes that are to be found: neither hidden nor tiny."""
    return ~given.hidden & (_areas(given.boxes) >= SMALLEST)


def _areas(boxes: np.ndarray) -> np.ndarray:
    """[n, 4] -> [n], shares of the picture."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1).astype(float)


def _annotations(truth: Sequence[Labelled]) -> list[dict]:
    rows: list[dict] = []
    for image, given in enumerate(truth):
        areas = np.where(given.hidden, 0.0, _areas(given.boxes))  # no area: outside the range, so it counts neither way
        for box, label, area in zip(given.boxes.astype(float), given.labels, areas.tolist(), strict=True):
            x1, y1, x2, y2 = box.tolist()
            rows.append({"id": len(rows) + 1, "image_id": image, "category_id": int(label), "iscrowd": 0,
                         "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area})  # fmt: skip
    return rows


def _finds(coco: COCO, found: Sequence[Found]) -> COCO:
    rows = [
        {"image_id": image, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}
        for image, finds in enumerate(found)
        for (x1, y1, x2, y2), label, score in zip(
            finds.boxes.astype(float).tolist(), finds.labels, finds.scores, strict=True
        )
    ]
    result = coco.loadRes(rows) if rows else COCO()
    if not rows:  # loadRes takes no empty list
        result.dataset = {**coco.dataset, "annotations": []}
        result.createIndex()
    return result
