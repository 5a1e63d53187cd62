"""Commands that have verbs: `drivesim data stats`, `drivesim bundle verify`, `drivesim scenario draw`."""

from collections.abc import Callable, Mapping, Sequence

from drivesim.errors import UserError

Verbs = Mapping[str, tuple[Callable[[Sequence[str]], None], str]]  # what runs each, and what it is for


def run_verb(command: str, words: str, verbs: Verbs, argv: Sequence[str], more: str = "") -> None:
    """Run the verb that `argv` begins with, on the rest of it; or tell what verbs there are.

    words   that a verb takes, for the usage
    more    a sentence to end it with
    raises  UserError for an unknown verb, and whatever the verb raises
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(f"usage: {command} VERB {words} key=value ...\n")
        print("\n".join(f"  {name:<8} {about}" for name, (_, about) in verbs.items()))
        print(f"\n{command} VERB --help explains each.{more}")
        return
    if argv[0] not in verbs:
        raise UserError(f"{command}: unknown verb {argv[0]!r}; expected one of {', '.join(verbs)} first")
    verbs[argv[0]][0](argv[1:])
