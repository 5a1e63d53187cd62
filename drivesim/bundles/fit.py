"""Whether stages of several bundles belong together."""

from typing import Any

from drivesim.bundle import BUILT_ON, Bundle, outdated
from drivesim.errors import UserError

# What of model_index.json a stage was trained for; the upsampler sees patches of any size.
SIZES = (("data", "height"), ("data", "width"), ("data", "slots"), ("data", "key_fps"), ("interpolation",))
UPSAMPLER = (("factor",),)


def assembled(sources: dict[str, Bundle]) -> dict[str, dict[str, Any]]:
    """The stages of an index, each as the bundle that it comes from names it."""
    return {stage: bundle.index["stages"][stage] for stage, bundle in sources.items()}


def check_fit(own: Bundle, sources: dict[str, Bundle]) -> None:
    """raises UserError if a stage was trained on another one than the one that is taken, or for other sizes and rates
    than those of `own`"""
    entries = assembled(sources)
    for stage, bundle in sources.items():
        if bundle is not own:
            _check_sizes(own, bundle, stage)
        if other := outdated(entries, stage):
            remedy = (
                "run `drivesim train`, which trains anew what is out of date"
                if sources[other] is bundle
                else f"take both from one bundle: stages.{stage}=... stages.{other}=..."
            )
            there = sources[other].root
            raise UserError(
                f"stage {stage} of {bundle.root} was trained on another {other} than that of {there}; {remedy}"
            )


def _check_sizes(own: Bundle, bundle: Bundle, stage: str) -> None:
    for path in UPSAMPLER if stage.startswith("upsample") else SIZES:
        ours, theirs = (_at(one.index, path) for one in (own, bundle))
        if ours != theirs:
            raise UserError(
                f"stage {stage} of {bundle.root} was trained with {'.'.join(path)} {theirs}, {own.root} with {ours}; "
                "stages of one bundle share it"
            )


def _at(index: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        index = index.get(key, {})
    return index


def undecided(sources: dict[str, Bundle]) -> list[str]:
    """Stages from bundles of an older version, where it cannot be told whether they fit those of other bundles."""
    entries = assembled(sources)
    return [
        stage
        for stage, bundle in sources.items()
        for other in BUILT_ON.get(stage, ())
        if other in sources and sources[other] is not bundle and other not in entries[stage]["built_on"]
    ]
