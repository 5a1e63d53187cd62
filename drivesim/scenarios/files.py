"""Scenario files: where they lie, and YAML that is read without surprises."""

import difflib
from pathlib import Path
from typing import Any

import yaml

from drivesim.config import CONF
from drivesim.errors import UserError
from drivesim.scenarios.kinds import Record
from drivesim.scenarios.schema import Scenario

LIBRARY = CONF / "scenario"
SUFFIXES = (".yaml", ".yml")


def library(folder: Path | str = LIBRARY) -> dict[str, Path]:
    """Scenario files of a folder by name, sorted. raises UserError if it is no folder, or holds none"""
    folder = Path(folder)
    found = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES}
    if not found:
        raise UserError(f"{folder} holds no scenario; give a folder with .yaml files")
    return found


def find(spec: str) -> Path | None:
    """The file that `spec` asks for: a .yaml file, or a name of the library; None if it is neither."""
    return Path(spec) if Path(spec).suffix.lower() in SUFFIXES else library().get(spec)


def unknown(spec: str) -> str:
    """What to say of a name that is in no library: the ones that are alike, else all."""
    names = list(library())
    close = difflib.get_close_matches(spec, names, n=3)
    return f"did you mean {', '.join(close)}?" if close else f"scenarios: {', '.join(names)}"


def read_scenario(path: Path, source: str) -> Scenario:
    """Read a file, every value checked by itself; how they go together is found when it is built.

    source  what messages call it
    raises  UserError for a file that cannot be read, is no YAML, or says something that the schema has not
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError as error:
        raise UserError(
            f"{source} does not exist; give a .yaml file or a name that `drivesim scenario list` shows"
        ) from error
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); give a .yaml file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text; save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"{source} is not valid YAML ({' '.join(str(error).split())}); see docs/scenarios.md"
        ) from error
    return Record(Scenario).read(content, source)


class _Loader(yaml.SafeLoader):
    """Safe, and refuses a key that is there twice, of which YAML would quietly take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.YAMLError(f"key {key!r} is there twice in line {node.value[i][0].start_mark.line + 1}")
        return super().construct_mapping(node, deep)
