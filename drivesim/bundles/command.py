"""`drivesim bundle VERB`: what a bundle is, whether it is whole, and one to publish."""

from collections.abc import Sequence

from drivesim.bundles import info, pack, unpack, verify
from drivesim.verbs import Verbs, run_verb

VERBS: Verbs = {
    "info": (info.main, "stages, data, licences, what it is sampled with"),
    "verify": (verify.main, "whether it is whole, unchanged, safe to read and fits together"),
    "pack": (pack.main, "a clean copy to publish: folder, .tar or .zip; in half precision; with stages of others"),
    "unpack": (unpack.main, "the folder that an archive holds"),
}


def main(argv: Sequence[str]) -> None:
    """Run the verb that `argv` begins with. raises UserError for an unknown one, and whatever the verb raises"""
    run_verb("drivesim bundle", "bundle=FOLDER", VERBS, argv)
