"""A store that a test may damage, and the exit code and words of `drivesim data`."""

import shutil
from importlib.metadata import EntryPoint

import pytest

from drivesim import cli
from drivesim.data.store import ClipStore


@pytest.fixture
def store(small_store, tmp_path) -> ClipStore:
    """c0, c1, c2 to train, c3, c4 held out; night is 1 in c1 and c3; one car, one vehicle, speed unknown."""
    return ClipStore(shutil.copytree(small_store.root, tmp_path / "store"))


@pytest.fixture
def data(monkeypatch, capsys):
    """data("stats", "store=...") runs the command line; returns (exit code, stdout, last line of stderr)."""
    entry = EntryPoint("data", "data_prep.inspect.command:main", "drivesim.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry])

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(["data", *words])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err.strip().rpartition("\n")[2]

    return run
