"""A few rounds of benchmarks/kill_prepare.py, which kills hundreds of times."""

import sys

import pytest

from benchmarks.kill_prepare import KillConfig, differences, run


@pytest.mark.skipif(sys.platform != "linux", reason="finds worker processes in /proc")
def test_killed_at_random_moments_a_preparation_ends_with_the_bytes_of_an_unbroken_one(tmp_path):
    report = run(KillConfig(kills=3, clips=12, seed=1), tmp_path)
    assert report.kills.total() == 3
    assert not any(report.wrong)


def test_a_file_that_is_lost_left_over_or_unlike_is_found(tmp_path):
    for store, files in {"whole": {"a": "1", "b": "1", "c": "1"}, "other": {"a": "1", "b": "2", "d": "1"}}.items():
        (tmp_path / store).mkdir()
        for name, content in files.items():
            (tmp_path / store / name).write_text(content)
    assert differences(tmp_path / "whole", tmp_path / "other") == ["b", "c", "d"]
