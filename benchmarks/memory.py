"""What a training step holds in memory, with gradient checkpointing and without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.measure import ABOUT, Setting, Workload, peak_mib, quickest, saved_mib
from benchmarks.networks import Contender


@dataclass(frozen=True)
class MemoryRow:
    """One network in one training mode, MiB; the last three with gradient checkpointing, None where there is none.

    saved  kept from the forward to the backward pass;  peak  the most at any moment;  times  of the time of a step
    """

    mode: str
    network: str
    saved: float
    peak: float
    checkpointed_saved: float | None = None
    checkpointed_peak: float | None = None
    checkpointed_times: float | None = None


def memory(networks: Sequence[Contender], settings: Mapping[tuple[str, str], Setting]) -> list[MemoryRow]:
    """A row for each mode and network that has a setting, uncompiled. Leaves gradient checkpointing on."""
    named = {network.name: network for network in networks}
    first = {key: _held(Workload(named[key[1]], key[0]), setting) for key, setting in settings.items()}
    for network in networks:
        if network.checkpoint is not None:
            network.checkpoint()
    again = {
        key: _held(Workload(named[key[1]], key[0]), setting)
        for key, setting in settings.items()
        if named[key[1]].checkpoint is not None
    }
    rows = []
    for key, (saved, peak, seconds) in first.items():
        later: tuple[float, ...] = ()
        if key in again:
            later = (again[key][0], again[key][1], again[key][2] / seconds)
        rows.append(MemoryRow(*key, saved, peak, *later))
    return rows


def _held(load: Workload, setting: Setting) -> tuple[float, float, float]:
    """What a step saves and holds at most, MiB, and its seconds."""
    step = load.step(replace(setting, compiled=False))
    seconds = quickest(step)
    return saved_mib(step, load.contender.module.parameters()), peak_mib(step), seconds


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """The rows as text."""
    form = "{:<13}{:>11}{:>10}{:>14}{:>10}{:>8}"
    lines = []
    for mode in dict.fromkeys(row.mode for row in rows):
        columns = ("", "saved MiB", "peak MiB", "checkpointed", "peak", "time x")
        lines += ["", f"memory of a {ABOUT[mode]}", form.format(*columns)]
        for row in (row for row in rows if row.mode == mode):
            later = (row.checkpointed_saved, row.checkpointed_peak, row.checkpointed_times)
            shown = ["-" if v is None else f"{v:.{d}f}" for v, d in zip(later, (0, 0, 2), strict=True)]
            lines.append(form.format(row.network, f"{row.saved:.0f}", f"{row.peak:.0f}", *shown))
    return "\n".join(lines)
