"""`drivesim evaluate bundle=...` on a bundle of a few steps: every set is made, measured and shown."""

import json
from pathlib import Path

import av
import pytest

from drivesim import cli
from drivesim.training.stages import STAGES

FRAMES = 9  # (3 keyframes - 1) * 4 + 1
SETS = ("ours", "frozen_start", "driven_start", "image_ldm_per_frame", "cross_fade", "autoencoder")


@pytest.fixture(scope="module")
def judged(make_store, small_store, tmp_path_factory) -> Path:
    """The folder of a study, on two held-out drives of 60 frames."""
    root = tmp_path_factory.mktemp("study")
    held_out = make_store(root / "held_out", [("val", 60, 30), ("val", 60, 30)])
    steps = [f"config.stages.{name}.max_steps=2" for name in STAGES]
    cli.main(["train", "experiment=town_tiny", f"data={small_store.root}", f"out={root / 'run'}", *steps])
    words = [f"bundle={root / 'run' / 'bundle'}", f"data={small_store.root}", f"real={held_out.root}", "clips=2"]
    cli.main(
        ["evaluate", *words, f"out={root / 'report'}", f"clip_frames={FRAMES}", "finder_seconds=1", "seeds=2", "show=1"]
    )
    return root / "report"


def test_every_set_is_measured_and_named(judged):
    results = json.loads((judged / "results.json").read_text())
    assert [s["name"] for s in results["sets"]] == [
        "real", "floor", *SETS, "ours_seed1", "image_ldm_per_frame_seed1"
    ]  # fmt: skip
    assert all("fd_efficientnet_lite0" in s["metrics"] for s in results["sets"][1:])


def test_continuations_begin_with_the_start_frame_and_have_every_frame(judged):
    def frames(name: str):
        with av.open(str(judged / "sets" / "continuations" / name / "c0.mkv")) as container:
            return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]

    true, frozen, faded = frames("real"), frames("frozen_start"), frames("cross_fade")
    assert {len(frames(name)) for name in ("real", *SETS)} == {FRAMES}
    assert all((frame == true[0]).all() for frame in frozen)
    assert (faded[0] == true[0]).all()
    assert abs(frames("ours")[0] - frames("autoencoder")[0]).max() <= 2


def test_other_noise_makes_other_videos(judged):
    folder = judged / "sets" / "continuations"
    assert (folder / "ours" / "c0.mkv").read_bytes() != (folder / "ours_seed1" / "c0.mkv").read_bytes()


def test_the_page_tells_how_each_stage_was_trained(judged):
    page = (judged / "report.html").read_text()
    assert all(stage in page for stage in STAGES)
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bundle=nothing"], "bundle=nothing is not a folder"),
        (["fake=a", "bundle=b"], "either fake"),
        ([], "either fake"),
    ],
)
def test_what_is_missing_is_named(words, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", f"real={tmp_path}", f"data={tmp_path}", f"out={tmp_path / 'r'}", *words])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
