import csv
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.interpolate import interp1d

from drivesim.clip import CLASSES, NO_BOX, Layout
from drivesim.data.schema import WEATHERS
from drivesim.data.store import BOXES, FRAMES, INDEX, SCHEMA
from drivesim.errors import UserError
from drivesim.generation.layout_file import BOX_KEYS, Lens, load_layout, read_layout, resample, save_layout


def box(track: int = 1, kind: str = "car", x1: float = 0.1, y1: float = 0.2, x2: float = 0.3, y2: float = 0.4) -> dict:
    return {"track": track, "class": kind, "x1": x1, "y1": y1, "x2": x2, "y2": y2}


def write(path, *frames: dict, fps: float = 30) -> str:
    path.write_text(json.dumps({"fps": fps, "frames": list(frames)}))
    return str(path)


def random_layout(frames: int = 12, slots: int = 5) -> Layout:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(frames, slots, 2, generator=generator) * 0.5
    layout = Layout.unknown(frames, slots=slots)
    layout.boxes[:] = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(frames, slots, 2, generator=generator)], -1)
    layout.classes[:] = torch.arange(slots) % len(CLASSES)
    layout.tracks[:] = torch.arange(slots) + 7
    layout.night[3:], layout.crowdedness[:5], layout.known[:] = 0.25, 3, True
    layout.travel[:], layout.heading[2:] = torch.arange(frames) * 0.3, 0.01
    layout.classes[4, 3:], layout.tracks[4, 3:], layout.boxes[4, 3:] = NO_BOX, NO_BOX, 0
    for tensor, value in ((layout.classes, NO_BOX), (layout.tracks, NO_BOX), (layout.boxes, 0), (layout.known, False)):
        tensor[6] = value  # nothing is known of frame 6
        if tensor is not layout.known:
            tensor[7] = value  # frame 7 is known to be empty
    return layout


def same(a: Layout, b: Layout) -> bool:
    return all(
        torch.equal(x.nan_to_num(-9), y.nan_to_num(-9)) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_none_asks_for_nothing():
    assert load_layout("none", 1.0, 30, 8) is None


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_a_saved_layout_comes_back_exactly(tmp_path, suffix):
    layout = random_layout()
    path = save_layout(layout, 30, tmp_path / f"a.{suffix}")
    assert same(load_layout(str(path), 12 / 30, 30, 5), layout)


def all_known(frames: int = 12) -> Layout:
    """Everything that a file can say, another value in every frame."""
    layout, rng = random_layout(frames), torch.Generator().manual_seed(1)
    layout.speed[:], layout.turn[:], layout.steering[:] = torch.rand(3, frames, generator=rng)
    layout.weather[:] = torch.arange(frames) % 5
    layout.solids[:] = torch.rand(layout.solids.shape, generator=rng) * 20
    layout.solids[0, 0, 1:] = math.nan  # of this one the depth alone is known
    layout.solids[layout.classes == NO_BOX] = math.nan
    return layout


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_weather_motion_and_boxes_in_space_come_back_too(tmp_path, suffix):
    layout = all_known()
    path = save_layout(layout, 30, tmp_path / f"a.{suffix}")
    assert same(load_layout(str(path), 12 / 30, 30, 5), layout)


def test_the_lens_is_kept_and_a_stored_clip_tells_its_own(tmp_path):
    lens = Lens(0.5, 1.0, 0.5, 0.44)
    path = save_layout(random_layout(), 30, tmp_path / "a.json", lens)
    assert read_layout(str(path)).lens == lens
    assert read_layout(str(save_layout(random_layout(), 30, tmp_path / "b.json"))).lens is None
    assert read_layout(f"{make_store(tmp_path / 'unseen')}:0001").lens is None  # it does not know its camera
    store = make_store(tmp_path / "store")
    frames = pd.read_parquet(store / "frames.parquet").assign(fx=64.0, fy=64.0, cx=64.0, cy=16.0)
    frames.to_parquet(store / "frames.parquet")
    assert read_layout(f"{store}:0001").lens == Lens(0.5, 1.0, 0.5, 0.25)


@pytest.mark.parametrize(
    ("lens", "message"),
    [
        ([1], "lens: expected an object with fx, fy, cx, cy"),
        ({"fx": 0, "fy": 1, "cx": 0, "cy": 0}, "lens: fx is 0 and fy 1, expected more than 0"),
        ({"fx": 1, "fy": 1, "cx": 0}, "lens: cy is missing, expected a number"),
        ({"f": 1}, "lens: unknown key 'f'"),
    ],
)
def test_a_lens_that_cannot_be_is_refused(tmp_path, lens, message):
    (tmp_path / "a.json").write_text(json.dumps({"lens": lens, "frames": [{}]}))
    with pytest.raises(UserError, match=message):
        read_layout(str(tmp_path / "a.json"))


def test_the_weather_of_the_file_is_that_of_frames_that_do_not_say(tmp_path):
    frames = [{"time_s": 0}, {"time_s": 1, "weather": "fog"}]
    (tmp_path / "a.json").write_text(json.dumps({"weather": "rain", "frames": frames}))
    layout = load_layout(str(tmp_path / "a.json"), 1, 10, 1)
    assert [WEATHERS[i] for i in layout.weather] == ["rain"] * 6 + ["fog"] * 4  # the nearer one


def test_boxes_in_space_move_and_turn_the_short_way_round(tmp_path):
    size = {"length_m": 4, "width_m": 2, "height_m": 1.5}
    first = [box() | size | {"z_m": 10, "yaw": 3}, box(2) | {"z_m": 5}]
    last = [box() | size | {"z_m": 20, "yaw": -3}, box(2)]
    spec = write(tmp_path / "a.json", {"time_s": 0, "boxes": first}, {"time_s": 1, "boxes": last})
    layout = load_layout(spec, 1, 8, 2)
    times = torch.arange(8) / 8
    assert torch.allclose(layout.solids[:, 0, 0], 10 + 10 * times)
    turned = 3 + (2 * math.pi - 6) * times
    assert torch.allclose(torch.cos(layout.solids[:, 0, 4] - turned), torch.ones(8), atol=1e-6)
    assert layout.solids[:5, 1, 0].tolist() == [5.0] * 5  # known in one of the two: as far as it is the nearer
    assert layout.solids[5:, 1, 0].isnan().all()


def test_the_csv_file_is_one_row_a_box_with_the_documented_columns(tmp_path):
    save_layout(random_layout(), 30, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["time_s", "night", "crowdedness", "travel_m", "heading_rad", *BOX_KEYS]
    assert [row["class"] for row in rows].count("unknown") == 1
    assert len(rows) == 9 * 5 + 3 + 1 + 1


def test_tracks_move_as_scipy_interpolates_them():
    layout = random_layout(8)[:4]
    times, at = np.array([0, 0.5, 0.6, 2.0]), np.linspace(0, 2.2, 23)
    expected = interp1d(
        times, layout.boxes.numpy(), axis=0, bounds_error=False, fill_value=(layout.boxes[0], layout.boxes[-1])
    )(at)
    assert np.allclose(resample(layout, times, at).boxes.numpy(), expected, atol=1e-6)


def test_a_track_is_followed_from_slot_to_slot(tmp_path):
    first, last = (
        [box(1, x1=0.1, x2=0.2), box(2, "bus", x1=0.5, x2=0.9)],
        [box(2, "bus", x1=0.1, x2=0.5), box(1, x1=0.3, x2=0.4)],
    )
    spec = write(tmp_path / "a.json", {"time_s": 0, "boxes": first}, {"time_s": 1, "boxes": last})
    middle = load_layout(spec, 1, 4, 3)[2]
    where = {int(track): middle.boxes[i, 0].item() for i, track in enumerate(middle.tracks)}
    assert where[1] == pytest.approx(0.2)
    assert where[2] == pytest.approx(0.3)
    assert where[NO_BOX] == 0


def test_what_is_in_one_neighbour_only_holds_half_way(tmp_path):
    spec = write(
        tmp_path / "a.json", {"time_s": 0, "boxes": [box()], "night": 0}, {"time_s": 1, "boxes": [], "night": 1}
    )
    layout = load_layout(spec, 1, 10, 2)
    assert (layout.classes[:, 0] != NO_BOX).tolist() == [True] * 6 + [False] * 4
    assert torch.allclose(layout.night, torch.arange(10) / 10)


def test_missing_boxes_are_unknown_and_an_empty_list_says_no_boxes(tmp_path):
    spec = write(tmp_path / "a.json", {"time_s": 0}, {"time_s": 0.1, "boxes": []}, fps=10)
    layout = load_layout(spec, 0.2, 10, 2)
    assert layout.known.tolist() == [False, True]
    assert layout.night.isnan().all()


def test_boxes_over_the_edge_are_clipped_with_a_line(tmp_path, capsys):
    spec = write(tmp_path / "a.json", {"boxes": [box(x1=-0.5, x2=0.3)]})
    assert load_layout(spec, 1 / 30, 30, 1).boxes[0, 0].tolist() == pytest.approx([0, 0.2, 0.3, 0.4])
    assert "1 boxes reach over the edge" in capsys.readouterr().err


def frames_with(**changes) -> list[dict]:
    return [{"time_s": 0, "boxes": [box()]}, {"time_s": 1 / 30, "boxes": [box(), box(7) | changes]}]


BAD_FRAMES = {
    "nan": (frames_with(x1=math.nan), "frame 1: track 7: x1 is nan"),
    "infinite": (frames_with(x2=math.inf), "frame 1: track 7: x2 is infinite"),
    "negative size": (frames_with(x1=0.5, x2=0.3), r"frame 1: track 7: size -0\.2 x 0\.2 is not positive"),
    "zero size": (frames_with(y1=0.5, y2=0.5), "frame 1: track 7: size"),
    "outside": (frames_with(x1=1.2, x2=1.5), "frame 1: track 7: wholly outside the picture"),
    "pixels": (frames_with(x1=300, x2=500), "fractions of its width and height"),
    "unknown class": (frames_with(**{"class": "tram"}), "frame 1: track 7: unknown class 'tram'; known: car, truck"),
    "text for a number": (frames_with(x1="0.1"), "frame 1: track 7: x1 is '0.1', expected a number"),
    "true for a number": (frames_with(x1=True), "frame 1: track 7: x1 is True"),
    "missing corner": (frames_with(x1=None), "frame 1: track 7: x1 is missing"),
    "missing track": (frames_with(track=None), "frame 1: box 1: track is missing"),
    "the same track twice": (frames_with(track=1), "frame 1: track 1 is there twice"),
    "half a track": (frames_with(track=1.5), r"frame 1: track 1\.5 is not whole"),
    "a huge track": (frames_with(track=10**400), "frame 1: box 1: track is infinite"),
    "misspelt box key": (frames_with(colour="red"), "frame 1: box 1: unknown key 'colour'"),
    "misspelt frame key": ([{"boxs": []}], "frame 0: unknown key 'boxs'; known: time_s"),
    "boxes no list": ([{"boxes": 3}], "frame 0: boxes is 3, expected a list"),
    "frame no object": ([[1]], r"frame 0: expected an object"),
    "unknown weather": ([{"weather": "hail"}], "frame 0: weather is 'hail', expected one of clear, cloudy, rain"),
    "weather as a number": ([{"weather": 2}], "frame 0: weather is 2, expected one of"),
    "speed nan": ([{"speed_mps": math.nan}], "frame 0: speed_mps is nan, expected a finite number"),
    "a depth of nan": (frames_with(z_m=math.nan), "frame 1: track 7: z_m is nan"),
    "negative length": (frames_with(length_m=-1), "frame 1: track 7: length_m is -1, expected 0 or more"),
    "night out of range": ([{"night": 2}], "frame 0: night is 2, expected 0 to 1"),
    "negative crowdedness": ([{"crowdedness": -1}], "frame 0: crowdedness is -1, expected 0 or more"),
    "time stands still": ([{"time_s": 0}, {"time_s": 0}], "frame 1 is at 0 s, not after frame 0"),
    "time runs back": (
        [{"time_s": 0}, {"time_s": 1}, {"time_s": 0.5}],
        "frame 2 is at 0.5 s, not after frame 1 at 1 s",
    ),
    "late start": ([{"time_s": 3}], "the first must be at 0"),
    "no frames": ([], "has no frames"),
    "too few frames": ([{}] * 10, r"has 10 frames, 0\.33 s; 2 s were asked for"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_a_bad_frame_is_named_in_one_line(tmp_path, case):
    frames, message = BAD_FRAMES[case]
    spec = write(tmp_path / "bad.json", *frames)
    with pytest.raises(UserError, match=message) as caught:
        load_layout(spec, 2 / 30 if "too few" not in case else 2, 30, 8)
    assert "\n" not in str(caught.value)
    assert "bad.json" in str(caught.value)


BAD_FILES = {
    "a.json": ("{", "is not valid JSON"),
    "deep.json": ("[" * 100_000, "is not valid JSON"),
    "b.json": ("[]", "expected an object with fps, frames"),
    "c.json": ('{"fps": 30}', 'expected "frames", a list'),
    "d.json": ('{"fps": 0, "frames": [{}]}', "fps is 0"),
    "e.json": (b"\xff\xfe\x00", "is not UTF-8"),
    "f.csv": ("time_s,track\n0,1\n", "lacks class, x1, y1, x2, y2"),
    "g.csv": ("time_s,track,class,x1,y1,x2,y2,mood\n", "unknown 'mood'"),
    "h.csv": ("time_s,track,class,x1,y1,x2,y2\nsoon,1,car,0,0,1,1\n", "line 2: time_s is no number"),
    "i.csv": ("time_s,track,class,x1,y1,x2,y2\n0,1,car,a,0,1,1\n", "frame 0: track 1: x1 is 'a'"),
    "j.csv": ("time_s,track,class,x1,y1,x2,y2\n0,1,car,0,0,1,1,9\n", "more than"),
    "k.csv": ("time_s,track,class,x1,y1,x2,y2\n0,1,car,0,0,1\n", "frame 0: track 1: y2 is missing"),
    "l.txt": ("", "expected a .json or .csv file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_in_one_line(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as caught:
        read_layout(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing\.json does not exist"):
        read_layout(str(tmp_path / "missing.json"))


def test_more_boxes_than_the_model_takes_are_refused(tmp_path):
    spec = write(tmp_path / "a.json", *frames_with())
    with pytest.raises(UserError, match="frame 1 has 2 boxes, the model takes 1"):
        load_layout(spec, 2 / 30, 30, 1)


def make_store(root, frames: int = 20, fps: float = 10):
    """A store of one clip "0001": a car that moves right by 0.01 a frame, and a small bus."""

    def table(schema, rows):
        return pd.DataFrame([{name: row.get(name) for name in schema.names} for row in rows])

    root.mkdir()
    row = {"clip": "0001", "split": "test", "frames": frames, "fps": fps, "has_boxes": True}
    row |= {"frames_at": 0, "boxes_at": 0, "boxes": 2 * frames, "height": 64, "width": 128}
    table(INDEX, [row]).to_parquet(root / "index.parquet")
    table(FRAMES, [{"clip": "0001", "frame": i, "night": 0.5, "vehicles": 2.0} for i in range(frames)]).to_parquet(
        root / "frames.parquet"
    )
    car = [
        box(1, x1=0.01 * i, x2=0.01 * i + 0.4) | {"clip": "0001", "frame": i, "visibility": 1.0} for i in range(frames)
    ]
    bus = [box(2, "bus", 0.5, 0.5, 0.6, 0.6) | {"clip": "0001", "frame": i, "visibility": 1.0} for i in range(frames)]
    table(BOXES, car + bus).to_parquet(root / "boxes.parquet")
    (root / "store.json").write_text(json.dumps({"schema": SCHEMA}))
    return root


def test_a_stored_clip_is_resampled_from_where_it_is_asked(tmp_path):
    layout = load_layout(f"{make_store(tmp_path / 'a:b')}:0001:0.5", 1, 20, 1)
    assert layout.num_frames == 20
    assert layout.tracks[:, 0].tolist() == [1] * 20  # one slot: the largest box stays, as in training
    assert torch.allclose(layout.boxes[:, 0, 0], 0.05 + 0.005 * torch.arange(20), atol=1e-6)
    assert layout.night.tolist() == [0.5] * 20


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("0001:1.5", r"0\.50 s; 1 s were asked for"),
        ("0002", "no clip '0002'; try 0001"),
        ("0001:2", "lies outside the clip"),
    ],
)
def test_a_clip_that_cannot_serve_is_refused(tmp_path, rest, message):
    with pytest.raises(UserError, match=message):
        load_layout(f"{make_store(tmp_path / 'store')}:{rest}", 1, 20, 4)
