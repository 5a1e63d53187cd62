import json

import av
import cv2
import numpy as np
import pytest

from drivesim.clip import CLASSES
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError
from drivesim.generation.draw import COLOURS
from drivesim.scenarios.build import build
from drivesim.scenarios.command import main
from drivesim.scenarios.draw import draw_frame, from_above
from drivesim.scenarios.files import library
from tests.scenarios.conftest import car


def test_list_has_one_line_a_scenario(capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(library())
    assert all(len(line) < 120 for line in lines)
    assert {
        "cut_in",
        "hard_brake",
        "crossing_pedestrian",
        "oncoming_car",
        "following",
        "empty_road",
        "dense_traffic",
        "dusk_to_night",
    } <= set(library())


def test_check_tells_who_is_seen_when(capsys, scenario):
    agents = [car("near", ahead_m=15), car("behind it", ahead_m=30), car("late", "bus", left_m=4, appears_s=1)]
    main(["check", scenario(seconds=2, title="a test", ego={"speed_mps": 0}, agents=agents), "slots=1"])
    head, names, *rows, slots = capsys.readouterr().out.splitlines()
    assert "a test: 2.00 s, 20 frames, at most 2 boxes a frame" in head
    assert names.split() == ["agent", "track", "class", "priority", "seen", "hidden", "nearest", "tallest"]
    assert rows[0].split()[4:10] == ["0.0-2.0", "s", "0", "frames", "15.0", "m"]
    assert rows[1].split()[5:] == ["never", "20", "frames"]
    assert "1.0-2.0 s" in rows[2]
    assert slots.startswith("the model takes 1 boxes a frame; left out: late (track 3) in frames 10-19")


def test_check_names_frame_and_track_of_what_is_wrong(scenario):
    with pytest.raises(UserError, match=r"frame 0 \(0.00 s\).*a \(track 1\) and the camera car overlap"):
        main(["check", scenario(seconds=2, agents=[car(ahead_m=1)])])


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_write_makes_a_layout_file(tmp_path, suffix, capsys):
    main(["write", "cut_in", f"out={tmp_path}/a.{suffix}"])
    built = build(str(tmp_path / f"a.{suffix}"))
    np.testing.assert_allclose(built.layout.boxes, build("cut_in").layout.boxes, atol=1e-7)
    with pytest.raises(UserError, match="exists"):
        main(["write", "cut_in", f"out={tmp_path}/a.{suffix}"])
    with pytest.raises(UserError, match="expected a name that ends in"):
        main(["write", "cut_in", f"out={tmp_path}/a.txt"])


def test_schema_is_printed_or_written(tmp_path, capsys):
    main(["schema"])
    printed = json.loads(capsys.readouterr().out)
    main(["schema", f"out={tmp_path}/a.json"])
    assert json.loads((tmp_path / "a.json").read_text()) == printed
    assert printed["properties"]["agents"]["items"]["properties"]["class"]["enum"] == list(CLASSES)
    assert list(WEATHERS) == printed["properties"]["weather"]["anyOf"][0]["enum"]


def test_draw_makes_a_video_of_every_frame_and_a_sheet(tmp_path, scenario):
    spec = scenario(seconds=1, agents=[car(ahead_m=15)])
    main(["draw", spec, f"out={tmp_path}/a.mp4", "height=96"])
    with av.open(str(tmp_path / "a.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 10
    assert frames[0].shape == (96, 192, 3)
    main(["draw", f"layout={spec}", f"out={tmp_path}/a.png", "height=96", "frames=4", "columns=2"])
    assert cv2.imread(str(tmp_path / "a.png")).shape[1] > 2 * 192
    for bad in ("out=a.gif", "height=3 out=a.mp4", "frames=0 out=a.png"):
        with pytest.raises(UserError, match="expected"):
            main(["draw", spec, *bad.split()])


def test_a_box_is_drawn_where_it_is_asked_for_in_the_colour_of_its_class(scenario):
    built = build(scenario(seconds=1, ego={"speed_mps": 0}, agents=[car("a", "bus", ahead_m=20, left_m=3)]))
    picture = draw_frame(built, 0, 256, 512)
    x1, _, x2, y2 = built.layout.boxes[0, 0].tolist()
    assert picture[round(y2 * 255), round((x1 + x2) / 2 * 511)].tolist() == list(COLOURS[CLASSES.index("bus")])
    above = from_above(built, 0, 136)  # two pixels a metre
    assert above[136 - 16 - 40, 68 - 6].tolist() == list(COLOURS[CLASSES.index("bus")])  # 20 m ahead, 3 m left
    assert above[136 - 16, 68].tolist() == [20, 20, 20]  # ourselves


def test_night_is_drawn_dark(scenario):
    day, night = (
        draw_frame(build(scenario(seconds=1, time_of_day=t)), 0, 64, 128)[-1, 0].sum() for t in ("day", "night")
    )
    assert night < day / 2


def test_what_the_picture_alone_tells_is_drawn_too(store):
    built = build(f"{store}:flat")
    assert (draw_frame(built, 0, 64, 128) != draw_frame(built, 19, 64, 128)).any()


def test_unknown_verbs_and_scenarios_are_named():
    with pytest.raises(UserError, match="unknown verb 'drew'; expected one of draw, check, list, write, schema"):
        main(["drew"])
    with pytest.raises(UserError, match=r"there is no 'cut'.*did you mean cut_in"):
        main(["check", "cut"])
    with pytest.raises(UserError, match="missing layout"):
        main(["check"])
    with pytest.raises(UserError, match="holds no scenario"):
        main(["list", "folder=/nowhere"])


def test_help_is_there_for_every_verb(capsys):
    main(["--help"])
    assert "draw" in capsys.readouterr().out
    for verb in ("draw", "check", "list", "write", "schema"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
