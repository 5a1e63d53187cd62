"""Plans against what training then does."""

import json

from drivesim import cli
from drivesim.training.stages import STAGES


def test_a_plan_trains_what_training_trains(trained, tmp_path):
    """The parameters that a plan says are trained are those that the record of a real run counts."""
    cli.main(["plan", "experiment=town_tiny", f"out={tmp_path}/plan.json"])
    report = json.loads((tmp_path / "plan.json").read_text())
    for name in STAGES:
        parts = report["stages"][name]["parameters"].values()
        record = json.loads((trained.bundle / name / "training.json").read_text())
        assert sum(part["trained"] for part in parts) == record["parameters_trained"]
