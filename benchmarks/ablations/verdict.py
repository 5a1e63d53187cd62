"""Ratios of distances, how sure they are, and whether they point where the paper's do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.ablations.rows import Comparison
from eval.distances import Distance
from eval.measure import FeatureTable

REPEATS = 32  # half-samples
SURE = 2.0  # standard errors away from 1
# What stands in for the paper's metrics: our distance -> the metric whose ratio it is set beside.
STAND_INS = {"fd_transnetv2": "fvd", "fd_efficientnet_lite0_clips": "fvd", "fd_efficientnet_lite0": "fid"}
STANDARD = ("fvd", "fid")  # with the networks given as fvd_i3d and fid_inception


@dataclass(frozen=True)
class Ratio:
    """value > 0; error: its standard error, nan if unknown."""

    value: float
    error: float


@dataclass(frozen=True)
class Line:
    """One comparison by one distance. paper: the paper's ratio of the metric that the distance stands for, if any."""

    comparison: Comparison
    distance: str
    ours: Ratio
    seeds: tuple[float, ...]
    paper: float | None

    @property
    def agrees(self) -> str:
        return agreement(self.ours, self.paper)


def ratio_of_distances(
    distance: Distance, over: FeatureTable, under: FeatureTable, real: FeatureTable, seed: int = 0
) -> Ratio:
    """distance(over, real) / distance(under, real), with its standard error from random halves of the videos, the same
    half of all three sets: both sets continue the same drives, so most of the chance cancels in the ratio."""
    names = sorted({*over.groups} & {*under.groups} & {*real.groups})
    tables = [(table.matrix, np.array(table.groups)) for table in (over, under, real)]

    def logarithm(chosen: Sequence[str]) -> float:
        a, b, true = (rows[np.isin(groups, chosen)] for rows, groups in tables)
        tiny = np.finfo(float).tiny
        return math.log(max(distance(a, true), tiny) / max(distance(b, true), tiny))

    value = math.exp(logarithm(names))
    if len(names) < 4:
        return Ratio(value, math.nan)
    rng = np.random.default_rng(seed)
    halves = [logarithm(list(rng.choice(names, len(names) // 2, replace=False))) for _ in range(REPEATS)]
    return Ratio(value, value * float(np.std(halves, ddof=1)))


def over_seeds(ratios: Sequence[Ratio]) -> Ratio:
    """Geometric mean over training seeds. All seeds are judged by the same videos, so their chance does not average
    out; that of training does."""
    logs = np.log([ratio.value for ratio in ratios])
    value = float(np.exp(logs.mean()))
    within = float(np.sqrt(np.mean([(ratio.error / ratio.value) ** 2 for ratio in ratios])))
    between = float(np.std(logs, ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else 0.0
    return Ratio(value, value * math.hypot(within, between))


def agreement(ours: Ratio, paper: float | None) -> str:
    """yes or no: on the same side of 1 as the paper, by more than two standard errors; open: nearer to 1, or not
    known."""
    if paper is None:
        return "-"
    if not abs(math.log(ours.value)) > SURE * ours.error / ours.value:
        return "open"
    return "yes" if (ours.value < 1) == (paper < 1) else "no"


def table(lines: Sequence[Line]) -> str:
    """As text."""
    form = "{:<37}{:<28}{:>16}{:>7}  {:<6}{}"
    rows = [form.format("ratio", "distance", "ours", "paper", "same", "why they may differ")]
    before = ""
    for line in lines:
        name = "" if line.comparison.name == before else line.comparison.name
        before = line.comparison.name
        rows.append(
            form.format(
                name, line.distance, shown(line.ours), paper_shown(line), line.agrees, name and line.comparison.why
            )
        )
    return "\n".join(rows)


def shown(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ± {ratio.error:.3f}" if math.isfinite(ratio.error) else f"{ratio.value:.3f}"


def paper_shown(line: Line) -> str:
    return "-" if line.paper is None else f"{line.paper:.2f}"


def as_dict(line: Line) -> Mapping[str, object]:
    return {
        "ratio": line.comparison.name, "distance": line.distance, "ours": line.ours.value, "error": line.ours.error,
        "seeds": list(line.seeds), "paper": line.paper, "agrees": line.agrees, "why": line.comparison.why,
    }  # fmt: skip
