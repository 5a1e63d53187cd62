import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from drivesim.errors import UserError
from drivesim.generation.start import load_start
from drivesim.generation.writer import VideoWriter

H, W = 64, 128


def picture(height: int = H, width: int = W) -> np.ndarray:
    """A smooth picture whose corners differ."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * x, 255 * y, 128 + 0 * x], -1).round().astype(np.uint8)


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def video(path, frames: int, fps: float = 10):
    """Frame i is grey of value 20 + 4 i."""
    with VideoWriter(path, fps, H, W) as writer:
        for i in range(frames):
            writer.write(np.full((H, W, 3), 20 + 4 * i, np.uint8))
    return path


def greys(start: torch.Tensor) -> list[int]:
    return [round((float(frame.mean()) + 1) * 127.5) for frame in start]


def test_none_gives_no_start():
    assert load_start("none", H, W, 1.0) is None


def test_a_picture_of_the_right_size_comes_back_to_the_bit(tmp_path):
    start = load_start(save(tmp_path / "a.png", picture()), H, W, 1.0)
    assert start.shape == (1, 3, H, W)
    assert torch.equal(((start[0] + 1) * 127.5).round().permute(1, 2, 0).byte(), torch.from_numpy(picture()))


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "tif", "ppm", "gif"])
def test_common_formats_are_read(tmp_path, suffix):
    start = load_start(
        save(tmp_path / f"a.{suffix}", picture(), **({"quality": 95} if suffix in "jpg webp" else {})), H, W, 1.0
    )
    expected = torch.from_numpy(picture()).permute(2, 0, 1) / 127.5 - 1
    assert (start[0] - expected).abs().mean() < (0.12 if suffix == "gif" else 0.03)


def test_grey_16_bit_and_palette_pictures_keep_their_brightness(tmp_path):
    ramp = np.linspace(0, 255, W).round().astype(np.uint8)[None].repeat(H, 0)
    expected = torch.from_numpy(ramp) / 127.5 - 1
    save(tmp_path / "grey.png", ramp)
    save(tmp_path / "sixteen.png", ramp.astype(np.uint16) * 257)
    Image.fromarray(ramp).convert("P").save(tmp_path / "palette.png")
    for name in ("grey", "sixteen", "palette"):
        start = load_start(tmp_path / f"{name}.png", H, W, 1.0)
        assert start.shape == (1, 3, H, W)
        assert (start[0] - expected).abs().max() < 0.01, name


def test_transparent_parts_are_black(tmp_path):
    rgba = np.full((H, W, 4), 200, np.uint8)
    rgba[:, : W // 2, 3], rgba[:, W // 2 :, 3] = 0, 255
    start = load_start(save(tmp_path / "a.png", rgba), H, W, 1.0)
    assert (start[..., : W // 2] == -1).all()
    assert (start[..., W // 2 :] == 200 / 127.5 - 1).all()


def test_a_rotated_photo_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned: show it rotated by 90 degrees clockwise
    save(tmp_path / "a.png", np.ascontiguousarray(np.rot90(picture())), exif=exif)
    start = load_start(tmp_path / "a.png", H, W, 1.0)
    assert torch.equal(((start[0] + 1) * 127.5).round().permute(1, 2, 0).byte(), torch.from_numpy(picture()))


def test_another_aspect_is_cropped_about_the_centre_with_a_line(tmp_path, capsys):
    tall = np.zeros((3 * H, W, 3), np.uint8)
    tall[H : 2 * H] = picture()
    start = load_start(save(tmp_path / "a.png", tall), H, W, 1.0)
    assert torch.equal(((start[0] + 1) * 127.5).round().permute(1, 2, 0).byte(), torch.from_numpy(picture()))
    assert "the centre 128x64 of 128x192 pixels (33%)" in capsys.readouterr().err


def test_shrinking_does_not_alias(tmp_path, capsys):
    stripes = np.zeros((H * 8, W * 8, 3), np.uint8)
    stripes[:, ::2] = 255
    start = load_start(save(tmp_path / "a.png", stripes), H, W, 1.0)
    assert start.abs().max() < 0.05
    assert capsys.readouterr().err == ""


def test_a_tiny_picture_is_taken_with_a_warning(tmp_path, capsys):
    load_start(save(tmp_path / "a.png", picture(16, 32)), H, W, 1.0)
    assert "only 32x16 pixels" in capsys.readouterr().err


def test_a_video_gives_its_end_and_the_moment_one_key_frame_earlier(tmp_path):
    assert greys(load_start(video(tmp_path / "a.mp4", 40), H, W, 1.0)) == pytest.approx(
        [20 + 4 * 29, 20 + 4 * 39], abs=2
    )


def test_start_time_chooses_the_moment(tmp_path):
    path = video(tmp_path / "a.mp4", 40)
    assert greys(load_start(path, H, W, 1.0, start_time=2.0)) == pytest.approx([20 + 4 * 10, 20 + 4 * 20], abs=2)
    assert greys(load_start(path, H, W, 1.0, start_time=0.5)) == pytest.approx([20 + 4 * 5], abs=2)
    with pytest.raises(UserError, match=r"choose a time from 0 to 3\.90 s"):
        load_start(path, H, W, 1.0, start_time=4.0)


def test_a_video_shorter_than_a_key_frame_apart_gives_its_last_frame(tmp_path):
    assert greys(load_start(video(tmp_path / "a.mp4", 5), H, W, 1.0)) == pytest.approx([20 + 4 * 4], abs=2)


def bomb(path):
    """A PNG of a few bytes that claims 60000 x 60000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(data)


def broken(path):
    save(path, np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:2000])


CASES = {
    "missing.png": (lambda path: None, "does not exist"),
    "folder.png": (lambda path: path.mkdir(), "is a folder"),
    "text.png": (lambda path: path.write_text("not a picture"), "named like a picture"),
    "text.mp4": (lambda path: path.write_text("not a video"), "not a readable video"),
    "text.txt": (lambda path: path.write_text("hello"), "neither a picture nor a video"),
    "empty.jpg": (lambda path: path.touch(), "named like a picture"),
    "bomb.png": (bomb, "too large"),
    "large.png": (lambda path: save(path, np.zeros((10001, 10000), np.uint8)), "too large"),
    "broken.png": (broken, "damaged picture"),
    "float.tif": (lambda path: save(path, np.zeros((H, W), np.float32)), "no known range"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_start_is_one_clear_line(tmp_path, name):
    make, message = CASES[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        load_start(tmp_path / name, H, W, 1.0)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_moment_of_a_picture_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a picture"):
        load_start(save(tmp_path / "a.png", picture()), H, W, 1.0, start_time=1.0)
