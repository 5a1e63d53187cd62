"""Units as Ray tasks: the same store, and the same answer to tasks that die."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.pool import run_units
from data_prep.prepare import main
from data_prep.ray_pool import RayPool
from data_prep.source import Unit
from data_prep.units import recorded
from drivesim.errors import UserError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed; pip install 'drivesim[ray]'"
)
SMALL = ["videos.height=32", "videos.width=64", "videos.fps=15", "videos.clip_seconds=1", "videos.min_seconds=0.5"]


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_without_ray_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'drivesim\[ray\]'"):
        RayPool(None, tmp_path, 1, None, [])


@needs_ray
def test_ray_makes_the_store_that_processes_make(tmp_path, monkeypatch, make_video, make_scene):
    for number in range(3):
        make_video(tmp_path / "films" / f"drive_{number}.mp4", make_scene(number, 30))
    (tmp_path / "films" / "text.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)  # paths are relative, as users give them
    for runner in ("ray", "processes"):
        main(["source=videos", "root=films", f"out={runner}", f"runner={runner}", "workers=2", *SMALL])
    one, other = files(tmp_path / "ray"), files(tmp_path / "processes")
    assert one == other
    assert len(one) > 20


@needs_ray
def test_a_unit_that_kills_its_task_is_tried_again_and_then_given_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from fragile import Fragile

    source = Fragile(["dies", "dies_once", "breaks", "fine"], tmp_path)
    units = [replace(unit, split="train") for unit in source.units()]
    out = tmp_path / "store"
    out.mkdir()
    results = list(run_units(units, out, RayPool(source, out, 2, None, [out])))
    assert results[-1][0] >= 3 * 3
    clips = {unit.name: recorded(unit, out).clips for unit in units}
    assert clips["fine"] == ["fine_0", "fine_1"]
    assert clips["dies_once"] == ["dies_once_0", "dies_once_1"]
    assert clips["dies"] == ["dies_0"]
    assert "was killed twice" in recorded(units[0], out).dropped[0].reason
    assert recorded(units[2], out).dropped[0].reason.startswith("ZeroDivisionError")


@needs_ray
def test_a_node_that_does_not_see_the_store_is_told(tmp_path):
    units = [Unit("drive", "drive", split="train")]
    with pytest.raises(UserError, match=r"nowhere is not there on node .*; every node must see it"):
        list(run_units(units, tmp_path, RayPool(None, tmp_path, 1, None, [tmp_path / "nowhere"])))


@needs_ray
def test_a_cluster_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no Ray cluster at address=127\.0\.0\.1:1"):
        RayPool(None, tmp_path, 1, "127.0.0.1:1", [])
