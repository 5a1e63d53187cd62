"""`drivesim bundle verify`: whether a bundle is whole, unchanged, safe to read and fits together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from drivesim.bundle import Bundle, folder_sha256
from drivesim.bundles import checksums
from drivesim.bundles.archive import opened
from drivesim.bundles.headers import META, Headers
from drivesim.bundles.safety import bad_names, unsafe, walk
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
        bundle = Bundle(folder)
        found = list(tqdm_lines(problems(bundle)))
        if found:
            raise UserError(f"{config.bundle} is not to be used: {len(found)} problems, named above")
        stages = bundle.index["stages"]
        kept = checksums.read(folder)
        print(f"{config.bundle} is whole: {len(stages)} stages, {size(folder) / 2**20:.1f} MiB")
        if not kept:
            print(f"it has no {checksums.NAME}, so configurations were read but not compared; pack writes one")
        elif extra := [name for name in _names(folder) if name not in kept and not name.startswith(".")]:
            print(f"not in {checksums.NAME}, so not looked into: {', '.join(extra)}")
