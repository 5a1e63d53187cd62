import csv
import json
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from eval.diversity import Case, SceneIndex, diversity, main, pairwise
from eval.features import frame_features
from eval.similarity import stlpips


@pytest.fixture(scope="module")
def store(make_store, tmp_path_factory) -> ClipStore:
    """Four drives of 1.2 s and one that is too short."""
    clips = [("train", 36, 30)] * 4 + [("train", 6, 30)]
    return make_store(tmp_path_factory.mktemp("diversity") / "store", clips)


@pytest.fixture
def futures(tmp_path, drive, write) -> Path:
    """What `drivesim generate futures=3` leaves: three videos of 1.25 s that begin alike and part."""
    folder = tmp_path / "futures"
    videos = [drive(0, 40, step) for step in (1.0, 1.01, 1.03)]
    for i, frames in enumerate(videos):
        write(folder, f"future_{i}", frames, 32)
    rows = [{"file": f"future_{i}.mp4", "caption": f"seed {i}"} for i in range(3)]
    (folder / "futures.json").write_text(json.dumps({"futures": rows}))
    return folder


def test_one_command_compares_futures_with_real_drives(futures, store, tmp_path, capsys):
    out = tmp_path / "out"
    main([f"futures=[{futures}]", f"real={store.root}", "times=[0.5,1]", f"out={out}"])
    content = json.loads((out / "diversity.json").read_text())
    begin, *later = content["rows"]
    assert begin["futures"] == pytest.approx(0, abs=0.03)
    assert begin["real"] > 0.05
    assert later[0]["futures"] < later[1]["futures"]
    for row in content["rows"]:
        assert row["ratio"] == pytest.approx(row["futures"] / row["real"])
        assert row["real_error"] is None  # of one start
    assert len(content["starts"][0]["real"]) == len(set(content["starts"][0]["real"])) == 3
    assert [float(row["time_s"]) for row in csv.DictReader((out / "diversity.csv").open())] == [0, 0.5, 1]
    assert cv2.imread(str(out / "diversity.png")) is not None
    assert cv2.imread(str(out / "diversity_frames.png")).shape[1] > 3 * 256
    assert "3 futures of 1 starts" in capsys.readouterr().out


def test_the_distance_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    videos = [{1.0: rng.integers(0, 255, (128, 256, 3)).astype(np.uint8)} for _ in range(3)]
    expected = np.mean([stlpips(a[1.0], b[1.0]) for a, b in combinations(videos, 2)])
    assert pairwise(videos, 1.0) == pytest.approx(expected)


def test_equal_futures_are_not_diverse_and_errors_are_over_starts(drive):
    a, b, c = ({1.0: cv2.resize(drive(seed, 1)[0], (256, 128))} for seed in range(3))
    first, second = (Case(name, {"x": a, "y": a}, {"p": a, "q": other}) for name, other in (("one", b), ("two", c)))
    (row,) = diversity([first, second], [1.0])
    assert row.futures == 0
    values = [pairwise([a, b], 1.0), pairwise([a, c], 1.0)]
    assert row.real == pytest.approx(np.mean(values))
    assert row.real_error == pytest.approx(abs(values[0] - values[1]) / 2)


def test_a_real_drive_begins_at_the_frame_that_is_most_like_the_start():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (128, 256, 3)).astype(np.uint8)
    looks = frame_features(frame[None])
    near, nearer, far = looks + 0.2, looks + 0.1, looks + 3
    places = [("a", "route1", 0.0), ("b", "route1", 0.5), ("c", "route2", 0.0)]
    index = SceneIndex(np.concatenate([near, nearer, far]), places)
    assert index.nearest(frame, 2) == [("b", 0.5), ("c", 0.0)]
    with pytest.raises(UserError, match="real has 2 routes that are long enough, 3 futures"):
        index.nearest(frame, 3)


def test_frames_with_too_little_after_them_begin_no_drive(store):
    index = SceneIndex.of(store, 0.6)
    assert sorted({clip for clip, _, _ in index.places}) == ["c0", "c1", "c2", "c3"]
    assert sorted({begin for _, _, begin in index.places}) == [0.0, 0.5]
    with pytest.raises(UserError, match="no clip is 5 s long"):
        SceneIndex.of(store, 5.0)


def test_mistakes_are_told(futures, store, tmp_path):
    def told(*words: str) -> str:
        with pytest.raises(UserError) as caught:
            main([f"real={store.root}", f"out={tmp_path / 'out'}", *words])
        return str(caught.value)

    assert "futures=[]" in told("futures=[]")
    assert "has no readable futures.json" in told(f"futures=[{tmp_path}]")
    assert "is 1.25 s long, times go to 4 s" in told(f"futures=[{futures}]")
    assert "times above 0" in told(f"futures=[{futures}]", "times=[0,1]")
    assert "moments are there" in told(f"futures=[{futures}]", "times=[0.5,0.501]")
    (futures / "future_2.mp4").unlink()
    assert "future_2.mp4 is missing" in told(f"futures=[{futures}]", "times=[1]")
    (futures / "futures.json").write_text('{"futures": [{"file": "future_0.mp4", "caption": "one"}]}')
    assert "has 1 future; at least 2" in told(f"futures=[{futures}]", "times=[1]")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diversity.csv").write_text("mine")
    assert "exists" in told(f"futures=[{futures}]")
