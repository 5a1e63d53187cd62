import numpy as np
import pytest

from drivesim.data import video
from drivesim.errors import UserError
from drivesim.generation.mosaic import SCREEN, grid, tiled, write_mosaic
from drivesim.generation.writer import VideoWriter


def write(path, shade: int, frames: int = 5, size=(32, 64)):
    """A video of one grey that gets brighter by 10 a frame."""
    with VideoWriter(path, 10, *size) as writer:
        for t in range(frames):
            writer.write(np.full((*size, 3), shade + 10 * t, np.uint8))
    return path


@pytest.mark.parametrize(
    ("count", "together", "columns"), [(1, 1, 1), (2, 1, 1), (4, 1, 2), (6, 1, 2), (9, 1, 3), (6, 3, 3), (5, 5, 5)]
)
def test_wide_pictures_fill_the_screen(count, together, columns):
    found, (height, width) = grid(count, 512, 1024, together)
    assert found == columns
    rows = -(-count // columns)
    assert rows * height <= SCREEN[0] + rows
    assert columns * width <= SCREEN[1] + columns
    assert (height % 2, width % 2) == (0, 0)


def test_small_pictures_are_not_enlarged():
    assert grid(4, 128, 256) == (2, (128, 256))


def test_every_video_has_its_tile_at_every_moment(tmp_path):
    videos = [write(tmp_path / f"{shade}.mp4", shade) for shade in (20, 80, 140)]
    out = write_mosaic(videos, ["a", "b", "c"], tmp_path / "mosaic.mp4", together=3)
    frames = list(video.iterate(out))
    assert len(frames) == 5
    assert video.probe(out).fps == 10
    for t, frame in enumerate(frames):
        tiles = [frame[10:30, 4 + x + 6 : 4 + x + 58] for x in (0, 68, 136)]
        np.testing.assert_allclose([tile.mean() for tile in tiles], np.array([20, 80, 140]) + 10 * t, atol=3)


def test_captions_and_the_time_stand_under_the_tiles():
    moments = ((np.full((40, 80, 3), 200, np.uint8),) * 2 for _ in range(2))
    first, second = tiled(moments, 2, ["one", "two"], 4.0)
    assert first.shape[0] % 2 == first.shape[1] % 2 == 0
    strips = first[45:56, 4:84], first[45:56, 88:168], second[45:56, 4:84]
    assert all((strip < 100).any() for strip in strips)
    assert (strips[0] != strips[1]).any()  # the captions
    assert (strips[0] != strips[2]).any()  # the times


def test_one_moment_is_in_memory_at_a_time():
    drawn = []

    def moments():
        for t in range(100):
            drawn.append(t)
            yield (np.zeros((8, 16, 3), np.uint8),) * 3

    pictures = tiled(moments(), 3, ["", "", ""], 10)
    next(pictures), next(pictures)
    assert drawn == [0, 1]


def test_a_mosaic_that_exists_is_not_replaced_unasked(tmp_path):
    videos = [write(tmp_path / "a.mp4", 20)] * 2
    (tmp_path / "mosaic.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists"):
        write_mosaic(videos, ["a", "b"], tmp_path / "mosaic.mp4")
    assert (tmp_path / "mosaic.mp4").read_bytes() == b"mine"
    write_mosaic(videos, ["a", "b"], tmp_path / "mosaic.mp4", overwrite=True)
    assert video.probe(tmp_path / "mosaic.mp4").frames == 5
