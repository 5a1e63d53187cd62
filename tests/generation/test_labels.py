"""What a generated video says of itself, and the layout that is written beside it."""

import json
from types import SimpleNamespace

import pytest
import torch

from drivesim.bundle import Bundle
from drivesim.clip import SPEED_MPS, Layout
from drivesim.generation.labels import PORTION, bundle_sha256, provenance, save_labels
from drivesim.generation.layout_file import Lens, read_layout
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.tags import movflags, tags

FPS = 16.0
LENS = Lens(0.6, 1.2, 0.5, 0.44)


@pytest.fixture
def pipeline() -> SimpleNamespace:
    """As much of a pipeline as says what it is told."""
    made = SimpleNamespace(fps=FPS, slots=3)
    made.layout_at = lambda layout: DrivingPipeline.layout_at(made, layout)  # type: ignore[arg-type]
    return made


def bundle(folder, **hashes: str) -> Bundle:
    folder.mkdir()
    stages = {name: {"sha256": sha} for name, sha in hashes.items()}
    (folder / "model_index.json").write_text(json.dumps({"format": 1, "stages": stages}))
    return Bundle(folder)


def test_a_layout_of_a_few_frames_is_written_for_every_frame_of_the_video(pipeline, tmp_path):
    layout = Layout.unknown(2, slots=1)  # the pipeline goes on from there
    layout.boxes[:], layout.classes[:], layout.tracks[:] = torch.tensor([0.1, 0.2, 0.3, 0.4]), 1, 5
    layout.known[:], layout.travel[:], layout.heading[:] = True, torch.tensor([0, 0.5]), torch.tensor([0, 0.01])
    frames = PORTION + 44
    save_labels(tmp_path / "a.json", pipeline, layout, LENS, frames)
    timed = read_layout(str(tmp_path / "a.json"))
    assert (timed.layout.num_frames, timed.lens) == (frames, LENS)
    torch.testing.assert_close(torch.from_numpy(timed.times_s), torch.arange(frames).double() / FPS)
    told = DrivingPipeline.layout_at(pipeline, layout)(torch.arange(frames))
    assert timed.layout.boxes.equal(told.boxes[:, :1])  # no frame has more than one
    assert timed.layout.travel.equal(told.travel)
    torch.testing.assert_close(timed.layout.travel, 0.5 * torch.arange(frames))


def test_where_nothing_was_asked_for_boxes_are_unknown_and_the_usual_way_was_driven(pipeline, tmp_path):
    save_labels(tmp_path / "a.json", pipeline, None, None, 20)
    timed = read_layout(str(tmp_path / "a.json"))
    assert not timed.layout.known.any()
    assert timed.lens is None
    torch.testing.assert_close(timed.layout.travel, SPEED_MPS * torch.arange(20) / FPS)


def test_a_bundle_has_another_hash_when_one_stage_was_trained_again(tmp_path):
    one, same, other = (
        bundle(tmp_path / name, image="aa", keyframes=sha) for name, sha in (("a", "bb"), ("b", "bb"), ("c", "cc"))
    )
    assert bundle_sha256(one) == bundle_sha256(same) != bundle_sha256(other)


def test_provenance_names_what_was_asked_for_and_the_container_repeats_it(tmp_path):
    origin = provenance(bundle(tmp_path / "a", image="aa"), 7, start="photo.png", layout=None)
    assert {"synthetic": True, "seed": 7, "start": "photo.png"}.items() <= origin.items()
    assert "layout" not in origin
    marked = tags(origin)
    assert marked["synthetic"] == "true"
    assert all(str(word) in marked["comment"] for word in ("not filmed", "seed 7", origin["bundle_sha256"]))


def test_what_was_filmed_has_no_tags_and_files_as_before():
    assert tags({}) == {}
    assert movflags("faststart", {}) == movflags("faststart", None) == "faststart"
