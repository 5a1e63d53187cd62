"""What a race says: who was where when, and how fast each makes video of equal distance."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.networks import OURS
from benchmarks.race.judge import DISTANCES
from benchmarks.race.run import Record

WANTED_SHARE, WANTED_SPEED = 0.5, 2.0
Points = Sequence[tuple[float, float]]  # (seconds, value; smaller is better)
Speeds = Mapping[str, Sequence[Mapping[str, float]]]  # name -> for each number of steps: steps, speed, distances


def curves(record: Record) -> dict[str, Points]:
    """Everything that was followed over time, by name."""
    found: dict[str, Points] = {"loss": record.losses}
    for name in DISTANCES:
        found[name] = [(seconds, values[name]) for seconds, values in record.distances]
    return found


def first_reached(points: Points, target: float) -> float | None:
    """Seconds at which a curve first was at most `target`, to the measured point; None if it never was."""
    return next((seconds for seconds, value in points if value <= target), None)


def verdict(records: Mapping[str, Record], speeds: Speeds) -> dict[str, Any]:
    """For the loss and each distance: the best peer's last value, and when ours first had it; and generated seconds a
    second where the distance is that of the best peer."""
    followed = {name: curves(record) for name, record in records.items()}
    peers = [name for name in records if name != OURS]
    result: dict[str, Any] = {}
    for what in ("loss", *DISTANCES):
        best = min(peers, key=lambda name: followed[name][what][-1][1])
        end, target = followed[best][what][-1]
        reached = first_reached(followed[OURS][what], target)
        result[what] = {"best_peer": best, "its_last": target, "ours_last": followed[OURS][what][-1][1],
                        "seconds": end, "ours_reached_after": reached,
                        "share_of_time": None if reached is None else reached / end}  # fmt: skip
    for what in DISTANCES if speeds else ():
        result[what]["generating"] = at_equal_distance(speeds, what)
    return result


def at_equal_distance(speeds: Speeds, what: str) -> dict[str, Any]:
    """How fast each contender makes video at least as near as the best that any peer makes with any number of steps;
    None for those that never do. ratio  ours over the fastest peer among those that do."""
    target = min(row[what] for name, rows in speeds.items() if name != OURS for row in rows)
    fastest = {
        name: max((row["speed"] for row in rows if row[what] <= target), default=None) for name, rows in speeds.items()
    }
    peers = [speed for name, speed in fastest.items() if name != OURS and speed is not None]
    ours = fastest[OURS]
    return {"distance": target, "speed": fastest, "ratio": None if ours is None else ours / max(peers)}


def table(report: Mapping[str, Any]) -> str:
    """The report as text."""
    form = "{:<13}{:>9}{:>9}{:>20}{:>8}{:>9}{:>9}{:>9}" + "{:>29}" * len(DISTANCES)
    lines = [form.format("", "M params", "trained", "setting", "rate", "steps", "ms/step", "loss", *DISTANCES)]
    for name, row in report["contenders"].items():
        last = (
            row["record"]["distances"][-1][1] if row["record"]["distances"] else dict.fromkeys(DISTANCES, float("nan"))
        )
        lines.append(form.format(
            name, f"{row['parameters_m']:.1f}", f"{row['trained_m']:.1f}", row["setting"], f"{row['rate']:g}",
            row["record"]["steps"], f"{1e3 * row['record']['seconds'] / max(row['record']['steps'], 1):.0f}",
            f"{row['record']['losses'][-1][1]:.4f}", *(f"{last[what]:.4g}" for what in DISTANCES),
        ))  # fmt: skip
    for what, found in report["verdict"].items():
        share = found["share_of_time"]
        reached = (
            "never" if share is None else f"after {found['ours_reached_after'] / 60:.1f} min, {share:.2f} of the time"
        )
        lines.append(f"{what}: the best peer, {found['best_peer']}, ends at {found['its_last']:.4g}; ours reaches that "
                     f"{reached} (wanted: {WANTED_SHARE} at most)")  # fmt: skip
        if (speed := found.get("generating")) is not None:
            each = ", ".join(f"{name} {'-' if v is None else f'{v:.2f}'}" for name, v in speed["speed"].items())
            ratio = "-" if speed["ratio"] is None else f"{speed['ratio']:.2f}"
            lines.append(f"  seconds of video a second at {what} <= {speed['distance']:.4g}: {each}; ours / fastest "
                         f"peer {ratio} (wanted: {WANTED_SPEED:g} at least)")  # fmt: skip
    return "\n".join(lines)
