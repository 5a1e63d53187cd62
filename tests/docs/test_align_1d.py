"""The one-dimensional example: aligned sequences of frames that are distributed as before."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch.testing import assert_close

SCRIPT = Path(__file__).parents[2] / "docs" / "align_1d.py"


@pytest.fixture(scope="module")
def align():
    spec = importlib.util.spec_from_file_location("align_1d", SCRIPT)
    module = sys.modules["align_1d"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(align):
    return align.run(image_steps=300, temporal_steps=250, count=256)


def test_temporal_layers_make_sequences_three_times_smoother(align, result):
    assert align.roughness(result.image) > 3 * align.roughness(result.video)
    assert align.roughness(result.video) < 1.3 * align.roughness(result.data)


def test_frames_by_themselves_are_distributed_as_those_of_the_image_model_and_the_data(align, result):
    middle = {name: getattr(result, name)[:, align.FRAMES // 2].numpy() for name in ("image", "video", "data")}
    for other in ("image", "data"):  # frames of different sequences are independent, as the test wants them
        assert ks_2samp(middle["video"], middle[other]).pvalue > 0.01
    assert ks_2samp(middle["video"], torch.randn(256).numpy()).pvalue < 0.01  # and it would tell if they were not


def test_before_training_the_aligned_network_is_the_image_model(align):
    network, (z, timestep) = align.Network(), (torch.randn(4, 8), torch.tensor([0, 300, 600, 999]))
    before = network(z, timestep)
    assert_close(network.align()(z, timestep), before, atol=1e-6, rtol=1e-5)


def test_the_pictures_show_what_was_made(align, result, tmp_path):
    align.picture(result, tmp_path / "a.png")
    align.animation(result, tmp_path / "a.gif")
    assert Image.open(tmp_path / "a.png").size[0] > 500
    assert (tmp_path / "a.png").stat().st_size < 150 << 10
    assert Image.open(tmp_path / "a.gif").n_frames > align.STEPS
