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
    rows: dict[tuple[str, str], MemoryRow] = {}
    seconds: dict[tuple[str, str], float] = {}
    for (mode, name), setting in settings.items():
        step = Workload(named[name], mode).step(replace(setting, compiled=False))
        seconds[mode, name] = quickest(step)
        rows[mode, name] = MemoryRow(mode, name, saved_mib(step), peak_mib(step))
    for network in networks:
        if network.checkpoint is not None:
            network.checkpoint()
    for (mode, name), setting in settings.items():
        if named[name].checkpoint is not None:
            step = Workload(named[name], mode).step(replace(setting, compiled=False))
            times = quickest(step) / seconds[mode, name]
            rows[mode, name] = replace(rows[mode, name], checkpointed_saved=saved_mib(step),
                                       checkpointed_peak=peak_mib(step), checkpointed_times=times)  # fmt: skip
    return list(rows.values())


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
