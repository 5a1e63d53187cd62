"""`drivesim prepare`: raw driving data, or the procedural town, into a clip store.

Work is divided into units that are done or not: kill it at any time, and the same command goes on.
"""

import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.bdd100k.source import Bdd100kConfig, Bdd100kSource
from data_prep.pool import UnitResult, run_units
from data_prep.source import Source, Unit
from data_prep.splits import split_routes
from data_prep.town.source import TownConfig, TownSource
from data_prep.videos import VideosConfig, VideosSource
from data_prep.writer import merge
from drivesim.config import option, parse
from drivesim.data.schema import SPLITS
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_path


@dataclass
class PrepareConfig:
    """Turn raw driving data into a clip store. The same command again goes on where it was stopped."""

    out: str = option(help="folder of the store")
    source: str = option("town", "town (procedural), videos (a folder of video files), bdd100k")
    root: str | None = option(None, "folder with the raw data; town needs none")
    workers: int = option(0, "processes; 0: one a core")
    overwrite: bool = option(False, "throw away the store in `out` and begin anew")
    val_share: float = option(0.15, "share of the routes for validation")
    test_share: float = option(0.0, "share of the routes for testing")
    seed: int = option(0, "decides which routes are held out")
    town: TownConfig = field(default_factory=TownConfig)
    videos: VideosConfig = field(default_factory=VideosConfig)
    bdd100k: Bdd100kConfig = field(default_factory=Bdd100kConfig)


# A new kind of raw data is one line here and one field above.
SOURCES: dict[str, Callable[[PrepareConfig], Source]] = {
    "town": lambda config: TownSource(config.town),
    "videos": lambda config: VideosSource(config.videos, config.root),
    "bdd100k": lambda config: Bdd100kSource(config.bdd100k, config.root),
}
STORE_FILES = ("store.json", "prepare.json", "dropped.json", "index.parquet", "frames.parquet", "boxes.parquet")


def main(argv: Sequence[str]) -> None:
    """Run the command; raises UserError for a mistake in `argv` or in the data."""
    config = parse(PrepareConfig, argv, "drivesim prepare")
    source = make_source(config)
    units = source.units()
    out = Path(config.out)
    with locked(out):
        splits = _begin(config, units)
        if (out / "store.json").exists():
            print(f"{out} is whole already; overwrite=true makes it anew")
        else:
            started = time.monotonic()
            results = list(_progress(units, run_units(source, units, splits, out, config.workers)))
            _finish(config, results)
            print(f"took {time.monotonic() - started:.0f} s")
        print(summary(out))


def make_source(config: PrepareConfig) -> Source:
    """The source asked for. raises UserError for options that cannot work"""
    if config.source not in SOURCES:
        raise UserError(f"source={config.source} is unknown; expected one of {', '.join(SOURCES)}")
    if config.workers < 0:
        raise UserError(f"workers is {config.workers}; expected 0 (one a core) or more")
    if min(config.val_share, config.test_share) < 0 or config.val_share + config.test_share >= 1:
        found = f"val_share is {config.val_share}, test_share {config.test_share}"
        raise UserError(f"{found}; expected 0 or more each and less than 1 together")
    if config.root is not None:
        root, out = Path(config.root).resolve(), Path(config.out).resolve()
        if root == out or root in out.parents or out in root.parents:
            raise UserError(f"out={config.out} and root={config.root} lie in one another; choose another out")
    return SOURCES[config.source](config)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock of a process that died counts for nothing.

    raises  UserError if another preparation is at work, or `out` cannot be a folder
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lock").touch()
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"out={out} cannot be written ({error.strerror}); choose another folder") from error
    with open(out / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when its holder dies
        except BlockingIOError as error:
            file.seek(0)
            holder = f"another preparation (process {file.read().strip() or '?'}) is writing {out}"
            raise UserError(f"{holder}; wait for it or choose another out") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            (out / ".lock").unlink(missing_ok=True)


def _begin(config: PrepareConfig, units: Sequence[Unit]) -> dict[str, str]:
    """Make the folder ready, or check that it is this very preparation going on; returns the split of each route."""
    out = Path(config.out)
    splits = split_routes(units, config.val_share, config.test_share, config.seed)
    plan = {"config": _identity(config), "units": [unit.name for unit in units], "splits": splits}
    record = out / "prepare.json"
    if not record.exists() and any(path.name != ".lock" for path in out.iterdir()):
        raise UserError(f"{out} holds files that are no store of `drivesim prepare`; choose an empty folder")
    if config.overwrite:
        _clear(out)
    if record.exists():
        _check_same(json.loads(record.read_text()), plan, out)
        for leftover in (*out.glob(".*.partial*"), *out.glob("*/.*.partial*")):
            leftover.unlink()  # of a process that was killed
    else:
        with atomic_path(record) as temporary:
            temporary.write_text(json.dumps(plan, indent=2) + "\n")
    return splits


def _identity(config: PrepareConfig) -> dict[str, Any]:
    """What decides the contents of the store: all options but where it goes and how fast."""
    options = dataclasses.asdict(replace(config, root=config.root and str(Path(config.root).resolve())))
    others = {name for name in SOURCES if name != config.source}
    return {key: value for key, value in options.items() if key not in {"out", "workers", "overwrite"} | others}


def _check_same(found: dict[str, Any], plan: dict[str, Any], out: Path) -> None:
    remedy = "choose another out, or add overwrite=true to make it anew"
    before, now = _flat(found["config"]), _flat(plan["config"])
    different = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    if different:
        told = ", ".join(f"{key}={before.get(key)} (now {now.get(key)})" for key in different[:4])
        raise UserError(f"{out} was prepared with {told}; {remedy}")
    if found != plan:
        count = f"{len(found['units'])} inputs, now {len(plan['units'])}"
        raise UserError(f"{out} was begun with other inputs ({count}), so its splits no longer hold; {remedy}")


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _clear(out: Path) -> None:
    for name in STORE_FILES:  # store.json first: what is left of it is no store
        (out / name).unlink(missing_ok=True)
    for name in ("parts", "clips"):
        shutil.rmtree(out / name, ignore_errors=True)


def _progress(units: Sequence[Unit], results: Iterator[tuple[int, UnitResult | None]]) -> Iterator[UnitResult]:
    """Show units done, time left and frames a second; pass on what each finished unit gave."""
    started = time.monotonic()
    with tqdm(total=len(units), unit="unit", desc="prepare") as bar:
        for frames, result in results:
            rate = frames / (time.monotonic() - started)
            bar.set_postfix_str(f"{frames} frames, {rate:.1f} frames/s")
            if result is not None:
                bar.update()
                yield result


def _finish(config: PrepareConfig, results: Sequence[UnitResult]) -> None:
    out = Path(config.out)
    dropped = sorted((piece for result in results for piece in result.dropped), key=lambda piece: piece.unit)
    with atomic_path(out / "dropped.json") as temporary:
        temporary.write_text(json.dumps([dataclasses.asdict(piece) for piece in dropped], indent=2) + "\n")
    if not any(result.clips for result in results):
        reasons = "; ".join(f"{piece.unit}: {piece.reason}" for piece in dropped[:3])
        raise UserError(f"nothing was prepared from {len(results)} inputs ({reasons}); see {out / 'dropped.json'}")
    merge(out, {"source": config.source, "config": _identity(config)})


def summary(out: Path) -> str:
    """What a finished store holds, what was dropped and why, and what to run next."""
    index = ClipStore(out).index
    seconds = (index["frames"] / index["fps"]).sum()
    lines = [f"{out}: {len(index)} clips, {index['frames'].sum()} frames, {seconds:.1f} s of video"]
    for split in SPLITS:
        if len(rows := index[index["split"] == split]):
            part = (rows["frames"] / rows["fps"]).sum()
            lines.append(f"  {split:<6} {len(rows)} clips of {rows['route'].nunique()} routes, {part:.1f} s")
    if index["route"].nunique() == 1:
        lines.append("  all clips are one route, so none is held out for validation")
    dropped = json.loads((out / "dropped.json").read_text())
    if dropped:
        lines.append(f"left out, all in {out / 'dropped.json'}:")
        lines += [f"  {piece['unit']}: {piece['reason']}" for piece in dropped[:10]]
        lines += [f"  and {len(dropped) - 10} more"] if len(dropped) > 10 else []
    return "\n".join([*lines, "next: drivesim train --help"])
