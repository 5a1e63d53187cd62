"""Do boxes steer? What the car finder sees, against the vehicle boxes asked for and against those of other clips."""

import numpy as np

from drivesim.clip import Layout
from eval.layout import GRID, CarFinder, count_met, large_boxes, vehicle_boxes


def _mean_inside(occupancy: np.ndarray, box: np.ndarray) -> float:
    x1, x2 = (int(v) for v in (box[0] * GRID[1], np.ceil(box[2] * GRID[1])))
    y1, y2 = (int(v) for v in (box[1] * GRID[0], np.ceil(box[3] * GRID[0])))
    return float(occupancy[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].mean())


class LayoutMeter:
    """Counts over generated frames, against the boxes each was asked for and against those of all other clips.

    Only boxes and finds of at least SMALLEST are counted; a find is right if it meets any asked box.
    """

    def __init__(self, finder: CarFinder) -> None:
        self.finder = finder
        self._boxes: dict[tuple[str, str], np.ndarray] = {}  # clip shown, clip asked -> boxes, met, their occupancy
        self._finds: dict[str, np.ndarray] = {}  # clip shown -> frames, finds, right ones

    def add(self, frame: np.ndarray, clip: str, boxes: dict[str, np.ndarray]) -> None:
        """Look at a frame [H, W, 3] uint8 of `clip`; `boxes`, clip -> vehicle boxes [n, 4] of that moment, fractions,
        holds those of every clip, its own too."""
        finds, occupancy = self.finder.find(frame)
        for other, asked in boxes.items():
            large = large_boxes(asked)
            inside = sum(_mean_inside(occupancy, box) for box in large)
            counts = np.array([len(large), count_met(large, finds), inside])
            self._boxes[clip, other] = self._boxes.get((clip, other), 0) + counts
        counts = np.array([1, len(large_boxes(finds)), count_met(large_boxes(finds), boxes[clip])])
        self._finds[clip] = self._finds.get(clip, 0) + counts

    def result(self, without: str | None = None) -> dict[str, float]:
        """
        boxes_found           share of asked vehicle boxes found with IoU >= 0.5
        boxes_found_shuffled  the same against the boxes of all other clips at the same moment: chance
        boxes_ratio           their ratio; 1 means the boxes steer nothing
        boxes_precision       share of finds that meet an asked box
        boxes_false           finds a frame that meet none
        boxes_occupancy       mean vehicle occupancy inside asked boxes, 0..1 (and _shuffled)

        without  leave out a clip, as shown and as asked for. Numbers that rest on nothing are nan.
        """
        pairs = {key: counts for key, counts in self._boxes.items() if without not in key}
        none = np.zeros(3)
        own = sum((counts for (shown, asked), counts in pairs.items() if shown == asked), none)
        other = sum((counts for (shown, asked), counts in pairs.items() if shown != asked), none)
        frames, finds, right = sum((counts for clip, counts in self._finds.items() if clip != without), none)
        found, found_other = _share(own[1], own[0]), _share(other[1], other[0])
        return {
            "boxes_found": found, "boxes_found_shuffled": found_other,
            "boxes_ratio": _share(found, found_other),
            "boxes_precision": _share(right, finds), "boxes_false": _share(finds - right, frames),
            "boxes_occupancy": _share(own[2], own[0]), "boxes_occupancy_shuffled": _share(other[2], other[0]),
            "boxes_asked": own[0],
        }  # fmt: skip

    def errors(self) -> dict[str, float]:
        """Standard errors of `result` by the jackknife over clips (Efron 1982): how much each clip by itself matters.
        nan where it is not defined without one of them."""
        parts = [self.result(without=clip) for clip in self._finds]
        return {key: _jackknife(np.array([part[key] for part in parts])) for key in self.result()}


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def _jackknife(values: np.ndarray) -> float:
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum())) if n > 1 else float("nan")


def boxes_at(layouts: dict[str, tuple[Layout, float]], time_s: float) -> dict[str, np.ndarray]:
    """Vehicle boxes at a moment of every clip whose boxes are known then; layouts: clip -> layout, frames a second."""
    boxes = {}
    for clip, (layout, fps) in layouts.items():
        at = round(time_s * fps)
        if at < layout.num_frames and layout.known[at]:
            boxes[clip] = vehicle_boxes(layout, at)
    return boxes
