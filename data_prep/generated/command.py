"""`drivesim export`: generated videos, with the layouts that steered them, as a labelled data set."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from data_prep.export import command as stored
from data_prep.export.coco import CocoOptions
from data_prep.export.job import Job
from data_prep.export.nuscenes import NuscenesOptions
from data_prep.generated.check import Checker, CheckOptions
from data_prep.generated.clips import Labelled, PieceOptions, pieces
from data_prep.generated.found import read_generated, units_of
from data_prep.generated.space import LensOptions
from data_prep.source import Dropped, RawClip, Refused, Unit
from data_prep.splits import split_routes
from data_prep.videos import ROUTE_BY
from data_prep.writer import merge, write_clip
from drivesim.config import option, parse
from drivesim.data.schema import SPLITS
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.files import atomic_folder, check_folder

STORE, MARKER = "store", "store.json"
SCRATCH = ".store"  # of the formats that are made from a store


@dataclass
class Asked:
    """What every export is told."""

    videos: str = option(help="generated videos: a folder, a file, or a pattern such as 'out/*.mp4'")
    format: str = option(
        help="store (of clips, to train on), nuscenes (3D boxes, for nuscenes-devkit) or coco (2D boxes)"
    )
    out: str = option(help="folder to make")
    overwrite: bool = option(False, "replace an earlier export of the same format")


@dataclass
class ExportConfig(PieceOptions, CheckOptions, Asked):
    """Write generated videos as a data set with labels: boxes, tracks and poses are those that steered each frame.

    Every video needs what `drivesim generate` writes beside it, OUT.layout.json and OUT.json. A detector checks that
    the pictures show what they are labelled with; docs/labelled_export.md explains how.
    """

    split: str | None = option(None, f"of all videos, one of {', '.join(SPLITS)}; else routes are shared out:")
    val_share: float = option(0.0, "share of the routes that validate")
    test_share: float = option(0.0, "share of the routes that test")
    seed: int = option(0, "of the split, and of the car finder's training")
    route_by: str = option(
        "name", "one route (never split) is: name, files alike but for a trailing number; file; folder"
    )
    licence: str = option("", "noted in the index of the store")
    lossless: bool = option(False, "keep every pixel of the videos, in a store four to nine times as large")
    quality: int = option(95, "of JPEG pictures, 1..100")
    lens: LensOptions = field(default_factory=LensOptions)
    nuscenes: NuscenesOptions = field(default_factory=NuscenesOptions)
    coco: CocoOptions = field(default_factory=CocoOptions)

    def check(self) -> None:
        """raises UserError for values that cannot work"""
        PieceOptions.check(self)
        CheckOptions.check(self)
        if self.format not in (STORE, *stored.WRITERS):
            raise UserError(f"format={self.format} is unknown; expected one of {STORE}, {', '.join(stored.WRITERS)}")
        for name, value, known in (("split", self.split, SPLITS), ("route_by", self.route_by, ROUTE_BY)):
            if value is not None and value not in known:
                raise UserError(f"{name}={value} is unknown; expected one of {', '.join(known)}")
        shares = self.val_share, self.test_share
        if min(shares) < 0 or not sum(shares) < 1:
            raise UserError(f"val_share is {shares[0]}, test_share {shares[1]}; expected 0 or more, together below 1")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality}; expected 1..100")
        for part in (self.lens, self.nuscenes, self.coco):
            part.check()


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv`, or if no video can be exported"""
    config = parse(ExportConfig, argv, "drivesim export")
    config.check()
    marker = MARKER if config.format == STORE else stored.MARKER
    out = check_folder(config.out, marker, config.overwrite)
    root, units = units_of(config.videos, config.route_by)
    with atomic_folder(out, marker, config.overwrite) as folder:
        store = folder if config.format == STORE else folder / SCRATCH
        checker = Checker.of(config, config.seed, root, units, folder)
        dropped = write_store(store, config, root, units, checker)
        told = _told(ClipStore(store), config, len(units))
        if config.format != STORE:
            _convert(store, config, folder)
            shutil.rmtree(store)
        checker.save(folder)
        (folder / "dropped.json").write_text(json.dumps([asdict(piece) for piece in dropped], indent=2) + "\n")
    print(f"{out}: {told}")
    for line in checker.report(out, config.drop_failed):
        print(line)
    if dropped:
        print(f"left out, all in {out / 'dropped.json'}:")
        print("\n".join([f"  {piece.unit}: {piece.reason}" for piece in dropped[:10]]))


def write_store(
    store: Path, config: ExportConfig, root: Path, units: Sequence[Unit], checker: Checker
) -> list[Dropped]:
    """Make a clip store of the videos below `root`; returns what was left out and why.

    raises  UserError if nothing is left, the disk is full, or the detector does not answer as it should
    """
    given = [Unit(unit.name, unit.route, unit.group, unit.path, config.split or "") for unit in units]
    splits = split_routes(given, config.val_share, config.test_share, config.seed)
    dropped: list[Dropped] = []
    clips = 0
    with tqdm(units, "export", unit="video") as bar:
        for unit in bar:
            try:
                for clip in _clips(config, root, unit, checker):
                    write_clip(store, clip, splits[unit.route], lossless=config.lossless)
                    clips += 1
            except Refused as reason:
                dropped.append(Dropped(unit.path, str(reason)))
            bar.set_postfix_str(f"{clips} clips")
    if not clips:
        reasons = "; ".join(f"{piece.unit}: {piece.reason}" for piece in dropped[:3])
        raise UserError(f"none of {len(units)} videos can be exported ({reasons}); see docs/labelled_export.md")
    merge(store, {"source": "generated", "synthetic": True, "drop_failed": config.drop_failed})
    return dropped


def _clips(config: ExportConfig, root: Path, unit: Unit, checker: Checker) -> Iterator[RawClip]:
    """The clips of one video, to be read one after the other. raises Refused if there are none"""
    video = read_generated(root / unit.path)
    recall, ok = checker.check(unit.path, video)
    known = video.layout.known.numpy()
    kept = known & ok if config.drop_failed else known
    if not any(True for _ in pieces(kept, video.fps, config)):
        why = "that passed the label check" if config.drop_failed else "of which the boxes are known"
        raise Refused(f"has no {config.min_seconds:g} s in a row {why}")
    yield from Labelled(video, recall, ok, config.lens).clips(unit, kept, config, config.licence)


def _convert(store: Path, config: ExportConfig, folder: Path) -> None:
    """Fill `folder` with the data set that `drivesim data export` makes of the store."""
    choice = stored.ExportConfig(str(store), config.format, str(folder), nuscenes=config.nuscenes, coco=config.coco)
    opened = ClipStore(store)
    with tqdm(total=int(opened.index["frames"].sum()), desc=config.format, unit="frame") as bar:
        job = Job(opened, opened.clips(), folder, config.quality, bar.update)
        stored.fill(job, choice, f"drivesim export format={config.format}")


def _told(store: ClipStore, config: ExportConfig, videos: int) -> str:
    index = store.index
    seconds = float((index["frames"] / index["fps"]).sum())
    boxes = f"{int(index['boxes'].sum())} boxes"
    return f"{len(index)} clips, {seconds:.1f} s with {boxes}, of {videos} videos, as {config.format}"
