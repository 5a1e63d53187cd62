"""The label check on pictures whose truth is known, with detectors that are told what to find."""

import numpy as np
import pytest
import torch

from drivesim.clip import CLASSES, Layout
from drivesim.errors import UserError
from eval.detectors import Finds, ScriptDetector
from eval.label_check import Rules, check_video, flags, sampled, save_table, window_ranges
from eval.label_sheet import Worst

CAR, PERSON = [0.2, 0.4, 0.4, 0.6], [0.6, 0.4, 0.7, 0.8]
PICTURE = np.zeros((32, 64, 3), np.uint8)


class Told:
    """Finds in picture t what `finds(t)` says; pictures carry their number."""

    about, kinds = "told", {"car": 0, "truck": 0, "pedestrian": 1}

    def __init__(self, finds) -> None:
        self.finds, self.looks = finds, []

    def find(self, frames: np.ndarray) -> list[Finds]:
        numbers = frames[:, 0, 0, 0].tolist()
        self.looks += numbers
        found = [self.finds(t) for t in numbers]
        return [Finds(np.array(b, float).reshape(-1, 4), np.array(kinds, int)) for b, kinds in found]


def numbered(count: int) -> list[np.ndarray]:
    return [np.full_like(PICTURE, t) for t in range(count)]


def asked(frames: int, *kinds: str, boxes=(CAR, PERSON)) -> Layout:
    layout = Layout.unknown(frames, slots=3)
    layout.known[:] = True
    for slot, (kind, box) in enumerate(zip(kinds, boxes, strict=False)):
        layout.boxes[:, slot], layout.classes[:, slot] = torch.tensor(box), CLASSES.index(kind)
    return layout


def check(frames: int, layout: Layout, finds, worst: Worst | None = None):
    detector = Told(finds)
    checks = check_video("v", numbered(frames), layout, 10.0, detector, Rules(), worst or Worst())
    return checks, detector.looks


def test_windows_are_judged_by_themselves_from_frames_spread_over_them():
    checks, looks = check(30, asked(30, "car", "pedestrian"), lambda t: ([CAR], [0]) if t >= 10 else ([], []))
    assert [(c.first, c.frames, c.asked, c.found, c.ok) for c in checks] == [
        (0, 10, 8, 0, False), (10, 10, 8, 4, True), (20, 10, 8, 4, True),
    ]  # fmt: skip
    assert looks == [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28]
    recall, ok = flags(checks)
    assert recall.tolist() == [0.0] * 10 + [0.5] * 20
    assert ok.tolist() == [False] * 10 + [True] * 20


def test_a_find_must_be_of_the_same_kind_and_meet_the_box_by_half():
    shifted = [0.27, 0.4, 0.47, 0.6]  # IoU 0.48
    for finds, found, false in [
        (([CAR], [0]), 4, 0), (([CAR], [1]), 0, 4), (([shifted], [0]), 0, 4), (([CAR, CAR], [0, 0]), 4, 0),
    ]:  # fmt: skip
        ((seen,), _) = check(10, asked(10, "truck"), lambda t, finds=finds: finds)
        assert (seen.asked, seen.found, seen.false) == (4, found, false)


def test_small_boxes_and_classes_that_the_detector_does_not_know_are_not_asked_for():
    small = [0.2, 0.4, 0.25, 0.45]
    ((seen,), _) = check(10, asked(10, "car", boxes=[small]), lambda t: ([small], [0]))
    assert (seen.asked, seen.false) == (0, 0)  # nor is finding it wrong
    ((seen,), _) = check(10, asked(10, "cyclist"), lambda t: ([], []))
    assert seen.asked == 0


def test_a_window_in_which_nothing_is_asked_for_passes_with_an_unknown_recall(tmp_path):
    layout = asked(10, "car")
    layout.known[:] = False
    (checks, _) = check(10, layout, lambda t: ([CAR], [0]))
    assert (checks[0].asked, checks[0].ok, checks[0].false) == (0, True, 4)
    assert np.isnan(flags(checks)[0]).all()
    save_table([(checks[0], 10.0)], tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == "v,0.000,0,10,0,0,4,,true"


def test_the_last_window_takes_what_is_left():
    lengths = [len(window) for window in window_ranges(34, 10.0, 1.0)]
    assert lengths == [10, 10, 14]
    assert [len(window) for window in window_ranges(35, 10.0, 1.0)] == [10, 10, 10, 5]
    assert [len(window) for window in window_ranges(3, 10.0, 1.0)] == [3]
    assert sampled(range(20, 23), 4) == [20, 21, 22]


def test_the_sheet_keeps_the_worst_windows_and_draws_asked_solid_and_found_dashed(tmp_path):
    worst = Worst(most=2)
    check(10, asked(10, "car"), lambda t: ([CAR], [0]), worst=worst)
    assert not worst.save(tmp_path / "sheet.png")  # all is well
    for recall in (0.5, 0.2, 0.9, 0.0):
        worst.offer(recall, f"{recall}", PICTURE, np.array([CAR]), np.array([PERSON]))
    assert [caption for _, _, caption, _ in worst._kept] == ["0.0", "0.2"]
    drawn = worst._kept[0][3].any(-1)
    left, right = (round(384 * x) for x in (CAR[0], PERSON[0]))
    rows = slice(round(192 * 0.4), round(192 * 0.6))
    assert drawn[rows, left].mean() == 1
    assert 0.3 < drawn[rows, right].mean() < 0.7
    assert worst.save(tmp_path / "sheet.png")


class Padded(torch.nn.Module):
    """Answers tensors of one size a frame, as an exported detector does; labels count from 1."""

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        count, height, width = frames.shape[0], frames.shape[2], frames.shape[3]
        box = torch.tensor([0.25 * width, 0.5 * height, 0.5 * width, 1.0 * height])
        scores = torch.tensor([0.9, 0.2, 0.8]).expand(count, 3)
        return box.expand(count, 3, 4), scores, torch.tensor([1, 1, 7]).expand(count, 3)


class Wrong(torch.nn.Module):
    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return frames[:, 0], frames[:, 1, 0], frames[:, 2, 0]


class Single(torch.nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames


def script(module: torch.nn.Module, path) -> str:
    torch.jit.script(module).save(str(path))
    return str(path)


def test_a_torchscript_detector_is_asked_in_pixels_and_by_its_own_labels(tmp_path):
    detector = ScriptDetector(script(Padded(), tmp_path / "d.pt"), {1: "bus"}, 0.5)
    assert dict(detector.kinds) == {"bus": CLASSES.index("bus")}
    finds = detector.find(np.stack(numbered(2)))
    assert len(finds) == 2
    np.testing.assert_allclose(finds[1].boxes, [[0.25, 0.5, 0.5, 1.0]])  # one too faint, one of no class
    assert finds[1].kinds.tolist() == [CLASSES.index("bus")]
    assert ScriptDetector(tmp_path / "d.pt", {}, 0.95).find(np.stack(numbered(1)))[0].boxes.shape == (0, 4)


@pytest.mark.parametrize(("module", "message"), [(Wrong(), "of shapes"), (Single(), "answers Tensor to 2 frames")])
def test_an_answer_of_another_shape_is_one_line(tmp_path, module, message):
    detector = ScriptDetector(script(module, tmp_path / "d.pt"), {}, 0.5)
    with pytest.raises(UserError, match=message) as caught:
        detector.find(np.stack(numbered(2)))
    assert "see docs/labelled_export.md" in str(caught.value)


def test_a_file_that_is_no_torchscript_is_one_line(tmp_path):
    (tmp_path / "d.pt").write_text("weights")
    with pytest.raises(UserError, match="is not a TorchScript file"):
        ScriptDetector(tmp_path / "d.pt", {}, 0.5)
