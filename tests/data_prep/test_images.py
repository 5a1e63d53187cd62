"""A folder of pictures as a source: times, order, routes, and what becomes of odd or damaged input."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.images import ImagesConfig, ImagesSource, picture_names
from data_prep.naming import printable, unit_names
from data_prep.prepare import main
from data_prep.source import Dropped, Refused
from data_prep.walk import folders_below
from drivesim.data.store import ClipStore
from drivesim.errors import UserError

ODD = os.fsdecode(b"caf\xe9")  # Latin-1, no UTF-8


def source(root, **changes):
    options = {"height": 32, "width": 64, "fps": 10.0, "clip_seconds": 2.0, "min_seconds": 0.5} | changes
    return ImagesSource(ImagesConfig(**options), root)


def record(folder: Path, count: int = 10, name: str = "{:04d}.png", times: str | None = None) -> Path:
    """Pictures whose grey level is ten times their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        _, png = cv2.imencode(".png", np.full((32, 64, 3), 10 * number, np.uint8))
        (folder / name.format(number)).write_bytes(png.tobytes())
    if times is not None:
        (folder / "timestamps.txt").write_text(times)
    return folder


def levels(source, unit=None):
    """Numbers of the pictures of each clip, and the reasons of what was left out."""
    clips, reasons = [], []
    try:
        for piece in source.clips(unit or source.units()[0]):
            if isinstance(piece, Dropped):
                reasons.append(piece.reason)
                continue
            try:
                clips.append([int(frame.image[0, 0, 0]) // 10 for frame in piece.frames])
            except Refused as reason:
                reasons.append(str(reason))
    except Refused as reason:
        reasons.append(str(reason))
    return clips, reasons


def lines(*values) -> str:
    return "".join(f"{value}\n" for value in values)


def test_times_place_the_pictures(tmp_path):
    record(tmp_path / "drive", 6, times=lines(100.0, 100.1, 100.2, 100.4, 100.5, 100.6))
    assert levels(source(tmp_path)) == ([[0, 1, 2, 3, 3, 4, 5]], [])


@pytest.mark.parametrize(("unit", "step"), [("s", 0), ("ms", 3), ("us", 6), ("ns", 9)])
def test_integers_of_any_unit_are_exact(tmp_path, unit, step):
    start, tenth = 1_700_000_000 * 10**step, 10**step // 10
    times = lines(*[start + i * tenth if step else f"{start}.{i}" for i in range(8)])
    record(tmp_path / "drive", 8, times=times)
    assert levels(source(tmp_path, time_unit=unit)) == ([list(range(8))], [])


def test_rows_of_name_and_time_go_by_the_name(tmp_path):
    record(tmp_path / "drive", 6, name="shot{}.png")
    rows = [f"shot{number}.png,0.{position}" for position, number in enumerate((3, 2, 5, 4, 1))]
    (tmp_path / "drive" / "timestamps.csv").write_text("\ufeffname,time\n" + lines(*rows), encoding="utf-8")
    clips, reasons = levels(source(tmp_path))
    assert clips == [[3, 2, 5, 4, 1]]
    assert reasons == ["no time is given for 1 pictures (shot0.png first), left out"]


def test_without_a_file_of_times_the_rate_is_told_or_the_folder_left_out(tmp_path):
    record(tmp_path / "drive", 6)
    assert levels(source(tmp_path, source_fps=5)) == ([[0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]], [])
    clips, reasons = levels(source(tmp_path))
    assert clips == []
    assert "add one or give images.source_fps" in reasons[0]


def test_picture_2_comes_before_picture_10(tmp_path):
    record(tmp_path, 12, name="cam{}_x.png")
    assert picture_names(tmp_path) == [f"cam{number}_x.png" for number in range(12)]


def test_folders_become_a_store_and_empty_ones_a_line(tmp_path, capsys):
    for name in ("a", "b/front", ODD):
        record(tmp_path / "in" / name, 10)
    (tmp_path / "in" / ODD / "0004.png").write_bytes(b"\x89PNG cut off")
    (tmp_path / "in" / "empty").mkdir()
    main([
        "source=images", f"root={tmp_path / 'in'}", f"out={tmp_path / 'store'}", "workers=1", "images.height=32",
        "images.width=64", "images.fps=10", "images.source_fps=10", "images.min_seconds=0.3", "images.licence=CC0-1.0",
    ])  # fmt: skip
    index = ClipStore(tmp_path / "store").index
    assert list(index["source"]) == ["a", "b/front", "caf\\xe9", "caf\\xe9"]
    assert list(index["frames"]) == [10, 10, 4, 5]
    assert not index["has_boxes"].any()
    assert set(index["licence"]) == {"CC0-1.0"}
    dropped = json.loads((tmp_path / "store" / "dropped.json").read_text())
    assert [piece["unit"] for piece in dropped] == ["caf_0000", "empty"]
    assert "caf\\xe9/0004.png" in dropped[0]["reason"]
    assert "empty holds no picture" in capsys.readouterr().out
    assert sorted(index.groupby("route")["split"].first()) == ["train", "train", "val"]


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        (lines(*range(9)), "timestamps.txt has 9 times for 10 pictures; give each its time"),
        (lines(*range(11)), "has 11 times for 10 pictures"),
        (lines(0, 1, "soon", *range(3, 10)), "timestamps.txt line 3: 'soon' is no time"),
        (lines(0, 1, "nan", *range(3, 10)), "line 3: 'nan' is no time"),
        (lines(0, 1, 2, 3, 3, *range(5, 10)), r"repeats from 3.* \(0003.png\) to 3.* \(0004.png\)"),
        (lines(0, 1, 2, 3, 1, *range(5, 10)), "goes back from 3.* to 1"),
        ("", "timestamps.txt holds no time"),
        ("time\n", "timestamps.txt holds no time"),
        (lines(0, "1,2", *range(2, 10)), "line 2: found 2 values, expected a time"),
        (lines("0001.png,0", "0002.png"), "line 2: found 1 values, expected a name and a time"),
        (lines("0001.png,0", "0001.png,1"), "line 2: '0001.png' is named again"),
        (lines("0001.png,0", "../0002.png,1"), r"line 2: '../0002.png' is no name of a picture in this folder"),
        (lines("0001.png,0", "x.png,1", "y.png,2"), "2 of the 3 pictures that .*timestamps.txt names are missing"),
    ],
)
def test_times_that_do_not_fit_are_refused_with_the_line(tmp_path, times, reason):
    record(tmp_path / "drive", times=times)
    clips, reasons = levels(source(tmp_path))
    assert clips == []
    assert len(reasons) == 1
    assert re.search(reason, reasons[0]), reasons


def test_a_named_picture_that_is_missing_ends_a_clip(tmp_path):
    record(tmp_path / "drive", times=lines(*[f"{i:04d}.png,0.{i}" for i in range(10)]))
    (tmp_path / "drive" / "0004.png").unlink()
    clips, reasons = levels(source(tmp_path, min_seconds=0.3))
    assert clips == [[0, 1, 2, 3], [5, 6, 7, 8, 9]]
    assert "0004.png: the file is missing" in reasons[0]


def test_two_files_of_times_are_refused(tmp_path):
    record(tmp_path / "drive", times=lines(*range(10)))
    (tmp_path / "drive" / "timestamps.csv").touch()
    assert "leave one of them" in levels(source(tmp_path))[1][0]


@pytest.mark.parametrize(
    ("route_by", "routes"),
    [
        ("recording", {"b/front", "b/left", "drive_1", "drive_2"}),
        ("name", {"b/front", "b/left", "drive"}),
        ("folder", {".", "b"}),
    ],
)
def test_a_route_is_what_is_asked_for(tmp_path, route_by, routes):
    for name in ("drive_1", "drive_2", "b/front", "b/left"):
        record(tmp_path / name, 2)
    assert {unit.route for unit in source(tmp_path, route_by=route_by).units()} == routes


def test_links_are_followed_once_and_never_in_circles(tmp_path):
    root, elsewhere = tmp_path / "root", record(tmp_path / "disk" / "drive", 2)
    record(root / "own", 2)
    (root / "own" / "back").symlink_to(root)
    (root / "own" / "up").symlink_to(tmp_path)
    (root / "a_link_to_own").symlink_to(root / "own")
    (root / "self").symlink_to(root / "self")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(root)
    assert [unit.path for unit in source(root).units()] == ["linked", "own"]
    assert sorted(folder.name for folder, _, _ in folders_below(root)) == ["linked", "own", "root"]


def test_hidden_and_odd_names_do_not_break_the_walk(tmp_path):
    for name in (ODD, ".hidden", "tab\there", "new\nline"):
        record(tmp_path / name, 2, name="{}" + ODD + ".png")
    units = source(tmp_path).units()
    assert {unit.route for unit in units} == {"caf\\xe9", "tab\there", "new\nline"}
    assert all(re.fullmatch(r"[\w.-]+", unit.name, re.ASCII) for unit in units)


def test_unit_names_are_told_apart():
    names = unit_names([Path("b c"), Path("b_c"), Path("d"), Path(".")])
    assert len(set(names)) == 4
    assert names[2:] == ["d", "recording"]
    assert printable(Path("a") / ODD) == "a/caf\\xe9"


def test_pictures_of_root_itself_are_a_recording(tmp_path):
    record(tmp_path, 6)
    assert levels(source(tmp_path, source_fps=10)) == ([[0, 1, 2, 3, 4, 5]], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_fps": -1.0}, "images.source_fps is -1"),
        ({"time_unit": "h"}, "images.time_unit is 'h'; expected one of s, ms, us, ns"),
        ({"route_by": "file"}, "images.route_by is 'file'"),
        ({"height": 33}, "images.height x images.width is 33x64"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        source(tmp_path, **changes)


def test_a_missing_or_empty_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="needs root="):
        source(None)
    with pytest.raises(UserError, match="holds no picture"):
        source(tmp_path).units()
