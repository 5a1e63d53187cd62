"""`drivesim data cache`: exactly what training makes and looks for."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from drivesim.bundle import Bundle, to_dict
from drivesim.data.cache import FrameCache
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.training.experiment import ExperimentConfig
from drivesim.training.stages import Workspace, load_autoencoder

TINY = AutoencoderConfig(channels=4, width=8, blocks=1)
COMMON = {"data": {"height": 32, "width": 64, "key_fps": 1.875, "slots": 6}}


def bundle_of(folder, seed: int) -> Bundle:
    bundle = Bundle(folder)
    torch.manual_seed(seed)
    bundle.save("autoencoder", {"model": to_dict(TINY)}, TINY.build().state_dict(), {}, COMMON)
    return bundle


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return bundle_of(tmp_path / "bundle", 0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_training_makes_of_the_same_bundle_is_the_same_to_the_byte(data, store, bundle):
    shutil.rmtree(store.root / "cache", ignore_errors=True)
    code, out, _ = data("cache", f"store={store.root}", f"bundle={bundle.root}")
    assert code == 0
    assert "frames_32x64: 5 clips" in out
    ahead = files(store.root / "cache")
    shutil.rmtree(store.root / "cache")
    experiment = ExperimentConfig()
    experiment.data.height, experiment.data.width = 32, 64
    work = Workspace(experiment, store, bundle, seed=3)
    assert work.latents.folder.exists()
    assert files(store.root / "cache") == ahead
    encode = load_autoencoder(bundle).encode
    with torch.no_grad():
        expected = encode(work.frames.window("c3", 0, 8, 1))
    assert_close(work.latents.window("c3", 0, 8, 1), expected, atol=2e-3, rtol=2e-3)  # half precision


def test_another_autoencoder_takes_the_place_of_the_last(data, store, bundle, tmp_path):
    data("cache", f"store={store.root}", f"bundle={bundle.root}")
    before = files(store.root / "cache")
    data("cache", f"store={store.root}", f"bundle={bundle_of(tmp_path / 'other', 1).root}")
    after = files(store.root / "cache")
    frames, latents = ({name for name in before if name.startswith(kind)} for kind in ("frames", "latents"))
    assert frames <= after.keys()
    assert not latents & after.keys()
    assert len(after) == len(before)


def test_frames_alone_need_no_bundle(data, store):
    code, _, _ = data("cache", f"store={store.root}", "height=16", "width=32")
    assert code == 0
    assert FrameCache(store, 16, 32).read("c0").shape == (36, 3, 16, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "without bundle=... it needs height=... and width=..."),
        (["height=16", "width=0"], "found width=0, expected 1 or more pixels"),
        (["bundle=nowhere"], "bundle nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line(data, store, words, message):
    code, _, error = data("cache", f"store={store.root}", *words)
    assert (code, message in error) == (2, True)


def test_a_bundle_without_autoencoder_is_told(data, store, tmp_path):
    Bundle(tmp_path / "bundle").save("image", {}, {}, {}, COMMON)
    code, _, error = data("cache", f"store={store.root}", f"bundle={tmp_path / 'bundle'}")
    assert (code, "has no stage 'autoencoder'" in error) == (2, True)
