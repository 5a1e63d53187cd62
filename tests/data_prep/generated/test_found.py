"""Which videos can become labelled clips, and why others cannot."""

from pathlib import Path

import pytest

from data_prep.generated.found import read_generated, units_of
from data_prep.source import Refused
from drivesim.clip import Layout
from drivesim.errors import UserError


def test_what_lies_beside_a_video_is_read(make_generated, tmp_path):
    video = read_generated(make_generated(tmp_path / "a.mp4", 12))
    assert (video.fps, video.height, video.width, video.layout.num_frames) == (10, 64, 128, 12)
    assert video.lens.cy == 0.44
    assert video.provenance["seed"] == 4


def test_a_video_that_was_interrupted_is_labelled_as_far_as_it_goes(make_generated, asked, tmp_path):
    video = read_generated(make_generated(tmp_path / "a.mp4", 12, layout=asked(30)))
    assert video.layout.num_frames == 12


REASONS = {
    "no layout": (lambda path: Path(f"{path}.layout.json").unlink(), {}, "has no a.mp4.layout.json beside it"),
    "no record": (lambda path: Path(f"{path}.json").unlink(), {}, "has no a.mp4.json beside it, so nobody knows what"),
    "other record": (lambda path: Path(f"{path}.json").write_text("{}"), {}, "is no record of `drivesim generate`"),
    "no json": (lambda path: Path(f"{path}.json").write_text("{"), {}, "is no record of `drivesim generate`"),
    "no mark": (None, {"provenance": {"synthetic": "no"}}, "does not say that a model made it"),
    "drawn on": (None, {"draw_boxes": True}, "has the boxes drawn onto its pictures"),
    "damaged layout": (lambda path: Path(f"{path}.layout.json").write_text("{"), {}, "is not valid JSON"),
    "other rate": (None, {"fps": 20}, "has 10 frames a second, the layout beside it another rate"),
    "too short": (None, {"layout": 5}, "has 12 frames, the layout beside it 5"),
    "no boxes": (None, {"layout": Layout.unknown(12)}, "was asked for no boxes"),
    "no video": (lambda path: path.write_bytes(b"none"), {}, "is not a readable video"),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_video_that_cannot_serve_is_refused_with_the_reason(make_generated, asked, tmp_path, case):
    spoil, changes, reason = REASONS[case]
    if changes.get("layout") == 5:
        changes = {"layout": asked(5)}
    path = make_generated(tmp_path / "a.mp4", 12, **changes)
    if spoil:
        spoil(path)
    with pytest.raises(Refused, match="(?s)" + reason.replace("(", r"\(")):
        read_generated(path)


def test_folders_files_and_patterns_name_videos_and_unfinished_ones_are_none(tmp_path):
    for name in ("b_1.mp4", "b_2.mp4", "x/c [1].mp4", "b_3.partial.mp4", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {
        asked: [(unit.path, unit.route) for unit in units_of(str(tmp_path / asked), "name")[1]]
        for asked in ("", "b_*.mp4", "x/c [1].mp4", "**/*.mp4")
    }
    both, inside = [("b_1.mp4", "b"), ("b_2.mp4", "b")], [("x/c [1].mp4", "x/c [1]")]
    assert found == {
        "": both + inside,
        "b_*.mp4": both,
        "x/c [1].mp4": [("c [1].mp4", "c [1]")],
        "**/*.mp4": both + inside,
    }
    with pytest.raises(UserError, match=r"names no \.mp4 file"):
        units_of(str(tmp_path / "*.mkv"), "name")
