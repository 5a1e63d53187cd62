"""The label check of an export: which detector looks, what it saw of each video, the report that stays."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.generated.found import Generated, read_generated
from data_prep.source import Refused, Unit
from drivesim.bundle import Bundle
from drivesim.config import option
from drivesim.data.store import ClipStore, is_store
from drivesim.errors import UserError
from eval.detectors import Detector, FinderDetector, ScriptDetector
from eval.label_check import Rules, WindowCheck, check_video, flags, save_table
from eval.label_sheet import Worst
from eval.layout import SMALLEST, CarFinder, finder_for

DEFAULT, NONE = "default", "none"
TABLE, SHEET, FINDER = "label_check.csv", "label_check.png", "car_finder.safetensors"


@dataclass
class CheckOptions:
    """How pictures are checked against their labels."""

    detector: str = option(DEFAULT, "default, a car finder trained on real frames; a TorchScript file; none: no check")
    real: str | None = option(
        None,
        "store of real clips with boxes to train the car finder on; if not given, the one the bundle was trained on",
    )
    finder: str | None = option(None, f"file to keep the car finder in; else {FINDER} in OUT")
    finder_steps: int = option(600, "steps of its training, if it is not there yet")
    detector_labels: dict[int, str] = option(
        {},
        "of a TorchScript file, which class a label stands for, as in {3: car, 1: pedestrian}; else 0 car, 1 truck ...",
    )
    detector_score: float = option(0.5, "of a TorchScript file, the least score that counts")
    window_seconds: float = option(1.0, "length of what passes or fails as one")
    frames_a_window: int = option(4, "frames of it that are looked at")
    min_recall: float = option(0.5, "share of the asked boxes that must be found in a window")
    smallest: float = option(SMALLEST, "share of the picture; smaller boxes are not looked for")
    drop_failed: bool = option(False, "leave out the windows that fail, instead of flagging them")

    def check(self) -> None:
        """raises UserError for values that cannot work"""
        for name in ("min_recall", "smallest", "detector_score"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"{name} is {value}; expected 0..1")
        if not self.window_seconds > 0 or self.frames_a_window < 1 or self.finder_steps < 1:
            raise UserError(
                f"window_seconds is {self.window_seconds}, frames_a_window {self.frames_a_window}, finder_steps "
                f"{self.finder_steps}; expected more than 0"
            )
        if self.drop_failed and self.detector == NONE:
            raise UserError("drop_failed=true needs a label check; leave out detector=none")


@dataclass
class Checker:
    """Looks at videos one after the other and keeps what it saw. detector: None looks at nothing."""

    detector: Detector | None
    rules: Rules
    seen: list[tuple[WindowCheck, float]] = field(default_factory=list)  # with the frames a second of its video
    worst: Worst = field(default_factory=Worst)

    @classmethod
    def of(cls, options: CheckOptions, seed: int, root: Path, units: Sequence[Unit], folder: Path) -> "Checker":
        """Load the detector that was asked for, or train it and keep it in `folder`.

        raises  UserError if it cannot be loaded, or there is nothing to train it on
        """
        rules = Rules(options.window_seconds, options.frames_a_window, options.min_recall, options.smallest)
        if options.detector == NONE:
            return cls(None, rules)
        if options.detector != DEFAULT:
            return cls(ScriptDetector(options.detector, options.detector_labels, options.detector_score), rules)
        cache = Path(options.finder or folder / FINDER)
        if cache.exists():
            return cls(FinderDetector(CarFinder.load(cache)), rules)
        real = ClipStore(options.real or _trained_on(root, units))
        return cls(FinderDetector(finder_for(real, cache, math.inf, seed, options.finder_steps)), rules)

    def check(self, name: str, video: Generated) -> tuple[np.ndarray, np.ndarray]:
        """Of every frame the recall of its window [T], nan where nothing is asked for, and whether it is ok [T].

        raises  Refused where a picture does not decode, UserError if the detector's answer is not what was expected
        """
        frames = video.layout.num_frames
        if self.detector is None:
            return np.full(frames, np.nan), np.full(frames, True)
        checks = check_video(name, video.pictures(), video.layout, video.fps, self.detector, self.rules, self.worst)
        self.seen += [(check, video.fps) for check in checks]
        return flags(checks)

    def save(self, folder: Path) -> None:
        """Write the table, and a sheet of the worst windows if there are any."""
        if self.detector is not None:
            save_table(self.seen, folder / TABLE)
            self.worst.save(folder / SHEET)

    def report(self, out: Path, dropped: bool) -> Iterator[str]:
        """What the check found, for people."""
        if self.detector is None:
            yield "label check: none was asked for; nobody knows whether the pictures show their labels"
            return
        checks = [check for check, _ in self.seen]
        asked, found = (sum(getattr(check, name) for check in checks) for name in ("asked", "found"))
        failed = sum(not check.ok for check in checks)
        share = f" ({found / asked:.0%})" if asked else ""
        what = "left out" if dropped else "flagged label_ok=false"
        failing = f"{failed} of {len(checks)} windows below {self.rules.min_recall:.0%}, {what}"
        yield f"label check by the {self.detector.about}:"
        yield f"  {found} of {asked} asked boxes found{share}; {failing}"
        yield f"  {out / TABLE}" + (f", {out / SHEET}: asked solid, found dashed" if (out / SHEET).exists() else "")


def _trained_on(root: Path, units: Sequence[Unit]) -> str:
    """The store that the bundle of the first readable video was trained on. raises UserError if it is not there"""
    for unit in units:
        try:
            bundle = Bundle(Path(read_generated(root / unit.path).options["bundle"]))
        except (Refused, KeyError):
            continue
        data = str(bundle.record("image").get("data", ""))
        if data and is_store(data):
            return data
        break
    raise UserError(
        "the label check needs real=STORE, real clips with boxes to train its car finder on, or finder=FILE, one that "
        "is trained, or detector=FILE, or detector=none"
    )
