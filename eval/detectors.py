"""Detectors that look for what a generated picture was asked to show: the car finder, or one that the user brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from drivesim.clip import CLASSES, VEHICLES
from drivesim.errors import UserError
from eval.features import load_torchscript
from eval.layout import CarFinder


@dataclass(frozen=True)
class Finds:
    """What is seen in one frame. boxes [n, 4] x1, y1, x2, y2, fractions of the picture; kinds [n] what they are."""

    boxes: np.ndarray
    kinds: np.ndarray


class Detector(Protocol):
    """about: in words, for people. kinds: class of drivesim -> what it is called in `Finds`; a class that the detector
    cannot find is not there, classes that it does not tell apart share a number."""

    @property
    def about(self) -> str: ...

    @property
    def kinds(self) -> Mapping[str, int]: ...

    def find(self, frames: np.ndarray) -> list[Finds]:
        """frames [n, H, W, 3] uint8 RGB, of one video"""


class FinderDetector:
    """The car finder, which finds vehicles and does not tell them apart."""

    def __init__(self, finder: CarFinder) -> None:
        self._finder = finder
        self.kinds = dict.fromkeys(VEHICLES, 0)
        self.about = f"car finder, which finds {finder.recall:.0%} of the vehicles of real frames it never saw"

    def find(self, frames: np.ndarray) -> list[Finds]:
        boxes = [self._finder.find(frame)[0] for frame in frames]
        return [Finds(found, np.zeros(len(found), int)) for found in boxes]


class ScriptDetector:
    """A TorchScript file: uint8 [B, 3, H, W] -> boxes, scores, labels, of each frame one after the other.

    boxes   of each frame [n, 4]: x1, y1, x2, y2 in pixels
    scores  of each frame [n], of which those below `least_score` do not count
    labels  of each frame [n] whole numbers, of which `names` says which class they stand for; others do not count
    raises  UserError if the file is missing or no TorchScript, or `names` has an unknown class
    """

    def __init__(self, path: Path | str, names: Mapping[int, str], least_score: float) -> None:
        self._network, self._path, self._least = load_torchscript(path, "detector"), path, least_score
        self._names = dict(names) or dict(enumerate(CLASSES))
        if unknown := sorted(set(self._names.values()) - set(CLASSES)):
            raise UserError(f"detector_labels names {unknown[0]!r}; expected some of {', '.join(CLASSES)}")
        self.kinds = {name: CLASSES.index(name) for name in self._names.values()}
        self.about = f"{Path(path).name}, which looks for {', '.join(self.kinds)}"

    @torch.inference_mode()
    def find(self, frames: np.ndarray) -> list[Finds]:
        """raises UserError if the answer is not what was expected"""
        batch = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        try:
            answer = self._network(batch)
        except RuntimeError as error:
            raise self._unfit(f"fails ({str(error).strip().splitlines()[-1]})") from error
        if not isinstance(answer, Sequence) or len(answer) != 3 or {len(part) for part in answer} != {len(frames)}:
            raise self._unfit(f"answers {type(answer).__name__} to {len(frames)} frames")
        size = torch.tensor([*frames.shape[2:0:-1]] * 2)
        boxes, scores, labels = answer
        return [self._finds(*parts, size) for parts in zip(boxes, scores, labels, strict=True)]

    def _finds(self, boxes: Any, scores: Any, labels: Any, size: Tensor) -> Finds:
        shapes = [tuple(getattr(part, "shape", ("?",))) for part in (boxes, scores, labels)]
        count = shapes[1][:1]
        if shapes != [(*count, 4), count, count]:
            raise self._unfit(f"answers boxes, scores, labels of shapes {', '.join(map(str, shapes))}")
        chosen = [i for i, label in enumerate(labels.tolist()) if label in self._names and scores[i] >= self._least]
        kinds = [self.kinds[self._names[int(labels[i])]] for i in chosen]
        return Finds((boxes[chosen] / size).clamp(0, 1).double().numpy().reshape(-1, 4), np.array(kinds, int))

    def _unfit(self, found: str) -> UserError:
        return UserError(
            f"detector={self._path} {found}; expected boxes [n, 4], scores [n] and labels [n] of each frame of "
            "uint8 [B, 3, H, W], see docs/labelled_export.md"
        )
