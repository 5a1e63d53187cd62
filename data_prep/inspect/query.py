"""`drivesim data query`: the clips of a store for which a condition holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_path, check_output

HIDDEN = ["caption", "shard", "shard_at", "bytes", "frames_at", "boxes_at", "boxes"]  # too long for a line
OF_GENERATED = ["synthetic", "label_recall", "label_ok"]  # the same for all clips where none is generated


@dataclass
class QueryConfig:
    """List the clips for which a condition on the columns of index.parquet holds.

    where="night and cars > 5 and speed > 10"
    where="split == 'val' and not (fps < 10 or seconds < 4)"

    Columns are compared with numbers, or with text in quotes, by < <= > >= == !=; and, or, not and brackets join.
    Columns: those of index.parquet (docs/clip_store.md) and `seconds`, the length. cars and vehicles stand for
    crowdedness, speed for speed_mps. By themselves: night (night >= 0.5), day, has_boxes, synthetic, label_ok,
    and the weather: clear, cloudy, rain, snow, fog. Unknown numbers match only !=.
    """

    store: str = option(help="the store, made by `drivesim prepare`: folder or URL")
    where: str = option(help="the condition")
    out: str | None = option(None, "file for the names of all clips found, one a line, .txt")
    show: int = option(100, "clips printed at most")
    overwrite: bool = option(False, "replace a file that exists")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv` or a store that cannot be read"""
    config = parse(QueryConfig, argv, "drivesim data query")
    out = config.out and check_output(config.out, ".txt", config.overwrite)
    if config.show < 0:
        raise UserError(f"show={config.show}; expected 0 or more")
    store = ClipStore(config.store)
    found = store.query(config.where)
    if shown := min(config.show, len(found)):
        hidden = HIDDEN if store.index["synthetic"].any() else [*HIDDEN, *OF_GENERATED]
        table = found.head(shown).reset_index().drop(columns=hidden)
        print(table.to_string(index=False, na_rep="unknown", float_format="{:.4g}".format))
    if more := len(found) - shown:
        print(f"and {more} more; out=names.txt writes the names of all")
    print(f"{len(found)} of {len(store.index)} clips")
    if out:
        with atomic_path(out) as temporary:
            temporary.write_text("".join(f"{clip}\n" for clip in found.index))
        print(f"{out}: their names")
