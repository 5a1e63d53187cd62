"""`drivesim bundle VERB`: what a bundle is, whether it is whole, and one to publish."""

from collections.abc import Callable, Sequence

from drivesim.bundles import info, pack, unpack, verify
from drivesim.errors import UserError

VERBS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "info": (info.main, "stages, data, licences, what it is sampled with"),
    "verify": (verify.main, "whether it is whole, unchanged, safe to read and fits together"),
    "pack": (pack.main, "a clean copy to publish: folder, .tar or .zip; in half precision; with stages of others"),
    "unpack": (unpack.main, "the folder that an archive holds"),
}


def main(argv: Sequence[str]) -> None:
    """Run the verb that `argv` begins with. raises UserError for an unknown one, and whatever the verb raises"""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: drivesim bundle VERB bundle=FOLDER key=value ...\n")
        print("\n".join(f"  {name:<8} {about}" for name, (_, about) in VERBS.items()))
        print("\ndrivesim bundle VERB --help explains each.")
        return
    if argv[0] not in VERBS:
        raise UserError(f"drivesim bundle: unknown verb {argv[0]!r}; expected one of {', '.join(VERBS)} first")
    VERBS[argv[0]][0](argv[1:])
