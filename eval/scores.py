"""What is reported: every metric's name, direction and meaning, and how it follows from what was measured."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from eval.distances import Distance, frechet, kernel, spread
from eval.measure import Measures, Options

LOWER, HIGHER, NEAR_REAL = "lower", "higher", "near real"


@dataclass(frozen=True)
class Metric:
    """better: lower, higher, or near real (closest to the real videos' own value)."""

    better: str
    digits: int
    meaning: str


METRICS = {
    "fd_efficientnet_lite0": Metric(LOWER, 2, "Frechet distance of EfficientNet-lite0 features of frames at 224x224: "
                                              "do single pictures look real?"),
    "kd_efficientnet_lite0": Metric(LOWER, 5, "Kernel distance (unbiased MMD, as KID) of the same features; its mean "
                                              "does not depend on n"),
    "fd_efficientnet_lite0_crops": Metric(LOWER, 2, "Frechet distance of 224x224 crops at native resolution: is fine "
                                                    "detail real?"),
    "kd_efficientnet_lite0_crops": Metric(LOWER, 5, "Kernel distance of the same crops"),
    "fd_efficientnet_lite0_clips": Metric(LOWER, 2, "Frechet distance of clips: mean of those frame features and their "
                                                    "mean change from frame to frame at 224x224"),
    "kd_efficientnet_lite0_clips": Metric(LOWER, 5, "Kernel distance of the same clips"),
    "fd_transnetv2": Metric(LOWER, 3, "Frechet distance of TransNetV2 features of clips at 27x48: coarse look and "
                                      "coarse change over time"),
    "kd_transnetv2": Metric(LOWER, 5, "Kernel distance of the same features"),
    "fid": Metric(LOWER, 2, "Frechet Inception Distance, by the network given as fid_inception"),
    "fvd": Metric(LOWER, 1, "Frechet Video Distance, by the network given as fvd_i3d"),
    "psnr": Metric(HIGHER, 2, "Likeness to the true continuation, dB, mean over time after the start frame; blur "
                              "flatters it"),
    "stlpips": Metric(LOWER, 4, "Perceptual distance (ST-LPIPS) to the true continuation, mean over time"),
    "flow_error_dis": Metric(LOWER, 3, "Optical flow (DIS) against the true flow: 0 the same motion, 1 no better "
                                       "than standing still"),
    "flow_speed_dis": Metric(NEAR_REAL, 4, "Mean speed in the picture, picture widths a second"),
    "expansion_dis": Metric(NEAR_REAL, 3, "Does the picture open up from the vanishing point? 1 driving forward, "
                                          "0 aimless, -1 backward"),
    "flicker_dis": Metric(NEAR_REAL, 4, "Change between frames that motion does not explain, share of full scale; "
                                        "0 when frozen, so read it beside the speed"),
    "boxes_found": Metric(HIGHER, 3, "Share of the asked vehicle boxes where the car finder sees a vehicle "
                                     "(IoU >= 0.5)"),
    "boxes_found_shuffled": Metric(LOWER, 3, "The same against the boxes of all other clips at the same moment: "
                                             "chance"),
    "boxes_ratio": Metric(HIGHER, 2, "Found over found by chance; 1 means the boxes steer nothing"),
    "boxes_precision": Metric(HIGHER, 3, "Share of what the car finder sees that meets an asked box"),
    "boxes_false": Metric(LOWER, 3, "Vehicles a frame that the car finder sees where none was asked for"),
    "boxes_occupancy": Metric(HIGHER, 3, "Mean vehicle occupancy inside the asked boxes"),
    "boxes_occupancy_shuffled": Metric(LOWER, 3, "The same inside the boxes of all other clips"),
}  # fmt: skip

# metric -> features and distance
DISTANCES: dict[str, tuple[str, Distance]] = {
    "fd_efficientnet_lite0": ("efficientnet_lite0", frechet),
    "kd_efficientnet_lite0": ("efficientnet_lite0", kernel),
    "fd_efficientnet_lite0_crops": ("efficientnet_lite0_crops", frechet),
    "kd_efficientnet_lite0_crops": ("efficientnet_lite0_crops", kernel),
    "fd_efficientnet_lite0_clips": ("efficientnet_lite0_clips", frechet),
    "kd_efficientnet_lite0_clips": ("efficientnet_lite0_clips", kernel),
    "fd_transnetv2": ("transnetv2", frechet),
    "kd_transnetv2": ("transnetv2", kernel),
    "fid": ("inception", frechet),
    "fvd": ("i3d", frechet),
}


@dataclass
class Score:
    """One number. n: rows of the set it rests on (n_real: of the real one); error: standard error, nan if unknown."""

    value: float
    n: int
    n_real: int = 0
    error: float = float("nan")


@dataclass
class Scores:
    """All numbers of one set.

    curves  name -> points (time in s, value, n)
    """

    name: str
    videos: int
    windows: int
    paired: int
    metrics: dict[str, Score] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)


def score(name: str, seen: Measures, real: Measures, options: Options, distances: bool = True) -> Scores:
    """Numbers of one set. distances: False for the real set itself, whose distance to itself says nothing."""
    result = Scores(name, seen.videos, seen.windows, seen.paired)
    if distances:
        result.metrics |= _distances(seen, real, options)
        curve = _distance_curve(seen, real, kernel, options)
        result.curves |= {"kd_efficientnet_lite0": curve} if len(curve) > 1 else {}
    result.metrics |= {key: Score(value, seen.windows) for key, value in seen.motion.result().items()}
    if seen.similarity.rows:
        for key in ("psnr", "stlpips"):
            result.metrics[key] = Score(seen.similarity.mean(key), len(seen.similarity.rows))
        for key in ("psnr", "stlpips", "psnr_start", "stlpips_start", "psnr_frozen", "stlpips_frozen"):
            result.curves[key] = seen.similarity.curve(key)
    if seen.layout is not None:
        found, errors = seen.layout.result(), seen.layout.errors()
        asked = int(found.pop("boxes_asked"))
        result.metrics |= {key: Score(value, asked, error=errors[key]) for key, value in found.items()}
    result.metrics = {key: s for key, s in result.metrics.items() if np.isfinite(s.value)}
    return result


def _distances(seen: Measures, real: Measures, options: Options) -> dict[str, Score]:
    scores = {}
    for key, (features, distance) in DISTANCES.items():
        if features not in seen.tables or min(len(seen.table(features)), len(real.table(features))) < 2:
            continue
        theirs, true = seen.table(features), real.table(features)
        a, b = theirs.matrix, true.matrix
        groups = np.array(theirs.groups), np.array(true.groups)
        error = spread(distance, a, b, *groups, options.repeats, options.seed) if options.repeats else float("nan")
        scores[key] = Score(distance(a, b), len(a), len(b), error)
    return scores


def _distance_curve(
    seen: Measures, real: Measures, distance: Callable, options: Options
) -> list[tuple[float, float, int]]:
    """Distance of the frames of each stretch of time to all real frames: does quality decay as the video runs?

    The kernel distance is used since a stretch holds few frames and the Frechet distance would mostly tell how few.
    """
    table, truth = seen.table("efficientnet_lite0"), real.table("efficientnet_lite0").matrix
    last = max(table.times)
    edges = np.arange(0, last + 1e-6, max(options.curve_step_s, last / 20))
    points = []
    for low, high in zip(edges, [*edges[1:], np.inf], strict=True):
        rows = table.at(low, high)
        if len(rows) >= 4:
            points.append((round(float(low), 3), distance(rows, truth), len(rows)))
    return points


def warnings(sets: list[Scores], seen: dict[str, Measures], floor_is_halves: bool) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = []
    small = []
    for features in sorted({name for measures in seen.values() for name in measures.tables}):
        tables = [measures.table(features) for measures in seen.values() if features in measures.tables]
        n, width = min(len(table) for table in tables), tables[0].rows[0].size
        small += [f"{features} n = {n} of {width}"] if n < width else []
    if small:
        notes.append(
            f"Fewer rows than features ({', '.join(small)}): Frechet distances are biased upward at such n. Compare "
            "them only with sets of the same n, and with the floor."
        )
    counted = [scores for scores in sets if not (floor_is_halves and scores.name == "floor")]
    if len({scores.windows for scores in counted}) > 1:
        counts = ", ".join(f"{scores.name} {scores.windows}" for scores in counted)
        notes.append(f"The sets differ in size (windows: {counts}); Frechet distances shrink with n, kernel distances "
                     "do not.")  # fmt: skip
    if floor_is_halves:
        notes.append("The floor compares two halves of the real videos, hence at half the n: a loose upper bound. "
                     "Give floor= a second real set of the same size for a fair one.")  # fmt: skip
    return notes
