"""Training windows: pure functions of seed and index, at the right rate, inside their clip."""

import pickle
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data_prep.prepare import main as prepare
from data_prep.source import Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.data.store import ClipStore
from drivesim.data.windows import LAYOUT_FRAMES, VideoPatches, WindowDataset, WindowSpec, collate
from drivesim.errors import UserError

COARSE, FULL, KEYS = WindowSpec(5, 7.5, level=0), WindowSpec(5, 30, level=1), WindowSpec(3, 1.875)


class Recorder:
    """A reader that notes what it was asked for and returns the indices of the frames."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, int]] = []

    def window(self, clip, start, count, stride, rng) -> torch.Tensor:
        self.asked.append((clip, start, count, stride))
        return (start + stride * torch.arange(count)).float()


def dataset(store, specs=(FULL,), seed=0, split="train", reader=None, **kwargs) -> WindowDataset:
    return WindowDataset(store, reader or Recorder(), split, list(specs), seed, **kwargs)


def same(a, b) -> bool:
    tensors = ((a[0], b[0]), *((getattr(a[1], n), getattr(b[1], n)) for n in ("boxes", "classes", "tracks", "night")))
    return a[2] == b[2] and all(torch.equal(x, y) for x, y in tensors)


def test_a_window_is_a_function_of_seed_and_index_alone(small_store):
    one, other = dataset(small_store), dataset(small_store)
    for i in range(10):  # `other` is asked in another order
        assert same(one[i], other[i])
    assert all(same(one[i], other[i]) for i in reversed(range(10)))
    third = dataset(small_store, seed=1)
    assert not all(torch.equal(one[i][0], third[i][0]) for i in range(10))


def test_windows_differ_from_index_to_index(small_store):
    windows = dataset(small_store)
    assert len({(windows[i][0][0].item()) for i in range(100)}) > 10


def test_a_window_lies_in_its_clip_at_the_rate_of_its_spec(small_store):
    reader = Recorder()
    windows = dataset(small_store, [COARSE, FULL, KEYS], reader=reader)
    levels = [windows[i][2] for i in range(300)]
    for (clip, start, count, stride), level in zip(reader.asked, levels, strict=True):
        info = small_store.index.loc[clip]
        assert info["split"] == "train"
        assert start >= 0
        assert start + (count - 1) * stride < info["frames"]
        fps = 1.875 if count == 3 else 30 if level else 7.5
        assert stride == info["fps"] / fps
    strides = {clip: {s for c, _, n, s in reader.asked if c == clip and n == 3} for clip in small_store.clips()}
    assert strides["c0"] == {16}  # 30 frames a second thinned to keyframes
    assert strides["c2"] == {1}  # a clip that holds keyframes only
    assert {c for c, _, n, _ in reader.asked if n == 5} == {"c0", "c1"}


def test_every_start_of_a_clip_is_drawn_and_longer_clips_more_often(small_store):
    reader = Recorder()
    windows = dataset(small_store, reader=reader)
    for i in range(3000):
        windows[i]
    for clip, starts in (("c0", 32), ("c1", 40)):
        drawn = np.bincount([s for c, s, *_ in reader.asked if c == clip], minlength=starts)
        assert len(drawn) == starts
        assert drawn.min() > 0
        share = drawn.sum() / 3000
        assert abs(share - starts / 72) < 4 * (0.25 / 3000) ** 0.5


def test_the_layout_of_a_window_is_that_of_its_frames(small_store):
    reader = Recorder()
    windows = dataset(small_store, [COARSE], reader=reader, slots=2)
    for i in range(5):
        frames, layout, *_ = windows[i]
        whole = small_store.layout(reader.asked[-1][0], slots=2)
        assert torch.equal(layout.boxes, whole.boxes[frames.long()])
        assert layout.classes.shape == (5, 2)


def test_a_clip_of_exactly_one_window_has_one_start(make_store, tmp_path):
    store = make_store(tmp_path, [("train", 17, 30)])
    windows = dataset(store, [COARSE])
    assert all(windows[i][0].tolist() == [0, 4, 8, 12, 16] for i in range(5))
    with pytest.raises(UserError, match=r"no train clip is long enough for a window of 5 frames at 7 fps"):
        dataset(store, [WindowSpec(5, 7)])


@pytest.mark.parametrize("spec", [WindowSpec(50, 30), WindowSpec(4, 1.875 / 4), WindowSpec(2, 60), WindowSpec(2, 20)])
def test_nothing_long_or_fast_enough_is_told(small_store, spec):
    with pytest.raises(UserError, match="no train clip is long enough"):
        dataset(small_store, [spec])


def test_a_split_without_clips_is_told(small_store):
    with pytest.raises(UserError, match="no test clip"):
        dataset(small_store, split="test")


def test_any_rate_will_do_where_none_is_asked_for(small_store):
    reader = Recorder()
    windows = dataset(small_store, [WindowSpec(1, 0)], reader=reader)
    for i in range(200):
        windows[i]
    assert {clip for clip, *_ in reader.asked} == {"c0", "c1", "c2"}
    assert {stride for *_, stride in reader.asked} == {1}


def test_windows_batch_into_one_tensor_a_field(small_store):
    windows = dataset(small_store, [COARSE, FULL], slots=3)
    batch = collate([windows[i] for i in range(4)])
    assert batch.x.shape == (4, 5)
    assert batch.layout.boxes.shape == (4, 5, 3, 4)
    assert batch.level.tolist() == [windows[i][2] for i in range(4)]


def test_captions_travel_with_their_clips(tmp_path):
    for name, caption in (("a", "a road at night"), ("b", "")):
        frames = (Frame(np.zeros((16, 16, 3), np.uint8)) for _ in range(3))
        write_clip(tmp_path, RawClip(name, name, 10.0, "test", "", False, frames, caption=caption), "train")
    merge(tmp_path, {"source": "test"})
    reader = Recorder()
    windows = dataset(ClipStore(tmp_path), [WindowSpec(2, 10)], reader=reader)
    batch = collate([windows[i] for i in range(8)])
    assert batch.captions == [{"a": "a road at night", "b": ""}[clip] for clip, *_ in reader.asked]
    assert set(batch.captions) == {"a road at night", ""}
    assert batch.to("cpu").captions == batch.captions
    assert batch[:3].captions == batch.captions[:3]


def test_worker_processes_give_the_windows_that_this_one_does(small_store):
    windows = dataset(small_store, [COARSE, FULL], reader=VideoPatches(small_store, 32, 48))
    windows[0]  # tables are open before the processes begin
    loader = DataLoader(windows, 2, sampler=range(8), num_workers=2, collate_fn=collate)
    for step, batch in enumerate(islice(loader, 4)):
        expected = collate([windows[2 * step + i] for i in range(2)])
        assert torch.equal(batch.x, expected.x)
        assert torch.equal(batch.layout.boxes, expected.layout.boxes)


def test_a_dataset_pickles_without_what_it_has_read(small_store):
    windows = dataset(small_store, [COARSE, FULL])
    small = len(pickle.dumps(windows))
    assert all(same(windows[i], pickle.loads(pickle.dumps(windows))[i]) for i in range(5))
    assert len(pickle.dumps(windows)) < small + 2000  # the reader's notes


def test_layouts_are_kept_for_as_many_frames_as_memory_is_given(small_store):
    assert dataset(small_store).layout.keep == LAYOUT_FRAMES // 25  # 25.2 frames a clip


def test_windows_are_drawn_as_numpy_draws_by_seconds(small_store):
    reader = Recorder()
    windows = dataset(small_store, reader=reader)
    for i in range(50):
        windows[i]
        rng = np.random.default_rng((0, i))
        rng.integers(1)
        clip = rng.choice(2, p=np.array([32, 40]) / 72)
        assert reader.asked[-1][:2] == (f"c{clip}", rng.integers([32, 40][clip]))


def test_no_window_shows_both_sides_of_a_cut(tmp_path):
    def scene(grey: int, count: int) -> list[np.ndarray]:
        noise = np.random.default_rng(grey).integers(-40, 40, (8, 32, 3)) + grey
        texture = cv2.resize(noise.astype(np.uint8), (256, 64), interpolation=cv2.INTER_CUBIC)
        return [texture[:, t : t + 128] for t in range(count)]

    film = [Frame(picture) for picture in scene(60, 20) + scene(190, 25)]
    write_clip(tmp_path / "films", RawClip("a", "a", 15.0, "test", "", False, iter(film)), "train")
    words = ["source=videos", f"root={tmp_path}/films/clips", f"out={tmp_path}/store", "workers=1", "val_share=0"]
    prepare([*words, "videos.height=32", "videos.width=64", "videos.fps=15", "videos.min_seconds=0.5"])
    store = ClipStore(tmp_path / "store")
    assert len(store.clips()) == 2
    windows = dataset(store, [WindowSpec(5, 15)], reader=VideoPatches(store, 32, 64))
    shown = torch.stack([windows[i][0].mean((1, 2, 3)) > 0 for i in range(60)])  # [window, frame]: the light scene
    assert (shown.any(1) == shown.all(1)).all()
    assert 0 < shown[:, 0].sum() < 60


def test_patches_are_cut_from_the_stored_video(small_store):
    from drivesim.data.video import read_window

    rng = np.random.default_rng(0)
    patch = VideoPatches(small_store, 32, 48).window("c0", 3, 2, 4, rng)
    assert patch.shape == (2, 3, 32, 48)
    video = torch.from_numpy(read_window(small_store.video("c0"), 3, 2, 4)).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = video.unfold(2, 32, 1).unfold(3, 48, 1)[:, :, :, :].permute(2, 3, 0, 1, 4, 5).flatten(0, 1)
    assert (found == patch).flatten(1).all(1).any()


def test_patches_larger_than_the_stored_video_are_refused(small_store):
    with pytest.raises(UserError, match=r"c0 is 64x128.*patches of 128x256"):
        VideoPatches(small_store, 128, 256)
