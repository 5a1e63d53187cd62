"""The mark of generated video: metadata in the mp4 itself, so that a file that is passed on alone still says it.

Imports nothing heavy, since the processes that write stores use it too.
"""

from collections.abc import Mapping
from typing import Any

SYNTHETIC = "synthetic"


def tags(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Container metadata of what a model made: `synthetic` and a comment for people; nothing of what was filmed.

    provenance  as `drivesim.generation.labels.provenance` gives it, or empty
    """
    if not provenance:
        return {}
    told = ", ".join(f"{name} {value}" for name, value in provenance.items() if name not in (SYNTHETIC, "made_by"))
    made_by = provenance.get("made_by", "an unknown program")
    return {SYNTHETIC: "true", "comment": f"synthetic: made by a generative model, not filmed ({made_by}; {told})"}


def movflags(flags: str, tags: Mapping[str, str] | None) -> str:
    """The options of FFmpeg's mp4 writer with which it keeps tags that are none of its own, where there are some."""
    return f"{flags}+use_metadata_tags" if tags else flags
