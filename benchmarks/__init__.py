"""Paired measurements: the denoiser against its peers, and what each part of the toolkit costs."""

import sys
from collections.abc import Callable, Sequence

from drivesim.errors import UserError


def start(main: Callable[[Sequence[str]], None], name: str) -> None:
    """Run a module's main on the command line: a user's mistake is one line and exit code 2, Ctrl-C is 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
