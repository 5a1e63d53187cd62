"""`drivesim data` itself: its verbs, and the mistakes that all of them answer alike."""

import pytest

VERBS = ("stats", "view", "query", "cache", "verify", "export", "merge")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb_with_a_line(data, words):
    code, out, _ = data(*words)
    assert code == 0
    assert all(any(line.split()[:1] == [verb] and len(line.split()) > 3 for line in out.splitlines()) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_its_options(data, verb):
    code, out, _ = data(verb, "--help")
    assert code == 0
    assert f"usage: drivesim data {verb}" in out
    assert "store" in out


def test_an_unknown_verb_names_the_known_ones(data):
    code, _, error = data("store=here")
    assert code == 2
    assert "unknown verb 'store=here'; expected one of stats, view, query, cache, verify, export, merge first" in error


@pytest.mark.parametrize(
    ("verb", "more"), [("stats", []), ("verify", []), ("query", ["where=fps > 1"]), ("view", ["clip=c0", "out=x.png"])]
)
def test_a_mistaken_store_is_told_in_one_line(data, store, tmp_path, monkeypatch, verb, more):
    monkeypatch.chdir(tmp_path)
    code, _, error = data(verb, *more)
    assert (code, f"drivesim data {verb}: missing store=...; see drivesim data {verb} --help" in error) == (2, True)
    code, _, error = data(verb, f"store={tmp_path}", *more)
    assert (code, "holds no clip store" in error) == (2, True)
    (store.root / "index.parquet").write_bytes(b"not a table")
    code, out, error = data(verb, f"store={store.root}", *more)
    assert code == 2
    assert "index.parquet is not readable" in out + error
