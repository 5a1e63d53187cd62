"""A golden bundle, and one packed from it; both are made in a moment, since nothing is trained."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drivesim.bundle import Bundle, sha256
from drivesim.bundles import pack

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden_script() -> ModuleType:
    """tests/golden/make.py"""
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden(golden_script, tmp_path_factory) -> Path:
    """A bundle of format 1. Not to be changed by a test."""
    return golden_script.make(GOLDEN / "format_1", tmp_path_factory.mktemp("golden") / "bundle")


@pytest.fixture(scope="session")
def packed_once(golden, tmp_path_factory) -> Path:
    """Not to be changed by a test."""
    out = tmp_path_factory.mktemp("packed") / "bundle"
    pack.main([f"bundle={golden}", f"out={out}", "licence=CC0-1.0"])
    return out


@pytest.fixture
def bundle(golden, tmp_path) -> Path:
    return shutil.copytree(golden, tmp_path / "bundle")


@pytest.fixture
def packed(packed_once, tmp_path) -> Path:
    return shutil.copytree(packed_once, tmp_path / "packed")


@pytest.fixture
def change() -> Callable[[Path, Callable[[Any], Any]], None]:
    """change(file, function): a JSON file, changed in place."""

    def edit(path: Path, function: Callable[[Any], Any]) -> None:
        value = json.loads(path.read_text())
        function(value)
        path.write_text(json.dumps(value))

    return edit


@pytest.fixture
def rehash() -> Callable[[Path, str], None]:
    """rehash(root, stage): the index agrees with what lies there, as after training the stage anew."""

    def settle(root: Path, stage: str) -> None:
        index = json.loads((root / "model_index.json").read_text())
        path = Bundle(root).weights(stage)
        index["stages"][stage] |= {"sha256": sha256(path), "bytes": path.stat().st_size}
        (root / "model_index.json").write_text(json.dumps(index))

    return settle
