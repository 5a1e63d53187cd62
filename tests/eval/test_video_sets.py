import numpy as np
import pytest

from drivesim.errors import UserError
from eval.videos import check_comparable, choose_windows, open_set, windows


def test_a_folder_is_read_in_the_order_of_names(folder_of):
    videos = open_set("real", folder_of("real", [3, 1, 2]))
    assert [video.name for video in videos.videos] == ["drive1", "drive2", "drive3"]
    assert videos.size == (64, 128)
    assert videos.videos[0].frames == 16


def test_a_single_file_is_a_set_of_one(folder_of):
    assert len(open_set("real", folder_of("real", [0]) / "drive0.mp4")) == 1


def test_windows_lie_end_to_end_and_the_rest_is_left_out(tmp_path, drive, write):
    video = open_set("real", write(tmp_path, "clip", drive(0, frames=14))).videos[0]
    found = list(windows(video, 6))
    assert [window.start for window in found] == [0, 6]
    assert found[1].times[0] == pytest.approx(6 / 8)
    whole = next(windows(video, 14)).frames
    np.testing.assert_array_equal(np.concatenate([window.frames for window in found]), whole[:12])


def test_chosen_windows_are_spread_and_hold_the_first(tmp_path, drive, write):
    video = open_set("real", write(tmp_path, "clip", drive(0, frames=40))).videos[0]
    assert choose_windows(video, 4, limit=3) in ([0, 4, 9], [0, 5, 9])
    assert [window.start for window in windows(video, 4, [0, 9])] == [0, 36]


def test_a_lower_rate_takes_every_other_frame(tmp_path, drive, write):
    video = open_set("real", write(tmp_path, "clip", drive(0, frames=16))).videos[0]
    full, half = next(windows(video, 16)).frames, next(windows(video, 8, fps=4)).frames
    np.testing.assert_array_equal(half, full[::2])


@pytest.mark.parametrize("content", [b"", b"not a video at all"])
def test_an_unreadable_file_is_named(folder_of, content):
    folder = folder_of("real", [0])
    (folder / "broken.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.mp4"):
        open_set("real", folder)


def test_a_file_that_breaks_off_is_named(tmp_path, write):
    rng = np.random.default_rng(0)
    path = write(tmp_path, "clip", rng.integers(0, 256, (40, 64, 128, 3)).astype(np.uint8))
    video = open_set("real", path).videos[0]
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle:-4000] = bytes(len(damaged) - 4000 - middle)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"clip\.mp4"):
        list(windows(video, 40))


def test_a_folder_without_videos_is_told(tmp_path):
    with pytest.raises(UserError, match="no videos in"):
        open_set("fake", tmp_path)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"fake=.*does not exist"):
        open_set("fake", tmp_path / "nowhere")


def check(real, fake, length=8, fps=None, resizing=False):
    check_comparable(open_set("real", real), [open_set("fake", fake)], length, fps, resizing)


def test_a_set_is_not_compared_with_itself(folder_of):
    folder = folder_of("real", [0, 1])
    with pytest.raises(UserError, match="same videos"):
        check(folder, folder)


def test_other_sizes_need_to_be_asked_for(folder_of):
    real, fake = folder_of("real", [0, 1]), folder_of("fake", [0, 1], size=(32, 64))
    with pytest.raises(UserError, match=r"32x64, real is 64x128.*resize=true"):
        check(real, fake)
    check(real, fake, resizing=True)


def test_other_rates_need_to_be_asked_for(folder_of, tmp_path, drive, write):
    real = folder_of("real", [0, 1])
    for seed in (0, 1):
        write(tmp_path / "fake", f"drive{seed}", drive(seed, frames=32), fps=16)
    with pytest.raises(UserError, match=r"16 frames a second, real has 8; give fps="):
        check(real, tmp_path / "fake")
    check(real, tmp_path / "fake", fps=8)


def test_too_short_videos_are_told_with_what_to_lower(folder_of):
    with pytest.raises(UserError, match=r"drive0\.mp4 has 16 frames, clip_frames is 20; lower clip_frames"):
        check(folder_of("real", [0, 1]), folder_of("fake", [0, 1]), length=20)


def test_one_window_is_no_distribution(folder_of):
    with pytest.raises(UserError, match="1 windows of 16 frames, at least 2"):
        check(folder_of("real", [0, 1]), folder_of("fake", [0]), length=16)
