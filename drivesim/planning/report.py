"""A plan in words for people, and in numbers for programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from drivesim.planning.gpus import GPUS, KEPT_FREE
from drivesim.planning.plan import Part, StagePlan

GIB = 2**30


def lines(plan: StagePlan, gpu: str, gpus: int, utilisation: float) -> Iterator[str]:
    """What one stage takes."""
    batch, frames, *size = plan.window
    shape = f"{frames} x {'x'.join(map(str, size))}"
    accumulated = f" x {plan.stage.accumulate} accumulated" if plan.stage.accumulate > 1 else ""
    yield f"{plan.name}: {batch} windows of {shape}{accumulated} on each of {gpus} GPUs = {gpus * plan.windows} a step"
    yield "  parameters  " + ", ".join(_part(name, part) for name, part in plan.parts.items())
    again = f", {_flops(plan.checkpointed.flops)} with checkpointing" if plan.checkpointed else ""
    once = "a denoising step of one window" if plan.shard is not None else "one window there and back"
    yield f"  compute     a batch {_flops(plan.plain.flops)}{again}; {once} {_flops(plan.sampling)}"
    fitting = plan.fitting(GPUS[gpu], gpus)
    ways = {name: plan.memory(gpus, *way) for name, way in plan.layouts(gpus).items()}
    unit, word = (GIB, "GiB") if max(memory.total for memory in ways.values()) >= GIB else (2**20, "MiB")
    yield f"  memory, {word}        weights gradients AdamW averages activations  total"
    for name, memory in ways.items():
        numbers = (memory.weights, memory.gradients, memory.optimizer, memory.averages, memory.activations)
        row = "".join(f"{n / unit:>{w}.1f}" for n, w in zip(numbers, (7, 10, 6, 9, 12), strict=True))
        yield f"    {name:<20}{row}{memory.total / unit:>7.1f}  {'fits' if name in fitting else 'does not fit'} {gpu}"
    if plan.stage.max_steps > 0:
        times = [_time(other, plan.days(GPUS[other], gpus, utilisation)) for other in [gpu, *sorted(set(GPUS) - {gpu})]]
        yield f"  time        {plan.stage.max_steps:,} steps on {gpus} GPUs: {', '.join(times)}"
    else:
        yield "  time        open: the stage has no max_steps"


def totals(plans: list[StagePlan], gpu: str, gpus: int, utilisation: float) -> Iterator[str]:
    """All stages one after the other, and what the figures rest on."""
    days = [plan.days(GPUS[gpu], gpus, utilisation) for plan in plans if plan.stage.max_steps > 0]
    known = [time for time in days if time is not None]
    missing = f"; {len(days) - len(known)} stages do not fit" if len(known) < len(days) else ""
    yield f"all together: {sum(known):.1f} days, {24 * gpus * sum(known):,.0f} GPU hours on {gpus} x {gpu}{missing}"
    yield (
        f"assumed: {100 * utilisation:.0f} % of the {GPUS[gpu].tflops:g} bf16 TFLOP/s that the vendor states "
        f"(utilisation=), {100 * KEPT_FREE:.0f} % of {GPUS[gpu].memory_gib:g} GiB kept free; loading and validation "
        "take no time"
    )


def compared(parts: dict[str, Part], reported: dict[str, float]) -> Iterator[str]:
    """Our parameters beside those that are reported of the paper's model."""
    yield "parameters, 10⁶             here  reported of the paper's"
    for name, theirs in reported.items():
        if not all(part in parts for part in name.split(" and ")):
            continue  # of a stage that was not planned
        ours = sum(parts[part].parameters for part in name.split(" and ")) / 1e6
        yield f"  {name:<32}{ours:>7.0f}{theirs:>10.0f}  ({100 * (ours / theirs - 1):+.1f} %)"


def to_json(plan: StagePlan, gpu: str, gpus: int, utilisation: float) -> dict[str, Any]:
    """Bytes, FLOPs and days."""
    ways = plan.layouts(gpus)
    return {
        "window": plan.window,
        "windows_a_step": gpus * plan.windows,
        "parameters": {name: asdict(part) for name, part in plan.parts.items()},
        "flops": {
            "batch": plan.plain.flops,
            "checkpointed": plan.checkpointed.flops if plan.checkpointed else None,
            "sampling": plan.sampling,
        },
        "bytes": {name: asdict(plan.memory(gpus, *way)) for name, way in ways.items()},
        "fits": plan.fitting(GPUS[gpu], gpus),
        "steps": plan.stage.max_steps,
        "days": {name: plan.days(found, gpus, utilisation) for name, found in GPUS.items()},
    }


def _part(name: str, part: Part) -> str:
    trained = "trained" if part.trained == part.parameters else "frozen" if not part.trained else "partly trained"
    return f"{name} {part.parameters / 1e6:.1f} M ({trained})"


def _flops(flops: float) -> str:
    """With a prefix that leaves a number of three digits at most."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {prefix}FLOP"
    return f"{flops / 1e6:.3g} MFLOP"


def _time(gpu: str, days: float | None) -> str:
    if days is None:
        return f"{gpu} too small"
    for unit, length in (("days", 1.0), ("h", 1 / 24), ("min", 1 / 1440)):
        if days >= length:
            return f"{gpu} {days / length:.1f} {unit}"
    return f"{gpu} {86400 * days:.2g} s"
