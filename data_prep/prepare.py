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
from data_prep.images import ImagesConfig, ImagesSource
from data_prep.kitti.source import KittiConfig, KittiSource
from data_prep.nuscenes.source import NuscenesConfig, NuscenesSource
from data_prep.pool import Pool, Processes, run_units
from data_prep.ray_pool import RayPool
from data_prep.shards import SHARD_MB, forget_lost
from data_prep.source import Source, Unit
from data_prep.splits import split_routes
from data_prep.town.source import TownConfig, TownSource
from data_prep.units import UnitResult, record_path, recorded, stamp, workers_lock
from data_prep.videos import VideosConfig, VideosSource
from data_prep.writer import merge
from drivesim.config import option, parse
from drivesim.data.schema import SCHEMA, SPLITS, TABLES
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.locks import holding


@dataclass
class PrepareConfig:
    """Turn raw driving data into a clip store. The same command again goes on where it was stopped."""

    out: str = option(help="folder of the store")
    source: str = option("town", "town (procedural), nuscenes, kitti, bdd100k, videos, images (folders of such files)")
    root: str | None = option(None, "folder with the raw data; town needs none")
    workers: int = option(0, "units at a time; 0: one a core")
    runner: str = option("processes", "processes of this machine, or ray")
    address: str | None = option(None, "of a Ray cluster, whose nodes share `out` and `root`; without it this machine")
    overwrite: bool = option(False, "throw away the store in `out` and begin anew")
    retry_dropped: bool = option(False, "try inputs again that something was dropped of, or that have changed since")
    val_share: float = option(0.15, "share of the routes for validation")
    test_share: float = option(0.0, "share of the routes for testing")
    seed: int = option(0, "decides which routes are held out")
    lossless: bool = option(False, "keep every pixel as it is, in files four to nine times as large; else crf 16")
    shard_mb: float = option(SHARD_MB, "about how many megabytes of video go into one file of the store")
    town: TownConfig = field(default_factory=TownConfig)
    videos: VideosConfig = field(default_factory=VideosConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    kitti: KittiConfig = field(default_factory=KittiConfig)
    nuscenes: NuscenesConfig = field(default_factory=NuscenesConfig)
    bdd100k: Bdd100kConfig = field(default_factory=Bdd100kConfig)


# A new kind of raw data is one line here and one field above.
SOURCES: dict[str, Callable[[PrepareConfig], Source]] = {
    "town": lambda config: TownSource(config.town),
    "videos": lambda config: VideosSource(config.videos, config.root),
    "images": lambda config: ImagesSource(config.images, config.root),
    "kitti": lambda config: KittiSource(config.kitti, config.root),
    "nuscenes": lambda config: NuscenesSource(config.nuscenes, config.root),
    "bdd100k": lambda config: Bdd100kSource(config.bdd100k, config.root),
}
RUNNERS = ("processes", "ray")
STORE_FILES = ("store.json", "dropped.json", *(f"{name}.parquet" for name in TABLES))
HOW = {"out", "workers", "runner", "address", "overwrite", "retry_dropped"}  # options that do not decide the contents


def main(argv: Sequence[str]) -> None:
    """Run the command; raises UserError for a mistake in `argv` or in the data."""
    config = parse(PrepareConfig, argv, "drivesim prepare")
    if config.runner == "ray":  # the working directory of a task is not that of this process
        config = replace(config, out=_absolute(config.out), root=config.root and _absolute(config.root))
    source = make_source(config)
    units = [
        replace(unit, stamp=stamp(Path(config.root or "", unit.path)) if unit.path else "") for unit in source.units()
    ]
    out = Path(config.out)
    with locked(out):
        splits = _begin(config, units)
        units = [replace(unit, split=splits[unit.route], lossless=config.lossless) for unit in units]
        if config.retry_dropped:
            _retry(out, units)
        if (out / "store.json").exists():
            print(_whole(out, units))
        else:
            started = time.monotonic()
            forget_lost(out)
            results = list(_progress(units, run_units(units, out, make_pool(config, source))))
            _finish(config, results)
            print(f"took {time.monotonic() - started:.0f} s")
        print(summary(out))


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def make_pool(config: PrepareConfig, source: Source) -> Pool:
    """What the units are done by. raises UserError if Ray is asked for and not there"""
    out = Path(config.out)
    if config.runner == "processes":
        return Processes(source, out, config.workers)
    shared = [out / "prepare.json", *([Path(config.root)] if config.root else [])]
    return RayPool(source, out, config.workers, config.address, shared)


def make_source(config: PrepareConfig) -> Source:
    """The source asked for. raises UserError for options that cannot work"""
    if config.source not in SOURCES:
        raise UserError(f"source={config.source} is unknown; expected one of {', '.join(SOURCES)}")
    if config.workers < 0:
        raise UserError(f"workers is {config.workers}; expected 0 (one a core) or more")
    if not config.shard_mb > 0:
        raise UserError(f"shard_mb is {config.shard_mb}; expected more than 0")
    if config.runner not in RUNNERS:
        raise UserError(f"runner={config.runner} is unknown; expected one of {', '.join(RUNNERS)}")
    if config.address is not None and config.runner != "ray":
        raise UserError(f"address={config.address} is that of a Ray cluster; add runner=ray or leave it out")
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
        lock = _lock(out / ".lock")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"out={out} cannot be written ({error.strerror}); choose another folder") from error
    try:
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        (out / ".lock").unlink(missing_ok=True)
        os.close(lock)


def _lock(path: Path) -> int:
    """The descriptor of the file, locked. raises UserError if another process holds it"""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when its holder dies
        except BlockingIOError as error:
            os.close(lock)
            holder = f"another preparation (process {path.read_text().strip() or '?'}) is writing {path.parent}"
            raise UserError(f"{holder}; wait for it or choose another out") from error
        if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:
            return lock
        os.close(lock)  # its holder ended and removed it between our two steps, and a third process may lock a new one


def _begin(config: PrepareConfig, units: Sequence[Unit]) -> dict[str, str]:
    """Make the folder ready, or check that it is this very preparation going on; returns the split of each route."""
    out = Path(config.out)
    splits = split_routes(units, config.val_share, config.test_share, config.seed)
    config_of = {"schema": SCHEMA} | _identity(config)
    plan = {"config": config_of, "units": [unit.name for unit in units], "splits": splits}
    record = out / "prepare.json"
    own = {".lock", *(path.name for path in out.glob(".prepare.*.partial.json"))}
    if not record.exists() and any(path.name not in own for path in out.iterdir()):
        raise UserError(f"{out} holds files that are no store of `drivesim prepare`; choose an empty folder")
    if record.exists() and not config.overwrite:
        _check_same(json.loads(record.read_text()), plan, out)
    if workers_lock(out).exists():
        with holding(workers_lock(out), waiting="waiting for the processes of an earlier preparation to end"):
            pass
    _remove_leftovers(out)
    if config.overwrite:
        _clear(out)
    if config.overwrite or not record.exists():
        with atomic_path(record) as temporary:
            temporary.write_text(json.dumps(plan, indent=2) + "\n")
    return splits


def _remove_leftovers(out: Path) -> None:
    """Remove what processes that were killed had begun to write; others leave nothing."""
    for leftover in (*out.glob(".*.partial*"), *out.glob("*/.*.partial*")):
        leftover.unlink(missing_ok=True)


def _identity(config: PrepareConfig) -> dict[str, Any]:
    """What decides the contents of the store: all options but where it goes and how fast."""
    options = dataclasses.asdict(replace(config, root=config.root and str(Path(config.root).resolve())))
    others = {name for name in SOURCES if name != config.source}
    return {key: value for key, value in options.items() if key not in HOW | others}


def _check_same(found: dict[str, Any], plan: dict[str, Any], out: Path) -> None:
    remedy = "choose another out, or add overwrite=true to make it anew"
    now = _flat(plan["config"])
    # What an earlier version did not know of was what is the default today.
    usual = _flat(_identity(PrepareConfig(out="", source=found["config"].get("source", ""))))
    before = {key: usual[key] for key in now if key in usual} | _flat(found["config"])
    different = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    if different:
        told = ", ".join(f"{key}={before.get(key)} (now {now.get(key)})" for key in different[:4])
        raise UserError(f"{out} was prepared with {told}; {remedy}")
    if any(found[key] != plan[key] for key in ("units", "splits")):
        count = f"{len(found['units'])} inputs, now {len(plan['units'])}"
        raise UserError(f"{out} was begun with other inputs ({count}), so its splits no longer hold; {remedy}")


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _clear(out: Path) -> None:
    """Remove a store but for prepare.json, by which the folder is known. Killed at any moment, what is left of it
    claims nothing that is not there: what says that something is whole goes first."""
    (out / "store.json").unlink(missing_ok=True)
    for pattern in ("*.unit.json", "*.index.parquet"):
        for path in (out / "parts").glob(pattern):
            path.unlink()
    for name in ("parts", "clips", "shards", "cache"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in STORE_FILES:
        (out / name).unlink(missing_ok=True)


def _retry(out: Path, units: Sequence[Unit]) -> None:
    """Have those units done again of which something was dropped, or whose input has changed."""
    done = {unit: recorded(unit, out) for unit in units}
    again = [unit for unit, result in done.items() if result is None or result.dropped]
    if again:
        (out / "store.json").unlink(missing_ok=True)  # first: from here on it is a store in the making
    for unit in again:
        record_path(unit, out).unlink(missing_ok=True)


def _whole(out: Path, units: Sequence[Unit]) -> str:
    said = f"{out} is whole already; overwrite=true makes it anew"
    done = (unit for unit in units if record_path(unit, out).exists())
    if changed := [unit.path for unit in done if recorded(unit, out) is None]:
        named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        said += f"\nits input has changed since: {named}; retry_dropped=true takes that in"
    return said


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
    _remove_leftovers(out)
    _remove_strays(out, {clip for result in results for clip in result.clips})
    dropped = sorted((piece for result in results for piece in result.dropped), key=lambda piece: piece.unit)
    with atomic_path(out / "dropped.json") as temporary:
        temporary.write_text(json.dumps([dataclasses.asdict(piece) for piece in dropped], indent=2) + "\n")
    if not any(result.clips for result in results):
        reasons = "; ".join(f"{piece.unit}: {piece.reason}" for piece in dropped[:3])
        raise UserError(f"nothing was prepared from {len(results)} inputs ({reasons}); see {out / 'dropped.json'}")
    merge(out, {"source": config.source, "config": _identity(config)}, config.shard_mb)


def _remove_strays(out: Path, clips: set[str]) -> None:
    """Remove clips of no unit: made of a file that has changed since, where fewer are made of what it is now."""
    for pattern in ("parts/*.index.parquet", "parts/*.parquet", "clips/*.mp4"):  # first what says that a clip is whole
        for path in out.glob(pattern):
            if path.name.removesuffix(".parquet").rpartition(".")[0] not in clips:
                path.unlink()


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
        lines.append(f"left out, all in {out / 'dropped.json'} (after repairs, retry_dropped=true tries them again):")
        lines += [f"  {piece['unit']}: {piece['reason']}" for piece in dropped[:10]]
        lines += [f"  and {len(dropped) - 10} more"] if len(dropped) > 10 else []
    return "\n".join([*lines, "next: drivesim train --help"])
