"""Rollouts of a trained bundle that are killed; benchmarks/kill_generate.py does it to the command itself."""

import json
import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import av
import pytest

from benchmarks.kill_generate import check_plays, differences, remove
from drivesim import cli
from drivesim.errors import UserError
from drivesim.generation.checkpoint import Checkpoint, checkpoint_path
from drivesim.generation.generate import beside
from drivesim.generation.writer import partial_path
from drivesim.machine import probe


@pytest.fixture
def words(trained, alike) -> list[str]:
    """Four seconds, of which each has a checkpoint."""
    probe()
    steps = ["keyframe_steps=1", "interpolate_steps=1", "upsample_steps=1", "upsample_portion_overlap=2"]
    return ["generate", f"bundle={trained.bundle}", "seconds=4", *steps]


def begin(words: list[str], out: Path) -> BaseProcess:
    """A process that was forked, which need not load the libraries again."""
    process = multiprocessing.get_context("fork").Process(target=cli.main, args=([*words, f"out={out}"],))
    process.start()
    return process


def frames_kept(out: Path) -> int:
    found = Checkpoint.read(out)
    return found.written.frames if found else 0


def test_killed_at_random_moments_a_rollout_ends_with_the_bytes_of_an_unbroken_one(words, tmp_path):
    whole, killed, rng = tmp_path / "whole.mp4", tmp_path / "killed.mp4", random.Random(3)
    begun = time.monotonic()
    cli.main([*words, f"out={whole}"])
    second_s = (time.monotonic() - begun) / 4
    kills, kept = 0, []
    while not killed.exists() or checkpoint_path(killed).exists():
        process = begin(words, killed)
        process.join(rng.uniform(0.5, 2.5) * second_s)
        kills += process.is_alive()
        process.kill()
        process.join()
        check_plays(killed)
        kept.append(frames_kept(killed))
    assert kills > 0
    assert any(0 < frames < 120 for frames in kept)  # else none has gone on
    assert differences(whole, killed) == []
    cli.main(
        [*words, f"out={killed}", "overwrite=true"]
    )  # what a process left that was killed while it wrote goes away
    assert not list(tmp_path.glob("*.partial*"))
    remove(killed)
    assert not list(tmp_path.glob("killed*"))  # nothing is in the way of another video of the name


def test_what_is_there_plays_as_far_as_the_checkpoint_says_at_the_moment_of_the_kill(words, tmp_path):
    out = tmp_path / "a.mp4"
    process = begin(words, out)
    while process.is_alive() and not checkpoint_path(out).exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    with av.open(str(partial_path(out))) as video:
        assert sum(1 for _ in video.decode(video=0)) >= frames_kept(out) > 0
    partial_path(out).write_bytes(partial_path(out).read_bytes()[: Checkpoint.read(out).written.size // 2])
    with pytest.raises(UserError, match="of the partial video play, its checkpoint says"):
        check_plays(out)


def test_files_that_differ_are_found_but_for_names_and_seconds(tmp_path):
    made = (("a", b"1", b"1", 0, 1), ("b", b"1", b"2", 0, 2), ("c", b"2", b"1", 1, 1))
    for name, video, picture, seed, seconds in made:
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(video)
        beside(path, ".png").write_bytes(picture)
        beside(path, ".layout.json").write_text("{}")
        costs = {"write": {"seconds": seconds, "evaluations": 0}}
        beside(path, ".json").write_text(json.dumps({"options": {"out": name, "seed": seed}, "costs": costs}))
    assert differences(tmp_path / "a.mp4", tmp_path / "b.mp4") == ["contact sheet"]
    assert differences(tmp_path / "a.mp4", tmp_path / "c.mp4") == ["video", "record"]
