"""`drivesim bundle unpack`: the folder that an archive holds, once it is known to be whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drivesim.bundle import ARCHIVES
from drivesim.bundles import archive, checksums
from drivesim.bundles.safety import refuse
from drivesim.bundles.verify import checked
from drivesim.config import option, parse
from drivesim.errors import UserError
from drivesim.files import atomic_folder, check_folder


@dataclass
class UnpackConfig:
    """Unpack a bundle. Nothing is written outside of OUT, which appears only if `drivesim bundle verify` finds nothing
    wrong with it."""

    bundle: str = option(help=f"archive made by `drivesim bundle pack`, {' or '.join(ARCHIVES)}")
    out: str = option(help="folder to make")
    overwrite: bool = option(False, "replace what was packed or unpacked there before")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv`, or an archive that is damaged or no bundle"""
    config = parse(UnpackConfig, argv, "drivesim bundle unpack")
    path = Path(config.bundle)
    if not archive.is_archive(path) or not path.is_file():
        raise UserError(f"bundle={path} is no file that ends in {' or '.join(ARCHIVES)}")
    out = check_folder(config.out, checksums.NAME, config.overwrite)
    with atomic_folder(out, checksums.NAME, config.overwrite) as folder:
        archive.unpack(path, folder)
        refuse([line.replace(str(folder), str(path)) for line in checked(folder)])
    print(f"{out}: unpacked and whole")
