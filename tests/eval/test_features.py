import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

from drivesim.errors import UserError
from eval import features


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum())


def test_frame_features_are_the_networks_own_pooled_maps(drive):
    frame = drive(0, frames=1, size=(224, 224))
    x = (torch.from_numpy(frame).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = features.efficientnet_lite0().extract_features(x).mean((2, 3)).numpy()
    np.testing.assert_allclose(features.frame_features(frame), expected, atol=1e-4)


def test_the_frame_network_recognises_a_photograph():
    """Weights, channel order and normalisation fit together: matplotlib's sample shows an admiral in uniform."""
    with get_sample_data("grace_hopper.jpg") as file:
        photograph = np.array(Image.open(file).convert("RGB"))[None]
    with torch.inference_mode():
        top = features.efficientnet_lite0()._fc(torch.from_numpy(features.frame_features(photograph))).argmax()
    assert int(top) == 652  # ImageNet's "military uniform"


def test_frame_features_do_not_depend_on_the_batch(drive):
    frames = drive(1, frames=11)
    np.testing.assert_allclose(features.frame_features(frames)[9:], features.frame_features(frames[9:]), atol=1e-4)


def test_crops_see_detail_that_resizing_hides(drive):
    sharp = drive(2, frames=2, size=(512, 1024))
    detail = np.clip(sharp + np.random.default_rng(0).normal(0, 12, sharp.shape), 0, 255).astype(np.uint8)
    whole = distance(features.frame_features(sharp), features.frame_features(detail))
    crops = distance(features.crop_features(sharp, 1), features.crop_features(detail, 1))
    assert crops > 2 * whole


def test_crops_lie_at_the_same_places_for_the_same_seed(drive):
    frames = drive(3, frames=2, size=(256, 512))
    np.testing.assert_array_equal(features.crop_features(frames, seed=5), features.crop_features(frames, seed=5))
    assert distance(features.crop_features(frames, seed=5), features.crop_features(frames, seed=6)) > 0


def test_a_frame_smaller_than_a_crop_is_measured_too(drive):
    assert features.crop_features(drive(0, frames=2), crops=3).shape == (6, 1280)


def test_clip_features_notice_frozen_and_shuffled_clips(drive):
    clip = drive(4)
    base = features.clip_features(clip)
    shuffled = clip[np.random.default_rng(0).permutation(16)]
    assert distance(features.clip_features(np.repeat(clip[:1], 16, 0)), base) > 0.01
    assert distance(features.clip_features(shuffled), base) > 0.01
    assert distance(features.clip_features(clip.copy()), base) == 0
    assert base.shape == (512,)


def test_loading_the_clip_network_leaves_random_numbers_and_torch_settings_alone():
    features.transnetv2.cache_clear()
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 the global generator is what the package seeds
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    features.transnetv2()
    assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002
    assert not torch.are_deterministic_algorithms_enabled()


class Detector(torch.nn.Module):
    """The call signature of the FVD network: means of the colours as features."""

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert rescale
        assert resize
        assert return_features
        assert x.shape[1] == 3
        return x.mean((2, 3, 4))


class Inception(torch.nn.Module):
    def forward(self, x, return_features: bool = False):
        assert return_features
        assert x.dtype == torch.uint8
        return x.float().mean((2, 3))


def test_the_standard_networks_are_called_as_they_expect(tmp_path, drive):
    for module, name in ((Detector(), "i3d.pt"), (Inception(), "inception.pt")):
        torch.jit.script(module).save(str(tmp_path / name))
    clip = drive(0)
    fvd = features.i3d_features(features.load_torchscript(tmp_path / "i3d.pt", "fvd_i3d"), clip)
    fid = features.inception_features(features.load_torchscript(tmp_path / "inception.pt", "fid_inception"), clip)
    np.testing.assert_allclose(fvd, clip.reshape(-1, 3).mean(0), rtol=1e-4)
    np.testing.assert_allclose(fid, clip.reshape(16, -1, 3).mean(1), rtol=1e-4)


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(UserError, match=r"fvd_i3d=.*nothing.pt does not exist"):
        features.load_torchscript(tmp_path / "nothing.pt", "fvd_i3d")


def test_a_file_that_is_no_network_is_named(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a TorchScript file"):
        features.load_torchscript(tmp_path / "weights.pt", "fid_inception")


def test_a_clip_is_the_mean_of_its_frames_and_their_mean_change():
    frames, neighbours = np.random.default_rng(0).normal(size=(2, 5, 1280)).astype(np.float32)
    clip = features.change_features(frames, neighbours)
    assert np.allclose(clip[:1280], frames.mean(0))
    assert np.allclose(clip[1280:], np.abs(frames - neighbours).mean(0))
    assert not features.change_features(frames, frames)[1280:].any()
