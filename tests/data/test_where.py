"""Conditions on columns against masks written by hand, and everything that is no condition."""

import numpy as np
import pandas as pd
import pytest

from drivesim.data.where import select
from drivesim.errors import UserError

TABLE = pd.DataFrame(
    {
        "clip": ["a", "b", "c", "d"],
        "split": ["train", "val", "train", "test"],
        "night": np.array([0.1, 0.9, 0.5, np.nan], np.float32),
        "frames": np.array([10, 20, 30, 40], np.int32),
        "has_boxes": [True, False, True, False],
    }
)
NIGHT, FRAMES, SPLIT, BOXES = (TABLE[name].to_numpy() for name in ("night", "frames", "split", "has_boxes"))
HOLDS = {
    "night > 0.5": NIGHT > 0.5,
    "night == 0.1": np.float32(0.1) == NIGHT,
    "night != 0.5": NIGHT != 0.5,
    "frames >= 20 and night <= 0.5": (FRAMES >= 20) & (NIGHT <= 0.5),
    "frames < 15 or night > 0.7 and frames > 25": (FRAMES < 15) | ((NIGHT > 0.7) & (FRAMES > 25)),
    "(frames < 15 or night > 0.3) and frames <= 20": ((FRAMES < 15) | (NIGHT > 0.3)) & (FRAMES <= 20),
    "not night > 0.5": ~(NIGHT > 0.5),
    "not (split == 'train' or frames == 20)": ~((SPLIT == "train") | (FRAMES == 20)),
    "10 < frames <= 30": (FRAMES > 10) & (FRAMES <= 30),
    "0.5 > night": NIGHT < 0.5,
    "frames > -1.5e1": FRAMES > -15,
    'split != "train"': SPLIT != "train",
    "split == '@x `y` # z'": SPLIT == "@x `y` # z",
    "has_boxes": BOXES,
    "night": NIGHT >= 0.5,
    "day and frames > 5": NIGHT < 0.5,
    "not night": ~(NIGHT >= 0.5),
    "night != 0.5 and night": NIGHT > 0.5,
    "not has_boxes and frames > 30": ~BOXES & (FRAMES > 30),
    "has_boxes == False": ~BOXES,
    "  frames > 10\n": FRAMES > 10,
    "(frames > 10\n and frames < 40)": (FRAMES > 10) & (FRAMES < 40),
}


@pytest.mark.parametrize("where", HOLDS)
def test_the_rows_are_those_of_the_mask(where):
    assert list(select(TABLE, where)["clip"]) == list(TABLE["clip"][HOLDS[where]])


def test_people_may_call_cars_speed_and_weather_by_these_names():
    table = pd.DataFrame(
        {
            "night": [0.0, 1, 1, 1],
            "crowdedness": [9.0, 9, 4, 9],
            "speed_mps": [20.0, 11, 20, np.nan],
            "weather": ["rain", "rain", "snow", ""],
        },
        index=pd.Index(list("abcd"), name="clip"),
    )
    for where, found in {
        "night and cars > 5 and speed > 10": "b",
        "vehicles < 5": "c",
        "night and cars > 5": "bd",
        "rain or snow": "abc",
        "not (rain or snow) and night": "d",
        "speed != 20": "bd",
        "clip == 'c'": "c",
    }.items():
        assert "".join(select(table, where).index) == found, where


def test_a_column_goes_before_an_alias_of_its_name():
    table = pd.DataFrame({"speed": [1, 2], "speed_mps": [2, 1]})
    assert list(select(table, "speed > 1").index) == [1]


REFUSED = {
    "nigth > 0.5": "unknown column 'nigth'; did you mean night?; columns: clip, split, night, frames, has_boxes",
    "split == val": "unknown column 'val'",
    "speed > 3": "unknown column 'speed'",
    "night >": "cannot be read (invalid syntax)",
    "": "cannot be read (invalid syntax)",
    "night = 3": "cannot be read",
    "night > 0.5; 1": "cannot be read",
    "night > 0.5\x00": "cannot be read",
    "night > 0.5 &": "cannot be read",
    "@night > 0.5": "cannot be read",
    "`night` > 0.5": "cannot be read",
    "frames": "frames by itself says nothing",
    "rain": "unknown column 'rain'",  # the table knows no weather
    "cars": "unknown column 'cars'",
    "seconds or night": "unknown column 'seconds'",
    "1": "1 is no comparison",
    "1 < 2": "found 1 and 2 compared",
    "frames > night": "found frames and night compared",
    "frames < 20 < 30": "found 20 and 30 compared",
    "night > 'x'": "found night and 'x' compared; the column holds a number",
    "split > 3": "found split and 3 compared; the column holds text in quotes",
    "has_boxes == 1": "the column holds true or false",
    "frames == True": "the column holds a number",
    "frames > 1j": "found frames and 1j compared",
    "frames > 1 + 1": "found frames and 1 + 1 compared",
    "night > 0.5 & frames > 3": "0.5 & frames",
    "~has_boxes": "~has_boxes is no comparison",
    "split in ['val']": "is no comparison",
    "split is None": "is no comparison",
    "split.str.len() > 3": "found split.str.len() and 3 compared",
    "__import__('os').system('true')": "is no comparison",
    "frames.__class__ == 3": "compared",
    "(lambda: 1)() > frames": "compared",
    "(frames := 3) > 2": "compared",
    "f'{frames}' == split": "compared",
    "index > 3": "unknown column 'index'",
    "not " * 3000 + "has_boxes": "nested too deeply",
    "(" * 5000 + "has_boxes" + ")" * 5000: "",
}


@pytest.mark.parametrize("where", REFUSED, ids=lambda where: where[:20])
def test_anything_but_comparisons_is_refused_in_one_line(where):
    with pytest.raises(UserError) as refused:
        select(TABLE, where)
    assert REFUSED[where] in str(refused.value)
    assert "\n" not in str(refused.value)
