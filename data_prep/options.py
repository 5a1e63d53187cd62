"""What every source of recorded data can be told: the size and rate of the clips it makes."""

from dataclasses import dataclass
from pathlib import Path

from drivesim.config import option
from drivesim.data.video import KEPT_PART
from drivesim.errors import UserError


@dataclass
class ClipOptions:
    """Options that the sources of recorded data share."""

    height: int = option(512, "pixels; frames are cropped to height:width, then resized")
    width: int = option(1024, "pixels")
    fps: float = option(30.0, "frames a second to resample to; a slower recording repeats frames")
    clip_seconds: float = option(8.0, "longest clip")
    min_seconds: float = option(2.0, "shorter pieces are dropped")
    crop: str = option("center", "what is kept when the aspect changes: top, center or bottom")
    licence: str = option("", "noted in the index of the store")

    def check(self, source: str) -> None:
        """raises UserError for values that cannot work; `source` is the group they are given in, videos say"""
        if self.height < 16 or self.width < 16 or self.height % 2 or self.width % 2:
            raise UserError(
                f"{source}.height x {source}.width is {self.height}x{self.width}; both must be even, 16 or more"
            )
        if not 0 < self.fps <= 240:
            raise UserError(f"{source}.fps is {self.fps}; expected more than 0, at most 240")
        if not 0 < self.min_seconds <= self.clip_seconds:
            found = f"{source}.min_seconds is {self.min_seconds}, {source}.clip_seconds {self.clip_seconds}"
            raise UserError(f"{found}; expected 0 < min_seconds <= clip_seconds")
        if self.crop not in KEPT_PART:
            raise UserError(f"{source}.crop is {self.crop!r}; expected one of {', '.join(KEPT_PART)}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the stored pictures."""
        return self.height, self.width


def data_root(source: str, root: Path | str | None, what: str) -> Path:
    """The folder of the raw data. raises UserError if none is given, or it is no folder; `what`: what it should hold"""
    if root is None:
        raise UserError(f"source={source} needs root=FOLDER, the folder with {what}")
    if not Path(root).is_dir():
        raise UserError(f"root={root} is not a folder; give the folder with {what}")
    return Path(root)
