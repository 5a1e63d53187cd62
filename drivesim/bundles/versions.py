"""Bundles of earlier versions, read as if they had been written today.

What is merely added to a bundle is filled in here for those that lack it, and needs no other FORMAT; single fields of a
configuration have defaults (`bundle.from_dict`) and need nothing. FORMAT is raised where an older reader would misread
a newer bundle; the step from the format before then stands here, and `tests/golden` gets a bundle of it.
"""

from typing import Any

FORMAT = 1
READ = (1,)  # formats that this version reads
VIDEO = ("keyframes", "interpolate", "upsample_temporal")
ADDED: dict[str, dict[str, Any]] = {
    "decoder": {"model": {"temporal": {"attention": "none"}}},
    **{stage: {"temporal": {}} for stage in VIDEO},
}


def index_of_today(index: dict[str, Any]) -> dict[str, Any]:
    """A model_index.json of a format that is READ, with what was added since.

    built_on  of a stage: empty before it was recorded what a stage was trained on
    folders   of a stage: empty before a stage could bring some
    trained   of a stage: hash of its weights as they were trained, which may be packed in another precision
    """
    stages = {name: _entry_of_today(entry) for name, entry in index.get("stages", {}).items()}
    return index | {"stages": stages}


def _entry_of_today(entry: dict[str, Any]) -> dict[str, Any]:
    return {"built_on": {}, "folders": {}, "trained": entry["sha256"]} | entry


def config_of_today(stage: str, config: dict[str, Any]) -> dict[str, Any]:
    """A stage's config.json with what was added since.

    model     of the decoder: before it was recorded, its temporal layers were aligned neighbours alone
    temporal  of video stages: there was one kind of temporal layers, that of the defaults
    """
    return ADDED.get(stage, {}) | config
