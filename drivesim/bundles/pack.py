"""`drivesim bundle pack`: a folder, or one file, that can be published, from what training left."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from drivesim.bundle import Bundle
from drivesim.bundles import checksums
from drivesim.bundles.archive import is_archive, opened, write_archive
from drivesim.bundles.card import Metrics, model_card
from drivesim.bundles.copy import DTYPES, copy_stage
from drivesim.bundles.fit import check_fit, undecided
from drivesim.bundles.safety import is_pickle, refuse, walk
from drivesim.bundles.summary import Summary
from drivesim.bundles.verify import checked, size
from drivesim.config import option, parse
from drivesim.errors import UserError
from drivesim.files import atomic_folder, check_folder, check_output


@dataclass
class PackConfig:
    """Copy a bundle, as clean as it can be published: configurations, weights, records without the names of your
    folders, a model card (README.md), CHECKSUMS. The same bundle gives the same bytes.

    Stages may come from other bundles, as in stages.keyframes=OTHER, where they fit: a stage that was trained on
    another one than is there is refused.
    """

    bundle: str = option(help="folder made by `drivesim train` or `drivesim bundle pack`, or an archive of one")
    out: str = option(help="folder to make; or a file, .tar or .zip")
    dtype: str | None = option(None, f"store weights as {' or '.join(DTYPES)}: half the size; as they are if not given")
    stages: dict[str, str] = option({}, "bundles that single stages are taken from")
    licence: str | None = option(
        None, "of the weights, as Hugging Face names it: apache-2.0, cc-by-4.0 ...; else that of the bundle"
    )
    metrics: str | None = option(None, "results.json of `drivesim evaluate`, for the model card")
    name: str | None = option(None, "title of the model card; else the name of out")
    overwrite: bool = option(False, "replace what was packed before")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv`, or bundles that are damaged or do not fit together"""
    config = parse(PackConfig, argv, "drivesim bundle pack")
    if config.dtype is not None and config.dtype not in DTYPES:
        raise UserError(f"dtype={config.dtype}, expected one of {', '.join(DTYPES)}")
    metrics = Metrics.read(config.metrics) if config.metrics else None
    as_archive = is_archive(config.out)
    out = (
        check_output(config.out, Path(config.out).suffix.lower(), config.overwrite)
        if as_archive
        else check_folder(config.out, checksums.NAME, config.overwrite)
    )
    with ExitStack() as stack:
        own, sources = _sources(config, lambda path: stack.enter_context(opened(path)))
        index = own.index | ({} if config.licence is None else {"licence": config.licence})
        if as_archive:
            out.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)))
            fill(folder, out, config, index, sources, metrics)
            write_archive(folder, out)
        else:
            folder = stack.enter_context(atomic_folder(out, checksums.NAME, config.overwrite))
            fill(folder, out, config, index, sources, metrics)
        told = f"{len(sources)} stages, {size(folder) / 2**20:.1f} MiB"
    print(f"{out}: {told}")


def _sources(config: PackConfig, folder_of: Callable[[str], Path]) -> tuple[Bundle, dict[str, Bundle]]:
    """The bundle at `config.bundle`, and the one that each stage comes from. raises UserError if one is none, lacks the
    stage, or does not fit"""
    own = _source(folder_of(config.bundle))
    sources = dict.fromkeys(own.index.get("stages", {}), own)
    for stage, path in config.stages.items():
        if stage not in sources:
            raise UserError(f"stages.{stage}: {config.bundle} has no stage {stage!r}; it has {', '.join(sources)}")
        sources[stage] = _source(folder_of(path))
        sources[stage].config(stage)
    check_fit(own, sources)
    for stage in undecided(sources):
        print(f"{stage}: it is not recorded what it was trained on, so look at what it makes", file=sys.stderr)
    return own, sources


def _source(folder: Path) -> Bundle:
    """What of a bundle is no part of a packed one is told. raises UserError as `Bundle.require`"""
    bundle = Bundle(folder).require(pickles=True)
    for path in filter(is_pickle, walk(folder)):
        print(f"left out: {path}, a pickle", file=sys.stderr)
    return bundle


def fill(
    folder: Path,
    out: Path,
    config: PackConfig,
    index: dict[str, Any],
    sources: dict[str, Bundle],
    metrics: Metrics | None,
) -> None:
    """Write everything that will be at `out` into an empty folder.

    index   model_index.json but for the stages
    raises  UserError if a stage is damaged, or all together make no video
    """
    with tqdm(sources.items(), "pack", unit="stage", leave=False) as bar:
        stages = {stage: copy_stage(bundle, stage, folder, config.dtype) for stage, bundle in bar}
    (folder / "model_index.json").write_text(json.dumps(index | {"stages": stages}, indent=2) + "\n")
    name = config.name or out.name.removesuffix(out.suffix if is_archive(out) else "")
    card = model_card(Summary.of(Bundle(folder)), name, config.dtype or "", metrics)
    (folder / checksums.CARD).write_text(card)
    checksums.write(folder)
    refuse([line.replace(str(folder), str(out)) for line in checked(folder)])
