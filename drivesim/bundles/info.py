"""`drivesim bundle info`: what is in a bundle, and how it came about."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drivesim.bundle import Bundle
from drivesim.bundles.archive import opened
from drivesim.bundles.summary import StageFacts, Summary, licences
from drivesim.config import option, parse

DIGITS = 12  # of a hash
COLUMNS = ("stage", "parameters", "type", "MiB", "steps", "minutes", "held-out loss", "trained on", "sha256")
TEXT = (0, 2, 7, 8)  # columns that are read from the left


@dataclass
class InfoConfig:
    """Print what is in a bundle: stages, data, licences, what it is sampled with. Weights are not read."""

    bundle: str = option(help="folder made by `drivesim train` or `drivesim bundle pack`, or an archive of one")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv`, or a bundle that cannot be read"""
    config = parse(InfoConfig, argv, "drivesim bundle info")
    with opened(config.bundle) as folder:
        summary = Summary.of(Bundle(folder).require())
    print("\n".join([config.bundle, *lines(summary)]))


def lines(summary: Summary) -> Iterator[str]:
    """A summary in words and a table."""
    told = "words" if summary.reads else "start frames and layouts"
    yield (
        f"  makes       {summary.height}x{summary.width} at {summary.fps:g} fps by way of "
        f"{summary.low_height}x{summary.low_width}, from {told}"
    )
    datasets = summary.datasets
    for dataset in datasets:
        of = f": {', '.join(dataset.stages)}" if len(datasets) > 1 else ""
        yield f"  trained on  {dataset}{of}"
    yield f"  licence     weights: {summary.licence or 'not stated'}; data: {licences(datasets)}"
    version, seed = (", ".join(summary.recorded(key)) or "unknown" for key in ("drivesim", "seed"))
    yield f"  made by     drivesim {version}, seed {seed}"
    sampler = [f"{name} {value}" for name, value in summary.sampler.items() if value not in ("", {})]
    yield f"  sampler     {', '.join(sampler)}"
    yield ""
    yield from table(summary)


def table(summary: Summary) -> Iterator[str]:
    rows = [COLUMNS, *(_row(stage) for stage in summary.stages), _total(summary)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if i in TEXT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _row(stage: StageFacts) -> tuple[str, ...]:
    return (
        stage.name,
        f"{stage.parameters:,}",
        stage.dtype,
        f"{stage.bytes / 2**20:.1f}",
        _known(stage.steps, ",d"),
        _known(stage.minutes, ".1f"),
        _known(stage.loss, ".4f"),
        " ".join(f"{name} (another)" if name == stage.stale else name for name in stage.built_on) or "-",
        stage.sha256[:DIGITS],
    )


def _total(summary: Summary) -> tuple[str, ...]:
    size, minutes = f"{summary.bytes / 2**20:.1f}", f"{summary.minutes:.1f}"
    return ("together", f"{summary.parameters:,}", "", size, "", minutes, "", "", "")


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
