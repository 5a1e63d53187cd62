"""`drivesim data query`: the clips of a store for which a condition holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.inspect.where import select
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.files import atomic_path, check_output

HIDDEN = ["sha256", "shard", "shard_at", "bytes", "frames_at", "boxes_at", "boxes"]  # for programs, not for readers


@dataclass
class QueryConfig:
    """List the clips for which a condition on the columns of index.parquet holds.

    where="night > 0.5 and crowdedness > 5 and speed_mps > 10"
    where="split == 'val' and not (fps < 10 or seconds < 4)"

    Columns are compared with numbers, or with text in quotes, by < <= > >= == !=; and, or, not and brackets join.
    Columns: those of index.parquet (docs/clip_store.md) and `seconds`, the length. Unknown numbers match only !=.
    """

    store: str = option(help="folder of the store, made by `drivesim prepare`")
    where: str = option(help="the condition")
    out: str | None = option(None, "file for the names of the clips, one a line, .txt")
    overwrite: bool = option(False, "replace a file that exists")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv` or a store that cannot be read"""
    config = parse(QueryConfig, argv, "drivesim data query")
    out = config.out and check_output(config.out, ".txt", config.overwrite)
    index = ClipStore(config.store).table("index")
    index["seconds"] = index["frames"] / index["fps"]
    found = select(index, config.where)
    if len(found):
        shown = found.drop(columns=HIDDEN)
        print(shown.to_string(index=False, na_rep="unknown", float_format="{:.4g}".format))
    print(f"{len(found)} of {len(index)} clips")
    if out:
        with atomic_path(out) as temporary:
            temporary.write_text("".join(f"{clip}\n" for clip in found["clip"]))
        print(f"{out}: their names")
