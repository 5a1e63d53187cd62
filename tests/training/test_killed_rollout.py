"""A few rounds of benchmarks/kill_generate.py, on a trained bundle."""

import json

import pytest

from benchmarks.kill_generate import KillConfig, differences, run
from drivesim.generation.generate import beside

WORDS = "seconds=4 keyframe_steps=1 interpolate_steps=1 upsample_steps=1"


@pytest.fixture
def quick(monkeypatch) -> None:
    """Processes that do not measure which precision is faster."""
    monkeypatch.setenv("DRIVESIM_PRECISION", "fp32")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_killed_at_random_moments_a_rollout_ends_with_the_bytes_of_an_unbroken_one(trained, tmp_path, quick):
    report = run(KillConfig(f"bundle={trained.bundle} {WORDS}", kills=3, seed=2), tmp_path)
    assert report.kills.total() == 3
    assert not any(report.wrong)
    assert not list(tmp_path.glob("*.partial*"))


def test_files_that_differ_are_found_but_for_names_and_seconds(tmp_path):
    for name, video, picture, seed, seconds in (
        ("a", b"1", b"1", 0, 1),
        ("b", b"1", b"2", 0, 2),
        ("c", b"2", b"1", 1, 1),
    ):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(video)
        beside(path, ".png").write_bytes(picture)
        costs = {"write": {"seconds": seconds, "evaluations": 0}}
        beside(path, ".json").write_text(json.dumps({"options": {"out": name, "seed": seed}, "costs": costs}))
    assert differences(tmp_path / "a.mp4", tmp_path / "b.mp4") == ["contact sheet"]
    assert differences(tmp_path / "a.mp4", tmp_path / "c.mp4") == ["video", "record"]
