from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.town.traffic_model import record
from data_prep.town.world import Setting, World
from drivesim.clip import VEHICLES
from drivesim.scenarios import recorded
from drivesim.scenarios.build import build
from drivesim.scenarios.schema import Traffic

MODEL = "data_prep.town.traffic_model:record"


@pytest.fixture
def installed(monkeypatch) -> None:
    """The model, whether or not this version of it is installed."""
    entry = EntryPoint("town", MODEL, recorded.MODELS)
    monkeypatch.setattr(recorded, "entry_points", lambda group: [entry])


def test_the_project_names_the_model():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'[project.entry-points."{recorded.MODELS}"]\ntown = "{MODEL}"' in project


def test_the_traffic_of_a_scenario_is_what_the_town_shows(tmp_path, installed):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({"seconds": 1, "fps": 5, "time_of_day": "night", "traffic": {"seed": 4}}))
    built = build(str(path))
    world = World(Setting(seed=(4, 2, 0), seconds=1.0))
    for t in range(5):
        shown = {box.track: box.xyxy for box in world.frame(t / 5).boxes if not box.visibility < 0.15}
        layout = built.layout[t]
        found = {int(k): b.tolist() for k, b in zip(layout.tracks, layout.boxes, strict=True) if k >= 0}
        assert found.keys() == shown.keys()
        for track, box in shown.items():
            np.testing.assert_allclose(found[track], box, atol=1e-6)
    assert built.layout.night.tolist() == [1] * 5
    assert built.layout.travel[-1] > 0


def test_crowdedness_and_seed_make_other_traffic():
    def vehicles(**options) -> list:
        boxes = record(Traffic(**options), 0.4, 5).boxes
        return [
            pair
            for pair in zip(*boxes.select(["class", "x1"]).to_pydict().values(), strict=True)
            if pair[0] in VEHICLES
        ]

    assert vehicles(crowdedness=0.0) == []
    assert vehicles(seed=1) == vehicles(seed=1)
    assert vehicles(seed=1) != vehicles(seed=2)
