import cv2
import numpy as np
import pytest
import torch

from drivesim.clip import CLASSES
from eval.detector import OVERALL, SLOTS, Detector, Found, Labelled, Lessons, average_precision, train_detector
from eval.layout import BoxHead, overlap, targets, trunk

CAR, PEDESTRIAN = CLASSES.index("car"), CLASSES.index("pedestrian")


def labelled(boxes, labels, hidden=None, frame=None) -> Labelled:
    hidden = np.zeros(len(labels), bool) if hidden is None else np.array(hidden)
    frame = np.zeros((128, 256, 3), np.uint8) if frame is None else frame
    return Labelled(frame, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, int), hidden)


def finds(boxes, labels, scores) -> Found:
    return Found(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, int), np.array(scores, np.float32))


def random_frame(rng: np.random.Generator) -> tuple[Labelled, Found]:
    """Boxes of two classes, and finds of which some are right, some beside the point and some of the wrong class."""
    corner, size = rng.uniform(0, 0.6, (6, 2)), rng.uniform(0.1, 0.4, (6, 2))
    boxes, labels = np.hstack([corner, corner + size]), rng.choice([CAR, PEDESTRIAN], 6)
    moved = boxes + rng.normal(0, 0.02, boxes.shape)
    other = np.where(rng.random(6) < 0.2, CAR, labels)
    return labelled(boxes, labels), finds(moved, other, rng.random(6))


def reference(truth: list[Labelled], found: list[Found], label: int, iou: float) -> float:
    """Average precision as COCO defines it, by the book: finds from the surest on, each takes the best free box; the
    highest precision at or beyond each of 101 recalls, averaged."""
    free = [list(range(int((given.labels == label).sum()))) for given in truth]
    total = sum(map(len, free))
    rows = sorted(((-s, i, k) for i, f in enumerate(found) for k, s in enumerate(f.scores) if f.labels[k] == label))
    hits = []
    for _, i, k in rows:
        boxes = truth[i].boxes[truth[i].labels == label].astype(float)
        ious = overlap(found[i].boxes[k : k + 1].astype(float), boxes)[0] if len(boxes) else np.zeros(0)
        best = max(free[i], key=lambda j: ious[j], default=None)
        hit = best is not None and ious[best] >= iou
        if hit:
            free[i].remove(best)
        hits.append(hit)
    right = np.cumsum(hits)
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    return float(np.mean([precision[recall >= r - 1e-12].max(initial=0.0) for r in np.linspace(0, 1, 101)]))


def test_average_precision_is_the_one_of_the_definition():
    rng = np.random.default_rng(0)
    truth, found = zip(*(random_frame(rng) for _ in range(12)), strict=True)
    result = average_precision(truth, found)
    for label in (CAR, PEDESTRIAN):
        by_iou = [reference(truth, found, label, iou) for iou in np.arange(0.5, 0.96, 0.05)]
        assert result[CLASSES[label]]["ap50"] == pytest.approx(by_iou[0], abs=1e-6)
        assert result[CLASSES[label]]["ap"] == pytest.approx(np.mean(by_iou), abs=1e-6)
    assert 0.1 < result[OVERALL]["ap"] < 0.9
    assert result[OVERALL]["ap"] == pytest.approx((result["car"]["ap"] + result["pedestrian"]["ap"]) / 2)


def test_the_boxes_themselves_score_one_and_no_finds_score_nothing():
    truth = [labelled([[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.8]], [CAR, PEDESTRIAN])]
    perfect = [finds(truth[0].boxes, truth[0].labels, [0.9, 0.8])]
    assert average_precision(truth, perfect)[OVERALL] == {"ap": pytest.approx(1), "ap50": pytest.approx(1), "boxes": 2}
    nothing = average_precision(truth, [finds([], [], [])])
    assert nothing[OVERALL] == {"ap": 0.0, "ap50": 0.0, "boxes": 2}


def test_hidden_and_tiny_boxes_count_neither_way():
    clear, behind, far = [0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.8], [0.05, 0.9, 0.06, 0.91]
    truth = [labelled([clear, behind, far], [CAR] * 3, [False, True, False])]
    for boxes in ([clear], [behind, clear], [far, clear]):
        found = [finds(boxes, [CAR] * len(boxes), np.linspace(0.9, 0.5, len(boxes)))]
        assert average_precision(truth, found)["car"] == {"ap": pytest.approx(1), "ap50": pytest.approx(1), "boxes": 1}
    wrong = [finds([[0.5, 0.0, 0.9, 0.2], clear], [CAR] * 2, [0.9, 0.5])]
    assert average_precision(truth, wrong)["car"]["ap50"] == pytest.approx(0.5)


def test_frames_with_nothing_to_find_are_refused():
    with pytest.raises(ValueError, match="2 frames without a box"):
        average_precision([labelled([], []), labelled([[0.1, 0.1, 0.4, 0.5]], [CAR], [True])], [finds([], [], [])] * 2)


def test_cells_are_told_the_class_of_the_box_that_owns_them():
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.6, 0.6]], np.float32)
    wanted = targets(boxes, [CAR, PEDESTRIAN], len(CLASSES))
    inside = wanted[PEDESTRIAN].bool()
    assert inside.float().mean() == pytest.approx(0.2 * 0.2, abs=0.01)
    torch.testing.assert_close(wanted[: len(CLASSES)].sum(0), torch.ones(32, 64))
    torch.testing.assert_close(wanted[len(CLASSES) :], targets(boxes)[1:])


def scene(seed: int) -> Labelled:
    """A grey street with a wide blue car and a narrow red pedestrian."""
    rng = np.random.default_rng(seed)
    frame = np.clip(rng.normal(95, 8, (128, 256, 3)), 0, 255).astype(np.uint8)
    x, y, side = int(rng.integers(0, 110)), int(rng.integers(40, 70)), int(rng.integers(30, 50))
    cv2.rectangle(frame, (x, y), (x + 2 * side, y + side), (40, 60, 200), -1)
    u, v, tall = int(rng.integers(215, 230)), int(rng.integers(30, 60)), int(rng.integers(40, 60))
    cv2.rectangle(frame, (u, v), (u + tall // 3, v + tall), (200, 50, 40), -1)
    boxes = np.array([[x, y, x + 2 * side, y + side], [u, v, u + tall // 3, v + tall]]) / (256, 128, 256, 128)
    return labelled(boxes, [CAR, PEDESTRIAN], frame=frame)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons.of([scene(seed) for seed in range(16)], progress=False)


def test_a_detector_learns_to_tell_classes_apart(lessons):
    detector = train_detector(lessons, 150, 0, progress=False)
    test = [scene(seed) for seed in range(100, 108)]
    result = average_precision(test, [detector.detect(trunk(given.frame[None])) for given in test])
    assert result["car"]["ap50"] > 0.8
    assert result["pedestrian"]["ap50"] > 0.8


def test_the_same_seed_gives_the_same_detector_and_leaves_other_random_numbers_alone(lessons):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (train_detector(lessons, 2, seed, progress=False) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    states = [torch.cat([p.flatten() for p in d.parameters()]) for d in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_detector_learns_from_those_lessons_alone_that_it_is_given(lessons):
    among = torch.arange(8)
    part = Lessons([level[:8] for level in lessons.maps], lessons.wanted[:8])
    chosen, alone = train_detector(lessons, 3, 0, among, False), train_detector(part, 3, 0, None, False)
    for a, b in zip(chosen.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_finds_come_from_the_surest_on_and_are_not_too_many():
    torch.manual_seed(0)
    found = Detector().eval().detect(trunk(scene(0).frame[None]))
    assert 0 < len(found.scores) <= SLOTS
    assert (np.diff(found.scores) <= 0).all()
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 1


def test_a_head_of_one_class_is_as_large_as_the_car_finder_of_before():
    assert BoxHead().head[-1].out_channels == 6
