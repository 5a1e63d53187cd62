"""What lies in the folders of real users: strange names, links in circles, files that are no video or go away."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.found import find
from data_prep.naming import LONGEST_NAME, printable, unit_names
from data_prep.prepare import main
from data_prep.source import Dropped
from data_prep.videos import VideosConfig, VideosSource
from drivesim.data.store import ClipStore
from drivesim.data.video import SUFFIXES

SMALL = ["videos.height=32", "videos.width=64", "videos.fps=15", "videos.clip_seconds=2", "videos.min_seconds=0.5"]
LATIN = os.fsdecode(b"stra\xdfe.mp4")  # ISO 8859-1


@pytest.fixture
def root(tmp_path):
    (tmp_path / "films").mkdir()
    return tmp_path / "films"


def prepared(root, out):
    """The store, and dropped.json as unit -> reason."""
    main(["source=videos", f"root={root}", f"out={out}", "workers=1", *SMALL])
    return ClipStore(out), {piece["unit"]: piece["reason"] for piece in json.loads((out / "dropped.json").read_text())}


def silence(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_folder_of_odd_files_gives_its_videos_and_names_the_rest(root, tmp_path, make_video, make_scene, capsys):
    film = make_video(tmp_path / "film.mp4", make_scene(1, 20)).read_bytes()
    (root / "good.mp4").write_bytes(film)
    (root / LATIN).write_bytes(make_video(tmp_path / "other.mp4", make_scene(2, 20)).read_bytes())
    (root / os.fsdecode(b"\xff.mp4")).write_text("no video")
    (root / "empty.mp4").touch()
    silence(root / "sound.mp4")
    (root / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (root / "self.mp4").symlink_to("self.mp4")
    (root / "again.mp4").symlink_to("good.mp4")
    (root / "circle").symlink_to(root)
    (tmp_path / "elsewhere").mkdir()
    make_video(tmp_path / "elsewhere" / "far.mp4", make_scene(3, 20))
    (root / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)

    store, dropped = prepared(root, tmp_path / "store")
    assert set(store.index["source"]) == {"good.mp4", "stra\\xdfe.mp4", "elsewhere/far.mp4"}
    splits = json.loads((tmp_path / "store" / "prepare.json").read_text())["splits"]
    taken = [split for route, split in splits.items() if route.startswith("left out")]
    assert taken == ["train"]  # what cannot be used is not drawn for validation
    for words in (
        "\\xff.mp4 is not a readable video",
        "empty.mp4 is not a readable video (it is empty)",
        "sound.mp4 holds no video stream",
        "gone.mp4 is not a file",
        "self.mp4 is not a file",
        "again.mp4 is good.mp4 under another name",
    ):
        assert sum(words in reason for reason in dropped.values()) == 1, words
    assert len(dropped) == 6
    assert "left out" in capsys.readouterr().out
    prepared(root, tmp_path / "store")  # and it is the same preparation when run again


def test_a_link_to_a_file_elsewhere_is_read(root, tmp_path, make_video, make_scene):
    make_video(tmp_path / "disk" / "a.mp4", make_scene(1, 20))
    (root / "linked.mp4").symlink_to(tmp_path / "disk" / "a.mp4")
    source = VideosSource(VideosConfig(32, 64, 15.0, 2.0, 0.5), root)
    assert [len(list(clip.frames)) for clip in source.clips(source.units()[0])] == [20]


def test_of_two_names_of_one_file_the_one_that_is_no_link_is_kept(root):
    (root / "b.mp4").touch()
    (root / "a.mp4").symlink_to("b.mp4")
    os.link(root / "b.mp4", root / "c.mp4")
    assert [(file.path.name, file.problem) for file in find(root, SUFFIXES)] == [
        ("a.mp4", "is b.mp4 under another name"),
        ("b.mp4", ""),
        ("c.mp4", "is b.mp4 under another name"),
    ]


@pytest.mark.parametrize("when", ["before it is opened", "after its first clip"])
def test_a_file_that_goes_away_is_told_or_read_to_its_end(root, make_video, make_scene, when):
    make_video(root / "a.mp4", make_scene(1, 60))
    source = VideosSource(VideosConfig(32, 64, 15.0, 2.0, 0.5), root)
    [unit] = source.units()
    if when == "before it is opened":
        (root / "a.mp4").unlink()
        [dropped] = source.clips(unit)
        assert isinstance(dropped, Dropped)
        assert "a.mp4 is not a file" in dropped.reason
        return
    pieces = source.clips(unit)
    assert len(list(next(pieces).frames)) == 30
    (root / "a.mp4").unlink()  # the system keeps an open file
    assert [len(list(clip.frames)) for clip in pieces] == [30]


def test_a_video_that_breaks_in_the_middle_gives_what_came_before(root, make_video, make_scene):
    path = make_video(root / "a.mkv", make_scene(1, 60))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = np.random.default_rng(0).bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    source = VideosSource(VideosConfig(32, 64, 15.0, 1.0, 0.5), root)
    lengths = [len(list(clip.frames)) for clip in source.clips(source.units()[0]) if not isinstance(clip, Dropped)]
    assert lengths[:1] == [15]


def test_names_are_short_enough_for_any_file_system():
    long = Path("/".join(["a" * 120] * 3))
    names = unit_names([long, long.with_name("b"), Path("plain")])
    assert all(len(name) <= LONGEST_NAME + 7 for name in names)
    assert len(set(names)) == 3
    assert names[2] == "plain"


def test_printable_leaves_ordinary_names_alone():
    assert printable("straße/ö.mp4") == "straße/ö.mp4"
    assert printable(LATIN) == "stra\\xdfe.mp4"
