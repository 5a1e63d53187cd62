from dataclasses import dataclass, field

import pytest

from drivesim import config
from drivesim.config import option, parse
from drivesim.errors import UserError
from drivesim.training.train import TrainConfig


@dataclass
class Inner:
    steps: int = option(3, "how many")
    name: str = option("a", "what it is called")


@dataclass
class Schema:
    """Do a thing."""

    root: str = option(help="where the data is")
    seconds: float = option(1.0, "length")
    count: int = option(2, "how many")
    night: float | None = option(None, "0 day .. 1 night")
    fast: bool = option(False, "hurry")
    sizes: list[int] = option([1], "sizes")
    inner: Inner = option(Inner(), "nested")


@dataclass
class WithExperiment:
    """Do a thing by experiment."""

    defaults: list = field(default_factory=lambda: ["_self_", {"experiment": "small"}])
    steps: int = option(1, "how many")
    inner: Inner = option(Inner(), "nested")


@pytest.fixture
def conf(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    for name, steps in (("small", 5), ("large", 50)):
        (tmp_path / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\nsteps: {steps}\ninner: {{name: {name}}}\n"
        )
    monkeypatch.setattr(config, "CONF", tmp_path)


def error(*words: str, schema: type = Schema) -> str:
    """What the user is told, which is one line."""
    with pytest.raises(UserError) as caught:
        parse(schema, words, "drivesim try")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_words_become_typed_values():
    filled = parse(
        Schema, ["root=here", "seconds=2", "count=7", "night=0.5", "fast=true", "sizes=[1,2]", "inner.steps=9"], "t"
    )
    assert filled == Schema("here", 2.0, 7, 0.5, True, [1, 2], Inner(9, "a"))


def test_null_unsets_an_optional_value():
    assert parse(Schema, ["root=a", "night=null"], "t").night is None


PATHS = [
    "a b/c d.png",
    "a=b.mp4",
    "[1] (2) {3}.png",
    "a,b.mp4",
    "it's.png",
    'say "hi".png',
    "$HOME/${x}.png",
    "~/a:b#c%d",
]
PATHS += ["'a' == b or c == 'd'", "ü/ñ.png", "12", "true", "null", "C:\\data\\", "\\'", "", "\\${x}", "-1", "a//b"]


@pytest.mark.parametrize("path", PATHS)
def test_any_path_is_taken_letter_by_letter(path):
    assert parse(Schema, [f"root={path}"], "t").root == path
    assert parse(Schema, ["root=x", f"inner.name={path}"], "t").inner.name == path


def test_an_unknown_key_is_named_with_what_comes_close():
    assert "unknown key 'second'; did you mean seconds" in error("root=a", "second=3")
    assert "unknown key 'inner.step'; did you mean inner.steps" in error("root=a", "inner.step=3")


def test_an_unknown_key_like_no_other_lists_all_keys():
    message = error("root=a", "zzzz=3")
    assert "unknown key 'zzzz'" in message
    assert "known: root, seconds, count" in message


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seconds=abc", "seconds: found 'abc', expected a number"),
        ("seconds=", "seconds: found '', expected a number"),
        ("seconds=1,2", "seconds: found '1,2', expected a number"),
        ("seconds=null", "seconds: found 'null', expected a number"),
        ("count=1.5", "count: found '1.5', expected a whole number"),
        ("night=dark", "night: found 'dark', expected a number"),
        ("fast=maybe", "fast: found 'maybe', expected true or false"),
        ("inner.steps=x", "inner.steps: found 'x', expected a whole number"),
        ("sizes=a", "sizes"),
        ("inner=3", "inner"),
    ],
)
def test_a_wrong_type_names_the_key_the_value_and_what_is_expected(word, expected):
    assert expected in error("root=a", word)


@pytest.mark.parametrize("word", ["root", "--root", "=3", "+new=1", "~count", "", "hydra.run.dir=x", "a b=3"])
def test_what_is_not_key_equals_value_is_told_so(word):
    assert f"expected key=value, found {word!r}" in error("root=a", word)


def test_a_missing_option_is_named():
    assert "missing root=...; see drivesim try --help" in error("seconds=3")


def test_an_experiment_sets_what_it_lists_and_words_win(conf):
    assert parse(WithExperiment, [], "t").steps == 5
    filled = parse(WithExperiment, ["experiment=large", "inner.steps=8"], "t")
    assert (filled.steps, filled.inner) == (50, Inner(8, "large"))
    assert parse(WithExperiment, ["experiment=large", "steps=2"], "t").steps == 2


def test_an_unknown_experiment_lists_those_there_are(conf):
    message = error("experiment=huge", schema=WithExperiment)
    assert "unknown experiment 'huge'; available: large, small" in message


def test_an_unknown_key_beside_an_experiment_is_named(conf):
    assert "unknown key 'stepz'; did you mean steps" in error("stepz=3", schema=WithExperiment)


def test_help_explains_every_option(capsys, conf):
    for schema, lines in (
        (
            Schema,
            ["where the data is (required)", "inner.steps", "hurry (default false)", "0 day .. 1 night (optional)"],
        ),
        (WithExperiment, ["one of large, small (default small)"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            parse(schema, ["--help"], "drivesim try")
        shown = capsys.readouterr().out
        assert not stopped.value.code
        assert all(line in shown for line in lines)


def test_cfg_job_prints_the_resolved_config_and_stops(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Schema, ["root=a", "count=9", "--cfg", "job"], "t")
    assert not stopped.value.code
    assert "count: 9" in capsys.readouterr().out


def test_an_experiment_that_is_no_yaml_is_told_with_its_line(conf):
    (config.CONF / "experiment" / "twice.yaml").write_text("# @package config\nimage: 1\nimage: 2\n")
    with pytest.raises(UserError, match=r"twice\.yaml.* line 2.*duplicate key image"):
        parse(WithExperiment, ["experiment=twice"], "t")


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (config.CONF / "experiment").glob("*.yaml")))
def test_every_experiment_is_readable(experiment):
    asked = parse(TrainConfig, [f"experiment={experiment}", "data=x"], "drivesim train")
    assert asked.config.stages.keyframes.lr > 0
