"""`drivesim data query`: the clips found, shown and written."""

import pytest


def test_clips_are_listed_with_their_columns_and_their_names_written(data, store, tmp_path):
    names = tmp_path / "names.txt"
    code, out, _ = data("query", f"store={store.root}", "where=night > 0.5 and fps >= 30", f"out={names}")
    assert code == 0
    header, *rows, total, _ = out.splitlines()
    assert header.split() == [
        "clip", "route", "split", "frames", "fps", "start_s", "height", "width", "camera", "source", "licence", "night",
        "weather", "crowdedness", "speed_mps", "has_boxes", "seconds",
    ]  # fmt: skip
    assert [row.split()[:4] for row in rows] == [["c1", "r1", "train", "44"], ["c3", "r3", "val", "36"]]
    assert "unknown" in rows[0]  # the speed
    assert total == "2 of 5 clips"
    assert names.read_text() == "c1\nc3\n"


def test_length_in_seconds_is_a_column(data, store):
    out = data("query", f"store={store.root}", "where=seconds > 1.4 and split == 'train'")[1]
    assert out.endswith("2 of 5 clips\n")


def test_people_may_ask_in_their_own_words(data, store):
    out = data("query", f"store={store.root}", "where=night and cars > 0.5 and fps > 20")[1]
    assert [row.split()[0] for row in out.splitlines()[1:-1]] == ["c1", "c3"]


def test_no_more_clips_are_printed_than_asked_for_and_all_are_written(data, store, tmp_path):
    names = tmp_path / "names.txt"
    out = data("query", f"store={store.root}", "where=frames > 3", "show=2", f"out={names}")[1]
    _, *rows, more, total, _ = out.splitlines()
    assert [row.split()[0] for row in rows] == ["c0", "c1"]
    assert (more, total) == ("and 3 more; out=names.txt writes the names of all", "5 of 5 clips")
    assert names.read_text().split() == ["c0", "c1", "c2", "c3", "c4"]


def test_no_clip_found_is_no_mistake(data, store, tmp_path):
    names = tmp_path / "names.txt"
    code, out, _ = data("query", f"store={store.root}", "where=frames > 999", f"out={names}")
    assert (code, out) == (0, f"0 of 5 clips\n{names}: their names\n")
    assert names.read_text() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["where=nigth > 0.5"], "did you mean night?; columns: clip, route"),
        (["where=night >"], "invalid syntax"),
        ([], "missing where=..."),
        (["where=fps > 1", "show=-1"], "show=-1; expected 0 or more"),
        (["where=fps > 1", "out=n.csv"], "expected a name that ends in .txt"),
        (["where=fps > 1", "out=there.txt"], "there.txt exists; choose another name or add overwrite=true"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(data, store, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").write_text("mine")
    code, _, error = data("query", f"store={store.root}", *words)
    assert (code, message in error) == (2, True), error
    assert {path.name for path in tmp_path.iterdir()} == {"store", "there.txt"}
    assert (tmp_path / "there.txt").read_text() == "mine"
