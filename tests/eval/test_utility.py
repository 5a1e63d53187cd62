import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from eval import utility
from eval.utility import Run, UtilityConfig, main, open_frames, origin, summary, table


@pytest.fixture(scope="module")
def stores(make_store, tmp_path_factory) -> dict[str, ClipStore]:
    """Real, generated and held-out clips, each of other drives."""
    root = tmp_path_factory.mktemp("utility")
    clips = {
        "real": [("train", 12, 30), ("val", 12, 30)],
        "synthetic": [("train", 10, 30), ("train", 8, 30)],
        "test": [("train", 14, 30)],
    }
    return {name: elsewhere(make_store(root / name, given)) for name, given in clips.items()}


def elsewhere(store: ClipStore) -> ClipStore:
    """The same from a source of its own: routes of another source are other drives."""
    path = store.root / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "source": store.root.name}))
    return ClipStore(store.root)


@pytest.fixture
def words(stores, tmp_path) -> list[str]:
    roots = [f"{name}={store.root}" for name, store in stores.items()]
    return [*roots, f"out={tmp_path / 'out'}", "frames=8", "test_frames=8", "steps=2", "seeds=1", "seed=3"]


@pytest.fixture
def config(stores) -> UtilityConfig:
    return UtilityConfig(*(str(stores[name].root) for name in ("real", "synthetic", "test")), frames=8, test_frames=8)


@pytest.fixture(autouse=True)
def other_pictures(monkeypatch):
    """The clips of the three stores hold the same bytes, being made alike; here they count as different files."""
    monkeypatch.setattr(ClipStore, "hashes", property(lambda store: {c: f"{store.root} {c}" for c in store.clips()}))


def test_one_command_writes_tables_and_a_picture(words, tmp_path, capsys):
    main(words)
    out = tmp_path / "out"
    content = json.loads((out / "utility.json").read_text())
    assert [(run["trained_on"], run["seed"]) for run in content["runs"]] == [
        (name, 3) for name in ("real", "synthetic", "both")
    ]
    assert content["frames"] == {"real": 8, "synthetic": 8, "test": 8}
    rows = list(csv.DictReader((out / "utility.csv").open()))
    assert {(row["trained_on"], row["class"], row["figure"]) for row in rows} == {
        (name, kind, figure)
        for name in ("real", "synthetic", "both")
        for kind in ("mean", "car")
        for figure in ("ap", "ap50")
    }
    assert cv2.imread(str(out / "detections.png")).shape[1] > 4 * utility.SHOWN_WIDTH
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:4]] == ["trained", "real", "synthetic", "both"]


def test_means_and_spreads_are_those_of_the_seeds():
    def run(name: str, seed: int, ap: float) -> Run:
        figures = {"ap": ap, "ap50": 2 * ap, "boxes": 7}
        return Run(name, seed, {"mean": figures, "car": figures})

    values = {"real": [0.1, 0.2, 0.4], "synthetic": [0.3, 0.3, 0.3], "both": [0.5, 0.1, 0.2]}
    runs = [run(name, seed, ap) for name, given in values.items() for seed, ap in enumerate(given)]
    rows = {(row["trained_on"], row["class"], row["figure"]): row for row in summary(runs)}
    for name, given in values.items():
        assert rows[name, "car", "ap"]["mean"] == pytest.approx(np.mean(given))
        assert rows[name, "car", "ap50"]["spread"] == pytest.approx(2 * np.std(given, ddof=1))
    lines = table(runs, {"real": 5, "synthetic": 6, "test": 9}).splitlines()
    assert lines[3].split()[:2] == ["both", "11"]
    assert "23.3 ± 15.3" in lines[1]


def test_frames_are_as_many_as_asked_for_and_bring_their_boxes(config):
    train, test = open_frames(config)
    assert [len(train["real"]), len(train["synthetic"]), len(test)] == [8, 8, 8]
    assert all(len(frame.boxes) == 1 and not frame.hidden.any() for frame in test)


def test_fewer_real_frames_can_stand_beside_more_generated_ones(config):
    train, _ = open_frames(replace(config, frames=12, real_frames=8))
    assert [len(train["real"]), len(train["synthetic"])] == [8, 12]


def test_frames_that_are_not_there_are_told(config, capsys):
    open_frames(replace(config, frames=100))
    assert "synthetic has 18 of the 100 frames" in capsys.readouterr().err


def test_the_same_file_in_train_and_test_is_refused(config, monkeypatch):
    generated = {"synthetic": "other"}  # the files of the other two stores are alike
    monkeypatch.setattr(
        ClipStore, "hashes", property(lambda store: {c: generated.get(store.root.name, c) for c in store.clips()})
    )
    with pytest.raises(UserError, match=r"clip c0 of real=.* and clip c0 of test=.* show the same drive"):
        open_frames(config)


def test_a_route_of_one_recording_in_train_and_test_is_refused(config, stores, monkeypatch):
    monkeypatch.setattr(utility, "origin", lambda store: ("test",))
    with pytest.raises(UserError, match="route r0"):
        open_frames(config)


def test_towns_of_other_seeds_are_other_places():
    def town(seed: int) -> ClipStore:
        store = ClipStore.__new__(ClipStore)
        store.info = {"source": "town", "config": {"root": None, "town": {"seed": seed}}}
        return store

    assert origin(town(0)) == origin(town(0)) != origin(town(1))


def test_held_out_clips_of_the_real_store_itself_will_do(config, monkeypatch):
    _, test = open_frames(replace(config, test=config.real))
    assert len(test) == 8


def test_the_same_store_as_real_and_synthetic_is_refused(config):
    with pytest.raises(UserError, match="real and synthetic are the same store"):
        open_frames(replace(config, synthetic=config.real))


def test_clips_without_boxes_are_refused(config, make_store, tmp_path):
    blank = make_store(tmp_path / "blank", [("train", 9, 30)], boxes=False)
    with pytest.raises(UserError, match=r"synthetic=.*no clip of split train has boxes"):
        open_frames(replace(config, synthetic=str(blank.root)))


def test_too_few_frames_are_refused(config, make_store, tmp_path):
    short = elsewhere(make_store(tmp_path / "short", [("train", 5, 30)]))
    with pytest.raises(UserError, match="synthetic: 5 frames with boxes, at least 8 are needed"):
        open_frames(replace(config, synthetic=str(short.root)))


@pytest.mark.parametrize("word", ["frames=3", "steps=0", "seeds=0", "test_frames=1", "real_frames=2"])
def test_too_small_numbers_are_refused(words, word):
    with pytest.raises(UserError, match=f"{word}, at least"):
        main([*words, word])


def test_earlier_tables_are_not_overwritten(words, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "utility.csv").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        main(words)
