"""`drivesim data merge`: several stores as one, without copying what can be shared.

Shards are linked where nothing in them changes its name, and written anew otherwise. No shard is ever changed in place,
so stores that share one stay independent of each other.
"""

import json
import os
import re
import shutil
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from data_prep.shards import add_sample, members
from data_prep.writer import GROUP_BYTES, ORDER, group_rows
from drivesim.config import option, parse
from drivesim.data.remote import join
from drivesim.data.schema import INDEX, SCHEMA, TABLES
from drivesim.data.store import ClipStore
from drivesim.data.tables import read_table
from drivesim.errors import UserError
from drivesim.files import atomic_folder, check_folder

MARKER = "store.json"


@dataclass
class MergeConfig:
    """Make one store of several. Clips keep their names, routes and splits.

    Where two stores have a clip of one name, each is called STORE_NAME, after the folder of its store; routes likewise:
    those of different stores are different drives, and no route gets into two splits.
    """

    stores: list[str] = option(help="folders of the stores, [a,b,c]")
    out: str = option(help="folder of the store to make")
    overwrite: bool = option(False, "replace a store")


@dataclass
class Share:
    """What one store gives, and which of its clips and routes get another name: old -> new."""

    store: ClipStore
    label: str
    clips: dict[str, str]
    routes: dict[str, str]

    def table(self, name: str) -> pa.Table:
        """All rows of one of TABLES, with the names they get. raises UserError if it cannot be read"""
        table = _renamed(read_table(self.store.root, name), "clip", self.clips)
        return _renamed(table, "route", self.routes) if name == "index" else table


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv` or a store that cannot be read"""
    config = parse(MergeConfig, argv, "drivesim data merge")
    out = check_folder(config.out, MARKER, config.overwrite)
    shares = shared_out(_stores(config, out))
    with atomic_folder(out, MARKER, config.overwrite) as folder:
        index = place_shards(folder, shares).sort_by(ORDER["index"])
        for name in TABLES:  # one after the other: those of large stores fill the memory
            rows = index if name == "index" else pa.concat_tables(share.table(name) for share in shares)
            rows = with_starts(rows) if name == "index" else rows.sort_by(ORDER[name])
            _write(folder / f"{name}.parquet", rows)
        _save_marker(folder, shares)
    print(f"{out}: {len(index)} clips of {len(index['route'].unique())} routes from {len(shares)} stores")
    _tell_renamed("clips", [share.clips for share in shares])
    _tell_renamed("routes", [share.routes for share in shares])


def _stores(config: MergeConfig, out: Path) -> list[ClipStore]:
    if len(config.stores) < 2:
        raise UserError(f"stores has {len(config.stores)}; expected two or more, stores=[a,b]")
    stores = [ClipStore(root) for root in config.stores]
    places = [store.root.resolve() if isinstance(store.root, Path) else store.root for store in stores]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise UserError(f"stores has {twice[0]} twice; name each store once")
    if out.resolve() in places:
        raise UserError(f"out={out} is one of the stores; choose another folder")
    return stores


def shared_out(stores: Sequence[ClipStore]) -> list[Share]:
    """Each store with the names that its clips and routes get. raises UserError if a name that is made is taken"""
    labels = _labels(stores)
    clips = _told_apart([store.clips() for store in stores], labels)
    routes = _told_apart([store.index["route"].unique().tolist() for store in stores], labels)
    return [Share(*rest) for rest in zip(stores, labels, clips, routes, strict=True)]


def _write(path: Path, rows: pa.Table) -> None:
    """Write a table in row groups as those of a preparation are: few rows, or few bytes where there are pictures."""
    light = rows.num_rows * GROUP_BYTES // max(rows.nbytes, 1)
    pq.write_table(rows, path, row_group_size=max(1, min(light, group_rows(rows.num_rows))), compression="zstd")


def _save_marker(folder: Path, shares: Sequence[Share]) -> None:
    sources = ", ".join(sorted({str(share.store.info.get("source", "")) for share in shares}))
    stores = {share.label: share.store.info for share in shares}
    text = json.dumps({"schema": SCHEMA, "source": sources, "stores": stores}, indent=2, sort_keys=True)
    (folder / MARKER).write_text(text + "\n")


def _labels(stores: Sequence[ClipStore]) -> list[str]:
    """A short name for each store: that of its folder, and a number where two are called the same."""
    names = [
        re.sub(r"[^A-Za-z0-9-]+", "_", str(store.root).rstrip("/").rpartition("/")[2]).strip("_") for store in stores
    ]
    names = [name or "store" for name in names]
    return [name if names.count(name) == 1 else f"{name}{number}" for number, name in enumerate(names, start=1)]


def _told_apart(names: Sequence[Sequence[str]], labels: Sequence[str]) -> list[dict[str, str]]:
    """For each store old name -> new name, of those that another store has too."""
    count = Counter(name for some in names for name in some)
    renamed = [
        {name: f"{label}_{name}" for name in some if count[name] > 1} for some, label in zip(names, labels, strict=True)
    ]
    given = Counter(new.get(name, name) for some, new in zip(names, renamed, strict=True) for name in some)
    if taken := [name for name, number in given.items() if number > 1]:
        raise UserError(f"two clips or routes would be called {taken[0]}; rename the folder of one of the stores")
    return renamed


def _renamed(table: pa.Table, column: str, names: Mapping[str, str]) -> pa.Table:
    if not names:
        return table
    old, new = pa.array(names.keys(), pa.string()), pa.array(names.values(), pa.string())
    values = pc.coalesce(pc.take(new, pc.index_in(table[column], old)), table[column])
    return table.set_column(table.column_names.index(column), column, values)


def place_shards(folder: Path, shares: Sequence[Share]) -> pa.Table:
    """Bring the shards of all stores into `folder`; returns the index of all clips, with where they are.

    raises  UserError if a shard is missing or cut off
    """
    numbers: dict[str, int] = defaultdict(int)
    rows: list[dict[str, Any]] = []
    with tqdm(total=sum(len(share.store.clips()) for share in shares), desc="merge", unit="clip") as bar:
        for share, shard, clips in _shards(shares):
            split = clips[0]["split"]
            target = f"shards/{split}-{numbers[split]:05d}.tar"
            numbers[split] += 1
            where = _bring(share, shard, clips, folder / target)
            rows += [row | {"shard": target, "shard_at": where[row["clip"]]} for row in clips]
            bar.update(len(clips))
    return pa.Table.from_pylist(rows, INDEX)


def with_starts(index: pa.Table) -> pa.Table:
    """Note where the rows of each clip begin in the other tables; all are sorted by clip."""
    for count in ("frames", "boxes"):
        counts = index[count].to_numpy().astype(np.int64)
        at = index.column_names.index(f"{count}_at")
        index = index.set_column(at, INDEX.field(at), pa.array(np.cumsum(counts) - counts))
    return index


def _shards(shares: Iterable[Share]) -> Iterator[tuple[Share, str, list[dict[str, Any]]]]:
    """Every shard of every store with its rows of the index, in the order in which they lie in it."""
    for share in shares:
        held: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in share.table("index").to_pylist():
            held[row["shard"]].append(row)
        for shard in sorted(held):
            yield share, shard, sorted(held[shard], key=lambda row: row["shard_at"])


def _bring(share: Share, shard: str, rows: list[dict[str, Any]], target: Path) -> dict[str, int]:
    """Make a shard at `target`; where in it the video of each clip begins."""
    target.parent.mkdir(exist_ok=True)
    old = {new: name for name, new in share.clips.items()}
    videos = {row["clip"]: share.store.video(old.get(row["clip"], row["clip"])) for row in rows}
    changed = any(row["clip"] in old or row["route"] in share.routes.values() for row in rows)
    place = join(share.store.root, shard)
    if isinstance(place, Path) and not changed:
        for video in videos.values():
            video.open().close()  # tells of a shard that is missing or cut off
        _link(place, target)
        return {row["clip"]: row["shard_at"] for row in rows}
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for row in rows:
            with videos[row["clip"]].open() as file:
                add_sample(tar, row, file)
    return {file.stem: file.offset for file in members(target)}


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing, or is another one."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _tell_renamed(what: str, renamed: Sequence[Mapping[str, str]]) -> None:
    if names := sorted({name for some in renamed for name in some}):
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        print(f"{len(names)} {what} had one name in several stores and got that of their store before it: {shown}")
