"""What makes a generated video a labelled one: the layout that steered it, beside it, and what it comes from.

`drivesim export` reads both; docs/labelled_export.md says what becomes of them.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drivesim import __version__
from drivesim.bundle import Bundle
from drivesim.clip import Layout
from drivesim.generation.layout_file import Lens, stream_layout
from drivesim.tags import SYNTHETIC

if TYPE_CHECKING:
    from drivesim.generation.pipeline import DrivingPipeline

LAYOUT_SUFFIX, RECORD_SUFFIX = ".layout.json", ".json"  # after the whole name of the video
PORTION = 256  # frames of a layout held at once: a day's do not fit


def provenance(bundle: Bundle, seed: int, **asked: str | None) -> dict[str, Any]:
    """What a video comes from, for JSON: that a model made it, which one, and what it was asked for."""
    given = {name: value for name, value in asked.items() if value is not None}
    made_by = f"drivesim {__version__}"
    return {SYNTHETIC: True, "made_by": made_by, "bundle_sha256": bundle_sha256(bundle), "seed": seed} | given


def bundle_sha256(bundle: Bundle) -> str:
    """One hash of a bundle: of the names of its stages, and of the SHA-256s of their weights and folders."""
    stages = bundle.index.get("stages", {})
    hashes = {name: [stage["sha256"], stage.get("folders", {})] for name, stage in stages.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def save_labels(path: Path, pipeline: "DrivingPipeline", layout: Layout | None, lens: Lens | None, frames: int) -> Path:
    """Write what `pipeline` is told in each of the first `frames` final frames when it is asked for `layout`.

    lens  that the boxes of `layout` were seen through, if it is known
    """
    at = pipeline.layout_at(layout)

    def portions() -> Iterator[Layout]:
        for first in range(0, frames, PORTION):
            yield at(torch.arange(first, min(first + PORTION, frames)))

    return stream_layout(portions(), pipeline.fps, path, lens)
