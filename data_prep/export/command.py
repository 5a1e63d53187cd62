"""`drivesim data export`: clips of a store as a data set that other tools read."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.export.coco import CocoOptions, CocoWriter
from data_prep.export.job import Job
from data_prep.export.nuscenes import NuscenesOptions, NuscenesWriter
from drivesim.config import option, parse
from drivesim.data.schema import SPLITS
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_folder, check_folder

MARKER = "drivesim.json"  # what an export was made from; tells its folder from others


@dataclass
class ExportConfig:
    """Write clips of a store as a data set that other tools read; docs/export.md explains the formats."""

    store: str = option(help="folder of the store, made by `drivesim prepare`")
    format: str = option(help="nuscenes (3D boxes, for nuscenes-devkit) or coco (2D boxes)")
    out: str = option(help="folder to make")
    splits: list[str] = option(list(SPLITS), "splits to take")
    clips: str | None = option(None, "file with the names of the clips to take, as `drivesim data query out=` writes")
    quality: int = option(95, "of the JPEG pictures, 1..100")
    overwrite: bool = option(False, "replace an earlier export")
    nuscenes: NuscenesOptions = field(default_factory=NuscenesOptions)
    coco: CocoOptions = field(default_factory=CocoOptions)


WRITERS: dict[str, Callable[[Job, ExportConfig], dict[str, Any]]] = {
    "nuscenes": lambda job, config: NuscenesWriter(job, config.nuscenes).write(),
    "coco": lambda job, config: CocoWriter(job, config.coco).write(),
}


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv` or a store that cannot be read"""
    config = parse(ExportConfig, argv, "drivesim data export")
    _check(config)
    out = check_folder(config.out, MARKER, config.overwrite)
    store = ClipStore(config.store)
    clips = chosen(store, config)
    total = int(store.index.loc[clips, "frames"].sum())
    with atomic_folder(out, MARKER, config.overwrite) as folder, tqdm(total=total, desc="export", unit="frame") as bar:
        job = Job(store, clips, folder, config.quality, bar.update)
        fill(job, config, f"drivesim data export format={config.format}")
    print(f"{out}: {len(clips) - len(job.left_out)} of {len(clips)} clips as {config.format}")
    if job.left_out:
        print(f"left out, all in {out / MARKER}: {_told(job, 10)}")


def fill(job: Job, config: ExportConfig, made_by: str) -> None:
    """Write the data set, and MARKER. raises UserError if no clip can be exported"""
    notes = WRITERS[config.format](job, config)
    if len(job.left_out) == len(job.clips):
        raise UserError(f"none of {len(job.clips)} clips can be exported ({_told(job, 3)}); see docs/export.md")
    _save_notes(job, made_by, notes)


def _check(config: ExportConfig) -> None:
    if config.format not in WRITERS:
        raise UserError(f"format={config.format} is unknown; expected one of {', '.join(WRITERS)}")
    if not 1 <= config.quality <= 100:
        raise UserError(f"quality is {config.quality}; expected 1..100")
    if unknown := sorted(set(config.splits) - set(SPLITS)):
        raise UserError(f"splits has {', '.join(unknown)}; expected some of {', '.join(SPLITS)}")
    config.nuscenes.check()
    config.coco.check()


def chosen(store: ClipStore, config: ExportConfig) -> list[str]:
    """Names of the clips asked for, sorted. raises UserError if there are none, or the file names unknown ones"""
    clips = [clip for clip, split in store.index["split"].items() if split in config.splits]
    if config.clips is not None:
        try:
            named = set(Path(config.clips).read_text().split())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"clips={config.clips} cannot be read ({error}); give a file of names, one a line"
            ) from error
        if unknown := sorted(named - set(store.index.index)):
            raise UserError(
                f"clips={config.clips} names {unknown[0]!r}, which is not in {store.root}; see `drivesim data query`"
            )
        clips = [clip for clip in clips if clip in named]
    if not clips:
        raise UserError(
            f"no clip of {store.root} is in splits={config.splits} and clips={config.clips}; ask for others"
        )
    return sorted(clips)


def _save_notes(job: Job, made_by: str, notes: dict[str, Any]) -> None:
    """What this was made from: sources, licences, and whether it was filmed at all."""
    index = job.store.index.loc[[clip for clip in job.clips if clip not in job.left_out]]
    document: dict[str, Any] = {
        "made_by": made_by,
        "sources": sorted(index["source"].unique()),
        "licences": sorted(index["licence"].unique()),
        "left_out": dict(sorted(job.left_out.items())),
    }
    if index["synthetic"].any():
        origins = job.store.table("index", ["clip", "provenance"]).set_index("clip")["provenance"]
        document |= {
            "synthetic": True,
            "provenance": {clip: json.loads(origins[clip]) for clip in index.index[index["synthetic"]]},
        }
    (job.folder / MARKER).write_text(json.dumps(document | notes, indent=1) + "\n")


def _told(job: Job, most: int) -> str:
    told = [f"{clip}: {reason}" for clip, reason in job.left_out.items()]
    return "; ".join(told[:most]) + (f"; and {len(told) - most} more" if len(told) > most else "")
