"""The published JSON Schema, the reader, and a validator of neither's making agree."""

import json
import re
from pathlib import Path

import pytest
import yaml

from drivesim.clip import CLASSES
from drivesim.errors import UserError
from drivesim.scenarios.build import build
from drivesim.scenarios.files import library, read_scenario
from drivesim.scenarios.schema import json_schema
from tests.scenarios.test_build import BAD

PUBLISHED = Path(__file__).parents[2] / "docs" / "scenario.schema.json"
MEANING = {
    "nothing said",
    "a box of no size",
    "half a track",
}  # what a schema without code cannot say, or says otherwise


def test_the_published_schema_is_that_of_the_dataclasses():
    assert json.loads(PUBLISHED.read_text()) == json_schema(), (
        "run `drivesim scenario schema out=docs/scenario.schema.json overwrite=true`"
    )


def test_every_scenario_of_the_library_says_what_happens():
    for name, path in library().items():
        scenario = read_scenario(path, name)
        assert scenario.title
        assert scenario.seconds


def test_the_examples_of_the_documentation_are_scenarios(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (PUBLISHED.parent / "scenarios.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        (tmp_path / "a.yaml").write_text(block)
        read_scenario(tmp_path / "a.yaml", "a")
    (tmp_path / "a.yaml").write_text(blocks[0])
    layout = build(str(tmp_path / "a.yaml")).layout
    assert {CLASSES.index("car"), CLASSES.index("pedestrian")} < set(layout.classes[0].tolist())  # and empty slots


def test_a_validator_takes_the_library_and_says_of_bad_files_what_the_reader_says(tmp_path):
    jsonschema = pytest.importorskip(
        "jsonschema", reason="no jsonschema: whether the published schema is one is not checked"
    )
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    for path in library().values():
        validator.validate(yaml.safe_load(path.read_text()))
    for case, (content, _) in BAD.items():
        if case in MEANING:
            continue
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
        try:
            read_scenario(tmp_path / "a.yaml", "a")
            refused = False
        except UserError:
            refused = True
        if validator.is_valid(content) and refused:  # the order of times, and infinity, are beyond a schema
            assert case in ("times out of order", "infinite"), case
        else:
            assert validator.is_valid(content) != refused, case
