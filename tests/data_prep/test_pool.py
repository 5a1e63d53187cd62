"""Units on processes: none can end the others, and each is done once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.pool import Processes, run_units
from data_prep.units import UnitResult, recorded
from data_prep.writer import merge
from drivesim.data.store import ClipStore


@pytest.fixture
def fragile(tmp_path, monkeypatch):
    """fragile(*names): a source with units of these names, and the units."""
    monkeypatch.syspath_prepend(Path(__file__).parent)  # worker processes look there too
    from fragile import Fragile

    def make(*names):
        source = Fragile(list(names), tmp_path)
        return source, [replace(unit, split="train") for unit in source.units()]

    return make


def finished(results) -> list[UnitResult]:
    return [result for _, result in results if result is not None]


def test_a_unit_that_kills_its_process_is_tried_again_alone_and_then_given_up(fragile, tmp_path):
    source, units = fragile("dies", "dies_once", "breaks", "unreadable", "fine")
    out = tmp_path / "store"
    results = list(run_units(units, out, Processes(source, out, 2)))
    done = {unit.name: recorded(unit, out) for unit in units}
    assert len(finished(results)) == 5
    assert done["fine"] == UnitResult(["fine_0", "fine_1"], [])
    assert done["dies_once"] == UnitResult(["dies_once_0", "dies_once_1"], [])
    assert done["dies"].clips == ["dies_0"]  # what was whole stays
    assert "was killed twice" in done["dies"].dropped[0].reason
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("dies", "dies_once", "fine")] == [2, 2, 1]
    assert done["breaks"].clips == ["breaks_0"]
    assert done["breaks"].dropped[0].unit == "breaks_1"
    assert done["breaks"].dropped[0].reason.startswith("ZeroDivisionError: no such luck (fragile.py:")
    assert done["unreadable"].dropped[0].reason.startswith("KeyError: 'sample_token' (fragile.py:")

    again = list(run_units(units, out, Processes(source, out, 2)))  # nothing is left to do, so no process is started
    assert finished(again) == list(done.values())
    merge(out, {})
    assert ClipStore(out).clips() == ["breaks_0", "dies_0", "dies_once_0", "dies_once_1", "fine_0", "fine_1"]


def test_frames_are_counted_while_units_run(fragile, tmp_path):
    source, units = fragile("fine", "finer")
    results = list(run_units(units, tmp_path / "store", Processes(source, tmp_path / "store", 1)))
    assert results[-1][0] == 2 * 2 * 3


def test_a_record_that_was_cut_short_counts_for_nothing(fragile, tmp_path):
    _, units = fragile("fine")
    parts = tmp_path / "store" / "parts"
    parts.mkdir(parents=True)
    (parts / "fine.unit.json").write_text(json.dumps({"clips": []})[:-2])
    assert recorded(units[0], tmp_path / "store") is None
