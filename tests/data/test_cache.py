"""Caches hold what decoding and encoding would give, and are whole or absent."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from drivesim.clip import from_uint8
from drivesim.data import cache
from drivesim.data.cache import FrameCache, LatentCache
from drivesim.data.video import fit, iterate


@pytest.fixture
def store(make_store, tmp_path):
    return make_store(tmp_path / "store", [("train", 12, 30), ("val", 5, 1.875)])


@pytest.fixture
def frames(store) -> FrameCache:
    return FrameCache(store, 32, 64).build(1)


def mean_colour(video: torch.Tensor) -> torch.Tensor:
    """An encoder: [N, 3, H, W] -> [N, 3, 1, 2]."""
    return torch.nn.functional.adaptive_avg_pool2d(video, (1, 2))


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_cached_frames_are_the_decoded_ones(store, frames):
    decoded = [fit(picture, (32, 64)).transpose(2, 0, 1) for picture in iterate(store.video("c0"))]
    assert np.array_equal(frames.read("c0"), np.stack(decoded))
    window = frames.window("c0", 2, 3, 4)
    assert_close(window, from_uint8(torch.from_numpy(np.stack(decoded)[[2, 6, 10]])))


def test_every_clip_of_every_split_is_cached_once_and_not_again(frames, monkeypatch):
    assert files(frames.folder) == ["c0.npy", "c1.npy"]
    monkeypatch.setattr(cache, "iterate", lambda *args, **kwargs: pytest.fail("decoded again"))
    frames.build(1)


def test_another_size_is_another_cache(store, frames):
    other = FrameCache(store, 16, 32).build(1)
    assert other.read("c0").shape == (12, 3, 16, 32)
    assert frames.read("c0").shape == (12, 3, 32, 64)


def test_an_interrupted_build_leaves_whole_files_only_and_goes_on(store, monkeypatch):
    real = cache.iterate

    def stops(path, size):
        if path.stem == "c1":
            yield next(iter(real(path, size=size)))
            raise KeyboardInterrupt
        yield from real(path, size=size)

    frames = FrameCache(store, 32, 64)
    monkeypatch.setattr(cache, "iterate", stops)
    with pytest.raises(KeyboardInterrupt):
        frames.build(1)
    assert files(frames.folder) == ["c0.npy"]
    monkeypatch.setattr(cache, "iterate", real)
    assert frames.build(1).read("c1").shape == (5, 3, 32, 64)


def test_a_write_that_fails_leaves_no_half_file(store, monkeypatch):
    def save(path, array):
        path.write_bytes(b"half")
        raise RuntimeError("power cut")

    frames = FrameCache(store, 32, 64)
    monkeypatch.setattr(cache.np, "save", save)
    with pytest.raises(RuntimeError):
        frames.build(1)
    assert files(frames.folder) == []


def test_cached_latents_are_the_encoded_frames_to_half_precision(store, frames):
    latents = LatentCache(store, "a").build(frames, mean_colour, batch=5)
    expected = mean_colour(from_uint8(torch.from_numpy(np.array(frames.read("c0")))))
    assert_close(latents.read("c0").float(), expected, atol=1e-3, rtol=1e-3)
    window = latents.window("c0", 1, 3, 5)
    assert window.dtype == torch.float32
    assert_close(window, expected[[1, 6, 11]], atol=1e-3, rtol=1e-3)


def test_latents_of_another_autoencoder_are_made_anew_and_the_stale_ones_removed(store, frames):
    LatentCache(store, "a").build(frames, mean_colour)
    other = LatentCache(store, "b").build(frames, lambda x: -mean_colour(x))
    assert files(store.root / "cache") == ["frames_32x64", "latents_b"]
    expected = -mean_colour(from_uint8(torch.from_numpy(np.array(frames.read("c1")))))
    assert_close(other.read("c1").float(), expected, atol=1e-3, rtol=1e-3)


def test_mirrored_latents_are_those_of_mirrored_frames_and_lie_beside_the_others(store, frames):
    latents = LatentCache(store, "a").build(frames, mean_colour)
    mirrored = latents.mirrored().build(frames, lambda x: mean_colour(x.flip(-1)))
    assert files(store.root / "cache") == ["frames_32x64", "latents_a", "latents_a_mirrored"]
    assert_close(
        mirrored.window("c0", 1, 3, 2), latents.window("c0", 1, 3, 2).flip(-1)
    )  # means of halves change places
    LatentCache(store, "a").build(frames, mean_colour)
    assert (store.root / "cache" / "latents_a_mirrored").exists()
    LatentCache(store, "b").build(frames, mean_colour)
    assert files(store.root / "cache") == ["frames_32x64", "latents_b"]


def test_latents_are_made_once(store, frames):
    LatentCache(store, "a").build(frames, mean_colour)
    again = LatentCache(store, "a").build(frames, lambda x: pytest.fail("encoded again"))
    assert again.read("c0").shape == (12, 3, 1, 2)


def test_an_encoder_that_fails_leaves_whole_files_only(store, frames):
    calls = []

    def fails(video):
        calls.append(len(video))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return mean_colour(video)

    latents = LatentCache(store, "a")
    with pytest.raises(KeyboardInterrupt):
        latents.build(frames, fails)
    assert files(latents.folder) == ["c0.safetensors"]
    assert latents.build(frames, mean_colour).read("c1").shape == (5, 3, 1, 2)
