import numpy as np
import pytest
import torch
from PIL import Image

from drivesim.clip import CLASSES, Layout
from drivesim.generation.draw import COLOURS, contact_sheet, describe, draw_layout, save_png

BLANK = np.full((128, 256, 3), 77, np.uint8)


def one_box(kind: int = 0, night: float = float("nan")) -> Layout:
    layout = Layout.unknown(slots=2)
    layout.boxes[0] = torch.tensor([0.25, 0.25, 0.75, 0.75])
    layout.classes[0], layout.tracks[0], layout.known[...], layout.night[...] = kind, 3, True, night
    return layout


@pytest.mark.parametrize("kind", range(len(CLASSES)))
def test_a_box_is_drawn_at_its_place_in_the_colour_of_its_class(kind):
    drawn = draw_layout(BLANK, one_box(kind))
    for y, x in ((96, 64), (96, 191), (96, 128), (60, 64), (60, 191)):
        assert np.abs(drawn[y - 1 : y + 2, x - 1 : x + 2].astype(int) - COLOURS[kind]).sum(-1).min() == 0
    assert (drawn[40:90, 80:180] == 77).all()
    assert (BLANK == 77).all()


def test_every_class_has_a_colour_of_its_own():
    assert len(set(COLOURS)) == len(CLASSES)


def test_a_layout_that_asks_for_nothing_draws_no_box():
    layout = Layout.unknown(slots=2)
    layout.known[...] = True
    assert (draw_layout(BLANK, layout) == 77).all()


def test_labels_are_put_in_words_and_unknown_ones_left_out():
    assert describe(one_box()) == ""
    assert describe(one_box(night=0.8)) == "night 0.80"
    assert describe(Layout.unknown(slots=1)) == "boxes unknown"


@pytest.mark.parametrize("shape", [(32, 64, 3), (512, 1024, 3), (8, 8, 3)])
def test_any_size_of_frame_can_be_drawn_on(shape):
    drawn = draw_layout(np.zeros(shape, np.uint8), one_box(night=1.0))
    assert drawn.shape == shape
    assert drawn.any()


def test_a_contact_sheet_holds_the_frames_row_by_row_unchanged():
    frames = [np.full((20, 30, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(frames, columns=3)
    assert sheet.shape == (2 * 24 + 4, 3 * 34 + 4, 3)
    for i in range(5):
        y, x = 4 + i // 3 * 24, 4 + i % 3 * 34
        assert (sheet[y : y + 20, x : x + 30] == 10 * i).all()


def test_captions_stand_below_the_frames():
    sheet = contact_sheet([BLANK] * 2, 2, ["0.0 s", "a caption that is far too long for the frame it belongs to"])
    assert (sheet[4:132, 4:260] == 77).all()
    assert sheet[132:, 4:260].min() < 100
    assert sheet.shape[0] > 136


def test_a_wrong_number_of_captions_is_refused():
    with pytest.raises(ValueError, match="1 captions for 2 frames"):
        contact_sheet([BLANK] * 2, 2, ["one"])


def test_a_saved_png_reads_back_in_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(save_png(picture, tmp_path / "a.png"))), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_note_is_written_beside_the_labels():
    labelled, noted = (draw_layout(BLANK, one_box(night=0.5), note) for note in ("", "8.0 m/s"))
    changed = np.argwhere((labelled != noted).any(-1))
    assert len(changed)
    assert changed[:, 0].max() < 16
