"""A folder of videos as a source: what becomes a clip, what is dropped and why, and which files are one route."""

import numpy as np
import pytest

from data_prep.scenes import NEIGHBOURS, mark_cuts
from data_prep.source import Dropped, Refused
from data_prep.videos import VideosConfig, VideosSource
from drivesim.errors import UserError


def config(**changes):
    return VideosConfig(**{"height": 32, "width": 64, "fps": 15.0, "clip_seconds": 2.0, "min_seconds": 0.5} | changes)


def contents(source, unit=None):
    """[(name, number of frames)] of the clips, and the reasons of what was dropped, as `prepare` would see them."""
    clips, dropped = [], []
    for piece in source.clips(unit or source.units()[0]):
        if isinstance(piece, Dropped):
            dropped.append(piece.reason)
            continue
        count = 0
        try:
            for frame in piece.frames:
                assert frame.image.shape == (32, 64, 3)
                count += 1
            clips.append((piece.name, count))
        except Refused as reason:
            dropped.append(str(reason))
    return clips, dropped


def cuts(frames):
    return [number for number, (_, starts) in enumerate(mark_cuts(frames)) if starts]


def test_a_hard_cut_is_found_at_its_frame(make_scene):
    assert cuts(make_scene(1, 20) + make_scene(2, 20) + make_scene(3, 20)) == [20, 40]


@pytest.mark.parametrize("every", [1, 3, 5])
def test_fast_driving_is_not_cut(make_scene, every):
    assert cuts(make_scene(1, 60)[::every]) == []


def test_a_bridge_overhead_and_the_glare_behind_it_are_not_cut(make_scene):
    frames = make_scene(1, 40)
    dark = [(frame * 0.3).astype(np.uint8) for frame in frames[10:20]]
    glare = [np.clip(frame * 1.5, 0, 255).astype(np.uint8) for frame in frames[20:25]]
    assert cuts(frames[:10] + dark + glare + frames[25:]) == []


def test_repeated_frames_of_a_slow_recording_are_not_cut(make_scene):
    frames = make_scene(1, 60)[::5]
    assert cuts([frame for frame in frames for _ in range(3)]) == []


def test_a_dark_still_picture_with_noise_is_not_cut():
    rng = np.random.default_rng(0)
    assert cuts([rng.integers(8, 14, (72, 128, 3)).astype(np.uint8) for _ in range(30)]) == []


def test_cuts_are_decided_a_few_frames_ahead(make_scene):
    taken = 0

    def counted():
        nonlocal taken
        for frame in make_scene(1, 40):
            taken += 1
            yield frame

    for given, _ in enumerate(mark_cuts(counted()), start=1):
        assert taken - given <= NEIGHBOURS


def test_a_long_video_is_split_and_the_rest_that_is_too_short_is_dropped(tmp_path, make_video, make_scene):
    make_video(tmp_path / "drive.mp4", make_scene(1, 65))
    clips, dropped = contents(VideosSource(config(), tmp_path))
    assert clips == [("drive_0000", 30), ("drive_0001", 30)]
    assert dropped == ["0.33 s before a cut or the end, shorter than min_seconds=0.5"]


def test_a_clip_never_runs_over_a_cut(tmp_path, make_video, make_scene):
    make_video(tmp_path / "film.mp4", make_scene(1, 20) + make_scene(2, 4) + make_scene(3, 25))
    clips, dropped = contents(VideosSource(config(), tmp_path))
    assert clips == [("film_0000", 20), ("film_0002", 25)]
    assert len(dropped) == 1
    assert "0.27 s" in dropped[0]


def test_frames_not_read_do_not_leak_into_the_next_clip(tmp_path, make_video, make_scene):
    make_video(tmp_path / "film.mp4", make_scene(1, 20) + make_scene(2, 20))
    source = VideosSource(config(), tmp_path)
    read = [list(piece.frames) if piece.name.endswith("1") else [] for piece in source.clips(source.units()[0])]
    assert [len(frames) for frames in read] == [0, 20]


def test_clips_have_the_asked_rate_size_and_no_boxes(tmp_path, make_video, make_scene):
    make_video(tmp_path / "slow.mp4", make_scene(1, 20), rate=10)
    source = VideosSource(config(licence="CC-BY-4.0"), tmp_path)
    pieces = source.clips(source.units()[0])
    piece = next(pieces)
    assert (piece.fps, piece.has_boxes, piece.licence, piece.source) == (15.0, False, "CC-BY-4.0", "slow.mp4")
    frames = list(piece.frames)
    assert len(frames) == 30  # 2 s
    assert all(np.isnan([frame.night, frame.vehicles, frame.speed_mps]).all() for frame in frames)
    assert all(not frame.boxes and frame.pose is None for frame in frames)


def test_a_cut_off_file_is_used_as_far_as_it_goes_and_noted(tmp_path, make_video, make_scene):
    path = make_video(tmp_path / "broken.mp4", make_scene(1, 60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    clips, dropped = contents(VideosSource(config(), tmp_path))
    assert clips[0] == ("broken_0000", 30)
    assert "of 60 promised frames decode" in dropped[-1]


def test_a_text_file_named_mp4_is_dropped_with_its_name(tmp_path):
    (tmp_path / "notes.mp4").write_text("this is no video")
    clips, dropped = contents(VideosSource(config(), tmp_path))
    assert clips == []
    assert len(dropped) == 1
    assert "notes.mp4 is not a readable video" in dropped[0]


def test_files_that_differ_by_a_trailing_number_are_one_route(tmp_path):
    names = [
        "a/drive_0.mp4",
        "a/drive_1.mp4",
        "b/drive_0.mp4",
        "test1.MOV",
        "test2.mov",
        "2024-05-01_1.mkv",
        "007.avi",
        "008.avi",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    routes = {unit.path: unit.route for unit in VideosSource(config(), tmp_path).units()}
    assert routes == {
        "007.avi": "007", "008.avi": "008", "2024-05-01_1.mkv": "2024-05-01", "a/drive_0.mp4": "a/drive",
        "a/drive_1.mp4": "a/drive", "b/drive_0.mp4": "b/drive", "test1.MOV": "test", "test2.mov": "test",
    }  # fmt: skip
    by_folder = {unit.route for unit in VideosSource(config(route_by="folder"), tmp_path).units()}
    assert by_folder == {".", "a", "b"}
    assert len({unit.route for unit in VideosSource(config(route_by="file"), tmp_path).units()}) == len(names)


def test_units_are_sorted_and_named_apart(tmp_path):
    for name in ("b c.mp4", "b_c.mp4", "ä.mp4", "ö.mp4", "z.txt", ".hidden.mp4"):
        (tmp_path / name).touch()
    units = VideosSource(config(), tmp_path).units()
    assert [unit.path for unit in units] == ["b c.mp4", "b_c.mp4", "ä.mp4", "ö.mp4"]
    assert len({unit.name for unit in units}) == 4
    assert all(unit.name.isascii() and " " not in unit.name for unit in units)


def test_a_missing_or_empty_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        VideosSource(config(), tmp_path / "nowhere")
    with pytest.raises(UserError, match="needs root="):
        VideosSource(config(), None)
    with pytest.raises(UserError, match="holds no video"):
        VideosSource(config(), tmp_path).units()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 33}, "33x64.*even"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"min_seconds": 3.0}, "min_seconds is 3.0"),
        ({"route_by": "colour"}, "route_by is 'colour'"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        VideosSource(config(**changes), tmp_path)
