"""Command lines as Hydra structured configs: typed, checked, explained by --help, errors in one line.

A command is a dataclass whose fields are its options, each made with `option(default, help)`. `parse` turns
`key=value` words into a filled dataclass. If the dataclass has `defaults = ["_self_", {"experiment": "town"}]`,
`experiment=NAME` picks conf/experiment/NAME.yaml (see Hydra's defaults list).
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from drivesim.errors import UserError

CONF = Path(__file__).resolve().parent.parent / "conf"
T = TypeVar("T")
WORDS = {"Float": "a number", "Integer": "a whole number", "bool": "true or false"}  # for OmegaConf's type names


def option(default: Any = MISSING, help: str = "") -> Any:
    """A documented dataclass field; without a default the option is required."""
    metadata = {"help": help}
    if isinstance(default, list | dict) or is_dataclass(default):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(schema: type[T], argv: Sequence[str], command: str) -> T:
    """Fill `schema` from `key=value` words.

    --help prints the options and exits; `--cfg job` prints the resolved config and exits.
    raises  UserError naming the unknown, missing or wrongly typed key
    """
    words = list(argv)
    if any(word in ("-h", "--help", "help") for word in words):
        print(describe(schema, command))
        sys.exit(0)
    show = "--cfg" in words
    if show:
        words = [w for i, w in enumerate(words) if w != "--cfg" and (i == 0 or words[i - 1] != "--cfg")]
    config = _compose(schema, [_verbatim(word, schema, command) for word in words], command)
    if show:
        print(OmegaConf.to_yaml(config))
        sys.exit(0)
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{command}: missing {', '.join(f'{m}=...' for m in missing)}; see {command} --help")
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def _compose(schema: type, overrides: list[str], command: str) -> Any:
    name = command.replace(" ", "_")
    ConfigStore.instance().store(name=name, node=schema)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{command}: {_one_line(error, schema)}") from error
    except YAMLError as error:
        raise UserError(f"{command}: {' '.join(str(error).split())}") from error


def _verbatim(word: str, schema: type, command: str) -> str:
    """A `key=value` word whose value Hydra takes letter by letter, whatever brackets, commas or $ are in it.

    Lists, dicts (`a={b: 1}`, or `a.b=1`) and choices such as `experiment=town` keep Hydra's grammar, and so does a
    value with its own quotes.
    """
    key, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"(?!hydra\b)[A-Za-z_][\w./]*", key):
        raise UserError(f"{command}: expected key=value, found {word!r}; see {command} --help")
    hint = _type_of(schema, key)
    if dict in (get_origin(hint), get_origin(_type_of(schema, key.rpartition(".")[0]))):
        return f"++{word}"  # Hydra asks for it where a key may be new
    optional = type(None) in get_args(hint)
    scalar = bool({hint, *get_args(hint)} & {str, int, float, bool}) and get_origin(hint) not in (list, dict)
    quoted = re.fullmatch(r"""(['"])(\\.|(?!\1).)*\1""", value, re.DOTALL)  # as a whole, unlike 'a' == b or c == 'd'
    if (optional and value == "null") or quoted or not (scalar or _unreadable(word)):
        return word
    # Hydra's quoted strings treat a backslash as an escape only before a quote or at the end; OmegaConf then reads ${.
    text = re.sub(r"(\\*)(\$\{)", r"\1\1\\\2", value)
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"{key}='{text}'"


def _unreadable(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
        return False
    except HydraException:
        return True


def _type_of(schema: type, key: str) -> Any:
    """The annotation of the field that a dotted key names, or None."""
    hint: Any = schema
    for part in key.split("."):
        hint = get_type_hints(hint).get(part) if is_dataclass(hint) else None
    return hint


def _one_line(error: Exception, schema: type) -> str:
    """The part of a Hydra error a user needs: the key, and what it could have been."""
    causes = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    text = " ".join(causes)
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text):
        key = found.group(1) or found.group(2)
        known = list(_flat_keys(schema))
        if key not in known and (key.split(".")[-1] not in text.split("Value")[0] or "not in" in text):
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else f"; known: {', '.join(k for k in known)}"
            return f"unknown key {key!r}{hint}"
    if found := re.search(r"In '([^']+)': Could not find '[^']*/([^']+)'(.*)", text, re.DOTALL):
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        group = re.search(r"Available options in '(\w+)'", text)
        return f"unknown {group[1] if group else 'choice'} {found.group(2)!r}; available: {', '.join(options)}"
    full = re.search(r"full_key: (\S+)", text)
    reason = re.sub(r"^Error merging override \S+\s*", "", causes[-1].split("\n")[0])
    if wrong := re.match(
        r"Value (.*) (?:of type '\w+' could not be converted to|is not a valid) (\w+)", reason, re.DOTALL
    ):
        reason = f"found {wrong.group(1)}, expected {WORDS.get(wrong.group(2), wrong.group(2))}"
    if "is not a ListConfig" in reason:
        reason = "expected a list in brackets, as in [a,b]"
    return f"{full.group(1)}: {reason}" if full else reason


def _flat_keys(schema: type, prefix: str = "") -> list[str]:
    keys = []
    for f in dataclasses.fields(schema):
        if f.name == "defaults":
            keys += [next(iter(entry)) for entry in _default(f) if isinstance(entry, dict)]
            continue
        keys.append(prefix + f.name)
        if isinstance(f.type, type) and is_dataclass(f.type):
            keys += _flat_keys(f.type, f"{prefix}{f.name}.")
    return keys


def describe(schema: type, command: str) -> str:
    """The --help text: the schema's docstring, then one line an option with type, default and meaning."""
    lines = [f"usage: {command} key=value ...", "", (schema.__doc__ or "").strip(), "", "options:"]
    return "\n".join(lines + _option_lines(schema) + ["", "--cfg job prints the resolved config and stops."])


def _option_lines(schema: type, prefix: str = "") -> list[str]:
    lines = []
    for f in dataclasses.fields(schema):
        if f.name == "defaults":
            for entry in _default(f):
                if isinstance(entry, dict):
                    group, default = next(iter(entry.items()))
                    names = ", ".join(sorted(p.stem for p in (CONF / group).glob("*.yaml")))
                    lines.append(f"  {group:<28} one of {names} (default {default})")
            continue
        default = _default(f)
        if is_dataclass(default):
            lines += _option_lines(type(default), f"{prefix}{f.name}.")
            continue
        written = str(default).lower() if isinstance(default, bool) else default  # as it is typed
        shown = "required" if default == MISSING else "optional" if default is None else f"default {written}"
        lines.append(f"  {prefix + f.name:<28} {f.metadata.get('help', '')} ({shown})")
    return lines


def _default(f: dataclasses.Field) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return MISSING if f.default is dataclasses.MISSING else f.default
