"""Which clips become one scene."""

import numpy as np
import pandas as pd
import pytest

from data_prep.export.scenes import scenes_of

NAN = float("nan")


def index(*rows: tuple) -> pd.DataFrame:
    """Rows of clip, route, camera, start_s, fps."""
    table = pd.DataFrame(rows, columns=["clip", "route", "camera", "start_s", "fps"])
    return table.assign(split="train").set_index("clip")


def grouped(*rows: tuple) -> dict[str, dict[str, str]]:
    return {scene.name: scene.clips for scene in scenes_of(index(*rows))}


def test_cameras_that_start_together_are_one_scene_the_front_one_first():
    rows = [
        ("back", "r", "CAM_BACK", 0.0, 12.0),
        ("extra", "r", "CAM_ROOF", 0.01, 12.0),
        ("front", "r", "CAM_FRONT", 0.05, 12.0),
    ]
    assert grouped(*rows) == {"r": {"CAM_FRONT": "front", "CAM_BACK": "back", "CAM_ROOF": "extra"}}
    assert list(grouped(*rows)["r"]) == ["CAM_FRONT", "CAM_BACK", "CAM_ROOF"]


def test_a_camera_that_lost_a_piece_joins_its_own_time():
    """The back camera's second clip starts late, after a bad picture; its third one is in time again."""
    front = [(f"f{i}", "r", "CAM_FRONT", 20.0 * i, 12.0) for i in range(3)]
    back = [
        ("b0", "r", "CAM_BACK", 0.0, 12.0),
        ("b1", "r", "CAM_BACK", 23.0, 12.0),
        ("b2", "r", "CAM_BACK", 40.0, 12.0),
    ]
    assert grouped(*front, *back) == {
        "r_part0000": {"CAM_FRONT": "f0", "CAM_BACK": "b0"},
        "r_part0001": {"CAM_FRONT": "f1"},
        "r_part0002": {"CAM_BACK": "b1"},
        "r_part0003": {"CAM_FRONT": "f2", "CAM_BACK": "b2"},
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("r", "CAM_FRONT", NAN, 12.0), ("r", "CAM_BACK", NAN, 12.0)),  # nobody knows when
        (("r", "CAM_FRONT", 0.0, 12.0), ("r", "CAM_BACK", 0.0, 30.0)),
        (("r", "CAM_FRONT", 0.0, 12.0), ("r", "CAM_FRONT", 0.0, 12.0)),
        (("r", "CAM_FRONT", 0.0, 12.0), ("q", "CAM_BACK", 0.0, 12.0)),
    ],
)
def test_other_clips_are_scenes_of_their_own(one, other):
    assert sorted(map(len, grouped(("a", *one), ("b", *other)).values())) == [1, 1]


def test_a_camera_without_a_name_looks_ahead():
    assert grouped(("a", "r", "", NAN, 10.0)) == {"r": {"CAM_FRONT": "a"}}


def test_no_two_scenes_start_at_one_time_and_those_of_a_route_keep_their_distance():
    rows = [("a", "r", "", 0.0, 10.0), ("b", "r", "", 7.5, 10.0), ("c", "q", "", NAN, 10.0), ("d", "q", "", NAN, 10.0)]
    starts = {next(iter(scene.clips.values())): scene.start_us for scene in scenes_of(index(*rows))}
    assert len(set(starts.values())) == 4
    assert starts["b"] - starts["a"] == 7_500_000
    assert np.unique([start // 86_400_000_000 for start in starts.values()]).size == 2  # a day a route
