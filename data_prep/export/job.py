"""What every format of an export shares: the clips asked for, a folder to fill, pictures as JPEG, what is left out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.errors import UserError


@dataclass
class Job:
    """One export.

    clips     names of the clips asked for, sorted
    folder    empty; becomes the export when it is whole
    quality   of JPEG pictures, 1..100
    advance   tells the progress bar of so many frames done
    left_out  clip -> reason, filled on the way
    """

    store: ClipStore
    clips: list[str]
    folder: Path
    quality: int
    advance: Callable[[int], object]
    left_out: dict[str, str] = field(default_factory=dict)

    def leave_out(self, clip: str, reason: str) -> None:
        """Note why a clip is not in the export."""
        self.left_out[clip] = reason
        self.advance(int(self.store.index.loc[clip, "frames"]))

    def save(self, clip: str, names: Mapping[int, str]) -> bool:
        """Write frames of a clip to files relative to the folder; False, and the clip is left out, if one fails."""
        paths = {frame: self.folder / name for frame, name in names.items()}
        for parent in {path.parent for path in paths.values()}:
            parent.mkdir(parents=True, exist_ok=True)
        try:
            self._save(clip, paths)
        except UserError as error:
            for path in paths.values():
                path.unlink(missing_ok=True)
            self.leave_out(clip, str(error))
            return False
        self.advance(int(self.store.index.loc[clip, "frames"]))
        return True

    def _save(self, clip: str, paths: Mapping[int, Path]) -> None:
        missing = set(paths)
        for number, picture in enumerate(iterate(self.store.video(clip))):
            if number in missing:
                Image.fromarray(picture).save(paths[number], quality=self.quality)
                missing.remove(number)
            if not missing:
                return
        raise UserError(f"frame {min(missing)} of clip {clip} does not decode; see `drivesim data verify`")
