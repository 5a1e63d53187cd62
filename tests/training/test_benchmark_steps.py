"""Steps of sampling against quality: `python -m benchmarks.steps` on a bundle of few training steps."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.steps import Row, main
from drivesim.bundle import sha256
from drivesim.errors import UserError

pytestmark = pytest.mark.usefixtures("alike")


@pytest.fixture
def measured(trained, tmp_path):
    """measured(*words): the rows of results.json."""

    def run(*words: str) -> list[Row]:
        given = dict(word.split("=", 1) for word in words)
        usual = {"bundle": trained.bundle, "data": trained.data, "out": tmp_path / "steps", "windows": 2}
        options = {**usual, "samplers": "[ddim,unipc]", "steps": "[1,3]", **given}
        main([f"{name}={value}" for name, value in options.items()])
        return [Row(**row) for row in json.loads((Path(options["out"]) / "results.json").read_text())["rows"]]

    return run


@pytest.mark.parametrize("stage", ["keyframes", "interpolate", "upsample_temporal"])
def test_every_setting_is_measured_against_the_most_steps_of_ddim(measured, tmp_path, stage):
    rows = measured(f"stage={stage}")
    assert [(row.sampler, row.steps) for row in rows] == [("ddim", 3), ("ddim", 1), ("unipc", 1), ("unipc", 3)]
    most, one, first, _ = rows
    assert (most.apart, most.share) == (0, 1)
    assert one.apart > 0
    assert one.apart == pytest.approx(first.apart, rel=1e-3)  # the first step of both is the same
    assert one.share < 1
    assert all(row.fd_transnetv2 > 0 and row.fd_efficientnet_lite0 > 0 for row in rows)
    assert (tmp_path / "steps" / "curves.png").stat().st_size > 10_000


def test_what_was_measured_is_kept_and_a_student_is_added_to_it(measured, trained, tmp_path, capsys):
    before = measured("samplers=[ddim]")
    student = tmp_path / "student"
    shutil.copytree(trained.bundle, student)
    index = json.loads((student / "model_index.json").read_text())
    index["sampler"]["distilled"] = ["keyframes"]  # so without guidance, of which there was some
    index["stages"]["keyframes"]["built_on"] = {}
    change_weights(student / "keyframes", index)
    (student / "model_index.json").write_text(json.dumps(index))
    rows = measured("samplers=[ddim]", f"student={student}", "student_steps=[3]")
    assert rows[:-1] == before
    assert (rows[-1].who, rows[-1].steps) == ("student", 3)
    assert rows[-1].apart > 0
    assert rows[-1].weights != before[0].weights
    with pytest.raises(UserError, match="was measured with another windows; choose another out="):
        measured("windows=3")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stage=image", "stage=image, expected one of keyframes"),
        ("samplers=[unipc]", "samplers without ddim"),
        ("windows=1", "windows=1, a distance needs 2 or more"),
    ],
)
def test_what_cannot_be_measured_is_told(measured, word, said):
    with pytest.raises(UserError, match=said):
        measured(word)


def change_weights(folder: Path, index: dict) -> None:
    """Other weights of the same kind, known to the index."""
    path = folder / "temporal.safetensors"
    save_file({name: weight * 1.01 for name, weight in load_file(path).items()}, path)
    index["stages"]["keyframes"]["sha256"] = sha256(path)
