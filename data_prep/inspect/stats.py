"""`drivesim data stats`: what a clip store holds, in figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from data_prep.inspect.charts import histograms
from drivesim.clip import CLASSES
from drivesim.config import option, parse
from drivesim.data.schema import SPLITS
from drivesim.data.store import ClipStore
from drivesim.data.where import NIGHT
from drivesim.files import atomic_path, check_output

LISTED = 8  # values of one kind that are listed; a folder of videos has as many sources as files
UNKNOWN = "unknown"


@dataclass
class StatsConfig:
    """Print what a clip store holds, by split; with out=..., draw histograms too."""

    store: str = option(help="folder of the store, made by `drivesim prepare`")
    out: str | None = option(None, "picture of histograms to write, .png")
    overwrite: bool = option(False, "replace a file that exists")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv` or a store that cannot be read"""
    config = parse(StatsConfig, argv, "drivesim data stats")
    out = config.out and check_output(config.out, ".png", config.overwrite)
    store = ClipStore(config.store)
    index, frames, boxes = (store.table(name) for name in ("index", "frames", "boxes"))
    index, frames = timed(index, frames)
    print(f"{store.root}, prepared from {store.info.get('source', UNKNOWN)}\n")
    print(overview(index, frames, boxes).to_string())
    print(f"\n{breakdown(index).to_string()}")
    if out:
        with atomic_path(out) as temporary:
            histograms(index, frames, boxes).savefig(temporary)
        print(f"\n{out}: histograms")


def timed(index: pd.DataFrame, frames: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with a column `seconds`: how long a clip and a frame last.

    Shares and histograms weigh by it: a store mixes rates, and a second of driving counts the same at each.
    """
    rate = index.set_index("clip")["fps"]
    return index.assign(seconds=index["frames"] / index["fps"]), frames.assign(seconds=1 / frames["clip"].map(rate))


def overview(index: pd.DataFrame, frames: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """Figures (rows, written out) of all clips and of each split that has some (columns); tables as `timed` gives."""
    parts = {"all": index} | {split: index[index["split"] == split] for split in SPLITS}
    return pd.DataFrame(
        {
            name: _figures(part, *(table[table["clip"].isin(part["clip"])] for table in (frames, boxes)))
            for name, part in parts.items()
            if len(part)
        }
    )


def _figures(index: pd.DataFrame, frames: pd.DataFrame, boxes: pd.DataFrame) -> dict[str, str]:
    counts = boxes["class"].value_counts()
    return {
        "clips": f"{len(index)}",
        "routes": f"{index['route'].nunique()}",
        "frames": f"{index['frames'].sum()}",
        "seconds": f"{index['seconds'].sum():.1f}",
        "night share": _mean(frames, (frames["night"] >= NIGHT).where(frames["night"].notna())),
        "vehicles in view": _mean(frames, frames["vehicles"]),
        "speed, m/s": _mean(frames, frames["speed_mps"]),
        "clips with boxes": f"{index['has_boxes'].sum()}",
        "tracks": f"{len(boxes[['clip', 'track']].drop_duplicates())}",
        "boxes": f"{len(boxes)}",
    } | {f"  {name}": f"{counts.get(name, 0)}" for name in CLASSES}


def _mean(frames: pd.DataFrame, values: pd.Series) -> str:
    """The mean over the time in which the value is known."""
    seconds = frames["seconds"].where(values.notna(), 0.0)
    return f"{(values.astype(float) * seconds).sum() / seconds.sum():.2f}" if seconds.any() else UNKNOWN


def breakdown(index: pd.DataFrame) -> pd.DataFrame:
    """Clips and seconds by picture size, frame rate, licence and source; the longest few of each."""
    kinds = {
        "size": index["height"].astype(str) + "x" + index["width"].astype(str),
        "frames a second": index["fps"].map("{:g}".format),
        "licence": index["licence"].replace("", "not given"),
        "source": index["source"],
    }
    return pd.concat({name: _shares(index, values) for name, values in kinds.items()})


def _shares(index: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    groups = index.groupby(values)["seconds"].agg(["size", "sum"]).set_axis(["clips", "seconds"], axis=1)
    groups = groups.sort_values("seconds", ascending=False, kind="stable").round(1)
    rest = groups[LISTED:]
    if len(rest):
        groups = pd.concat([groups[:LISTED], pd.DataFrame(rest.sum()).T.set_axis([f"{len(rest)} more"])])
    return groups.astype({"clips": int})
