"""The `drivesim` command: finds its sub-commands among the installed entry points and turns mistakes into one line."""

import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from drivesim import __version__
from drivesim.errors import UserError

ABOUT = {
    "prepare": "raw driving data, or the procedural town, into a clip store",
    "data": "a clip store: stats, view, query, verify; caches for training; export, merge",
    "train": "one stage, or all of them, into a bundle",
    "distill": "a bundle whose stages are sampled in few steps, taught by one that takes many",
    "plan": "parameters, FLOPs, memory and time of an experiment before it is trained",
    "scenario": "what a video shall show: draw, check, list; roads, cars and people in YAML",
    "bundle": "a bundle: info, verify, pack for others, unpack",
    "generate": "a video from a bundle, a start frame and a layout",
    "export": "generated videos with their layouts as a labelled data set: clip store, nuScenes, COCO",
    "evaluate": "distances between real and generated video, as one HTML report",
    "diversity": "how futures of one start differ, beside real drives",
    "utility": "a detector trained on real clips, on generated ones and on both",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command; exit 0 on success, 2 for a user's mistake, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {entry.name: entry for entry in entry_points(group="drivesim.commands")}
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage(list(commands)))
        return
    if words[0] == "--version":
        print(f"drivesim {__version__}")
        return
    if words[0] not in commands:
        _fail(f"unknown command {words[0]!r}; one of {', '.join(sorted(commands))}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        commands[words[0]].load()(words[1:])
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt as interrupt:  # a command that knows what it kept says so
        told = str(interrupt) or "interrupted; what was finished is whole, run the same command to go on"
        print(f"\ndrivesim: {told}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read what is printed, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may the flush at the end complain
        sys.exit(0)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"disk full ({error.filename or 'while writing'}); free some room and run again")
        raise


def _usage(commands: list[str]) -> str:
    known = sorted(commands, key=lambda name: list(ABOUT).index(name) if name in ABOUT else len(ABOUT))
    lines = [f"  {name:<10} {ABOUT.get(name, '')}" for name in known]
    return "\n".join(
        ["usage: drivesim COMMAND key=value ...", "", *lines, "", "drivesim COMMAND --help explains each."]
    )


def _fail(message: str) -> None:
    print(f"drivesim: {message}", file=sys.stderr)
    sys.exit(2)
