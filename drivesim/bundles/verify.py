"""`drivesim bundle verify`: whether a bundle is whole, unchanged, safe to read and fits together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from drivesim.bundle import Bundle
from drivesim.bundles import checksums
from drivesim.bundles.archive import opened
from drivesim.bundles.headers import META, Headers
from drivesim.bundles.safety import outward_links, pickled, walk
from drivesim.config import option, parse
from drivesim.errors import UserError


@dataclass
class VerifyConfig:
    """Check a bundle. Names what is wrong, a line each, and then exits with code 2.

    Nothing in it leads out of the folder or is a pickle; files have the sizes and hashes that model_index.json and
    CHECKSUMS name; configurations describe networks that the weights fit; every stage was trained on those that are
    there; together they make video. Needs no memory for the weights.
    """

    bundle: str = option(help="folder made by `drivesim train` or `drivesim bundle pack`, or an archive of one")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv`, or if anything is wrong"""
    config = parse(VerifyConfig, argv, "drivesim bundle verify")
    with opened(config.bundle) as folder:
        found = 0
        for line in checked(folder):
            tqdm.write(line.replace(str(folder), config.bundle))  # to stdout, past the progress bar
            found += 1
        if found:
            raise UserError(
                f"{config.bundle} is not fit for use: {found} of its parts are named above, with what to do"
            )
        print(f"{config.bundle} is whole: {len(Bundle(folder).index['stages'])} stages, {size(folder) / 2**20:.1f} MiB")
        _tell_unlisted(folder)


def _tell_unlisted(folder: Path) -> None:
    """What CHECKSUMS says nothing of, if there is any; hidden files are those of whatever fetched the bundle."""
    listed = {*checksums.read(folder), checksums.NAME, checksums.CARD}
    names = [path.relative_to(folder).as_posix() for path in walk(folder)]
    if checksums.NAME not in names:
        print(f"it has no {checksums.NAME}, so what its configurations once were is not known; pack writes one")
    elif extra := [name for name in names if name not in listed and not name.startswith(".")]:
        print(f"not in {checksums.NAME}, so not looked into: {', '.join(extra)}")


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in walk(folder))


def checked(folder: Path) -> Iterator[str]:
    """`problems` of a folder, with a progress bar."""
    total = size(folder) if folder.is_dir() else 0
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, leave=False) as bar:
        yield from problems(Headers(folder, bar.update))


def problems(bundle: Headers) -> Iterator[str]:
    """One line for each thing that is wrong; nothing for a bundle that makes video. What is not safe to read is not
    read, and whether the parts fit together is asked of whole ones alone."""
    for step in (_unsafe, _damaged, _unfit):
        found = list(dict.fromkeys(step(bundle)))  # what is wrong with a stage is wrong with those above it, too
        yield from found
        if found:
            return


def _unsafe(bundle: Headers) -> Iterator[str]:
    yield from (*outward_links(bundle.root), *pickled(bundle.root)) if bundle.root.is_dir() else ()
    yield from _told(bundle.present)
    yield from _told(lambda: checksums.read(bundle.root))


def _damaged(bundle: Headers) -> Iterator[str]:
    stages = bundle.index.get("stages", {})
    bad = dict(checksums.mismatches(bundle.root, lambda path: True, bundle.digest))
    yield from bad.values()
    for stage, entry in stages.items():
        yield from () if bundle.weights(stage) in bad else _told(partial(bundle.check_weights, stage))
        for name in entry["folders"]:
            known = any(path.is_relative_to(bundle.root / stage / name) for path in bad)
            yield from () if known else _told(partial(bundle.folder, stage, name))


def _unfit(bundle: Headers) -> Iterator[str]:
    for stage in bundle.index.get("stages", {}):
        yield from _told(partial(load, bundle, stage))
    yield from _told(partial(make, bundle))


def load(bundle: Headers, stage: str) -> None:
    """raises UserError if a stage's config describes no network, or the weights do not fit it, or the stage was trained
    on others than are there"""
    from drivesim.training.stages import load_autoencoder, load_denoiser

    with META:
        if stage in ("autoencoder", "decoder"):
            load_autoencoder(bundle, decoder=stage == "decoder")
        else:
            load_denoiser(bundle, stage)


def make(bundle: Headers) -> None:
    """raises UserError if the stages together are nothing that makes video"""
    from drivesim.generation.pipeline import DrivingPipeline
    from drivesim.generation.text_to_video import TextToVideo
    from drivesim.training.stages import load_text

    if bundle.has_folder("image", "text_encoder"):
        load_text(bundle)(["a road"])
        TextToVideo.from_pretrained(bundle.root, upsampler=bundle.has("upsample"))
    else:
        with META:
            DrivingPipeline.from_bundle(bundle)


def _told(check: Callable[[], object]) -> list[str]:
    """The line that a check has to say, if it has any."""
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []
