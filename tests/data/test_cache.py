"""Caches hold what decoding and encoding would give, and are whole or absent."""

import pickle
import shutil
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from drivesim.clip import from_uint8
from drivesim.data import cache
from drivesim.data.cache import FrameCache, LatentCache
from drivesim.data.video import fit, iterate
from drivesim.errors import UserError
from drivesim.locks import holding


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
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def clips(folder) -> list[str]:
    """Of files that are named CLIP.HASH.SUFFIX."""
    return [name.split(".")[0] for name in files(folder)]


def encoded(frames, clip) -> torch.Tensor:
    return mean_colour(from_uint8(torch.from_numpy(np.array(frames.read(clip)))))


def test_cached_frames_are_the_decoded_ones(store, frames):
    decoded = [fit(picture, (32, 64)).transpose(2, 0, 1) for picture in iterate(store.video("c0"))]
    assert np.array_equal(frames.read("c0"), np.stack(decoded))
    window = frames.window("c0", 2, 3, 4)
    assert_close(window, from_uint8(torch.from_numpy(np.stack(decoded)[[2, 6, 10]])))


def test_every_clip_of_every_split_is_cached_once_and_not_again(frames, monkeypatch):
    assert clips(frames.folder) == ["c0", "c1"]
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
    assert clips(frames.folder) == ["c0"]
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
    assert clips(frames.folder) == []


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


def test_an_interrupted_encoding_loses_one_clip_at_most(store, frames):
    calls = []

    def fails(video):
        calls.append(len(video))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return mean_colour(video)

    latents = LatentCache(store, "a")
    with pytest.raises(KeyboardInterrupt):
        latents.build(frames, fails)
    assert clips(latents.folder / "parts") == ["c0"]
    (latents.folder / "parts" / ".c1.4711.partial.safetensors").write_bytes(b"half")
    again = []
    latents.build(frames, lambda video: again.append(len(video)) or mean_colour(video))
    assert again == [5]
    assert_close(latents.read("c0").float(), encoded(frames, "c0"), atol=1e-3, rtol=1e-3)
    assert files(latents.folder) == ["00000.safetensors", "parts"]
    assert files(latents.folder / "parts") == []


@pytest.fixture
def many(make_store, tmp_path) -> FrameCache:
    store = make_store(tmp_path / "many", [("train", 3 + i, 30) for i in range(5)])
    return FrameCache(store, 16, 32).build(1)


def test_latents_lie_in_files_of_many_clips_each(many, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_CLIPS", 2)
    latents = LatentCache(many.store, "a").build(many, mean_colour)
    held = [sorted(load_file(path)) for path in sorted(latents.folder.glob("*.safetensors"))]
    assert held == [["c0", "c1"], ["c2", "c3"], ["c4"]]
    for clip in many.store.clips():
        assert_close(latents.read(clip).float(), encoded(many, clip), atol=1e-3, rtol=1e-3)


def test_a_file_of_latents_ends_at_its_size_too(many, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 1)
    latents = LatentCache(many.store, "a").build(many, mean_colour)
    assert files(latents.folder) == [f"{i:05d}.safetensors" for i in range(5)] + ["parts"]


def test_two_builds_give_the_same_bytes(many):
    made = []
    for _ in range(2):
        latents = LatentCache(many.store, "a").build(many, mean_colour)
        made.append((latents.folder / "00000.safetensors").read_bytes())
        shutil.rmtree(latents.folder)
    assert made[0] == made[1]


def remade(frames, make_store, monkeypatch, change):
    """The caches of the same store after `change` to the clips; and how many frames were encoded for it."""
    LatentCache(frames.store, "a").build(frames, mean_colour)
    root = frames.store.root
    shutil.rmtree(root / "parts")
    store = make_store(root, change)
    frames = FrameCache(store, 16, 32).build(1)
    calls = []
    latents = LatentCache(store, "a").build(frames, lambda video: calls.append(len(video)) or mean_colour(video))
    return frames, latents, sum(calls)


def test_a_clip_that_was_prepared_anew_is_cached_anew_and_no_other(many, make_store, monkeypatch):
    clips_now = [("train", 3 + i if i != 2 else 9, 30) for i in range(5)]
    frames, latents, calls = remade(many, make_store, monkeypatch, clips_now)
    assert calls == 9
    assert frames.read("c2").shape[0] == latents.read("c2").shape[0] == 9
    for clip in frames.store.clips():
        assert_close(latents.read(clip).float(), encoded(frames, clip), atol=1e-3, rtol=1e-3)
    assert len(clips(frames.folder)) == 5  # the old c2 is gone


def test_clips_that_are_gone_leave_the_cache(many, make_store, monkeypatch):
    frames, latents, calls = remade(many, make_store, monkeypatch, [("train", 3, 30)])
    assert (clips(frames.folder), calls) == (["c0"], 0)
    with pytest.raises(UserError, match="no latents of clip c3; run `drivesim data cache`"):
        latents.window("c3", 0, 1, 1)


def test_a_damaged_file_is_made_again(many):
    latents = LatentCache(many.store, "a").build(many, mean_colour)
    whole = (latents.folder / "00000.safetensors").read_bytes()
    (latents.folder / "00000.safetensors").write_bytes(whole[:-3])
    again = LatentCache(many.store, "a").build(many, mean_colour)
    assert (again.folder / "00000.safetensors").read_bytes() == whole


def test_a_file_of_another_autoencoder_under_this_ones_name_is_not_used(many):
    other = LatentCache(many.store, "b").build(many, lambda video: -mean_colour(video))
    other.folder.rename(other.folder.with_name("latents_a"))
    latents = LatentCache(many.store, "a").build(many, mean_colour)
    assert_close(latents.read("c0").float(), encoded(many, "c0"), atol=1e-3, rtol=1e-3)


def test_latents_that_are_no_numbers_are_refused(many):
    with pytest.raises(UserError, match="no finite numbers of clip c0"):
        LatentCache(many.store, "a").build(many, lambda video: mean_colour(video) * 1e9)


def test_a_window_is_the_same_in_a_worker_process(many):
    latents = LatentCache(many.store, "a").build(many, mean_colour)
    here = latents.window("c4", 1, 3, 2)
    copied = pickle.loads(pickle.dumps(latents))  # as it is handed over to a worker that is started anew
    assert_close(copied.window("c4", 1, 3, 2), here, rtol=0, atol=0)
    assert_close(here, latents.read("c4")[[1, 3, 5]].float(), rtol=0, atol=0)


def test_one_of_two_processes_waits_and_finds_all_done(many):
    latents, frames = LatentCache(many.store, "a"), []
    with holding(latents.folder / ".lock"):
        second = Thread(target=lambda: LatentCache(many.store, "a").build(many, lambda v: frames.append(v) or v))
        second.start()
        assert not frames
        latents._forget()
        for clip in many.store.clips():
            latents._encode(clip, many, mean_colour, 64)
        latents._pack(many.store.clips())
    second.join()
    assert not frames
