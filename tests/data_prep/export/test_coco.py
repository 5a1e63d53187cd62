"""A store as a COCO data set: what a reader of the format relies on."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from drivesim.clip import CLASSES


@pytest.fixture
def coco(town_store, tmp_path, data):
    """coco("coco.every=5", ...) exports; returns (folder, the document)."""

    def export(*words: str):
        out = tmp_path / "out"
        code, _, error = data("export", f"store={town_store.root}", "format=coco", f"out={out}", *words)
        assert code == 0, error
        return out, json.loads((out / "annotations.json").read_text())

    return export


def test_pictures_and_boxes_are_those_of_the_store_in_pixels(coco, town_store):
    out, document = coco("coco.every=5", "coco.min_visibility=0")
    assert [(row["id"], row["name"]) for row in document["categories"]] == list(enumerate(CLASSES, start=1))
    assert [row["frame"] for row in document["images"] if row["clip"] == "town_0001_CAM_BACK"] == [0, 5, 10, 15, 20]
    by_image: dict[int, list[dict]] = {row["id"]: [] for row in document["images"]}
    for row in document["annotations"]:
        by_image[row["image_id"]].append(row)
    for image in document["images"]:
        assert Image.open(out / "images" / image["file_name"]).size == (image["width"], image["height"]) == (256, 128)
        boxes = town_store.boxes(image["clip"])
        boxes = boxes[boxes["frame"] == image["frame"]].set_index("track")
        assert sorted(row["track_id"] for row in by_image[image["id"]]) == sorted(boxes.index)
        for row in by_image[image["id"]]:
            stored = boxes.loc[row["track_id"]]
            x, y, width, height = row["bbox"]
            corners = np.array([x, y, x + width, y + height]) / [256, 128, 256, 128]
            np.testing.assert_allclose(corners, stored[["x1", "y1", "x2", "y2"]].astype(float), atol=1e-6)
            assert row["area"] == pytest.approx(width * height)
            assert (row["iscrowd"], CLASSES[row["category_id"] - 1]) == (0, stored["class"])
    assert len(document["annotations"]) > 100


def test_ids_are_unique_and_point_at_something(coco):
    _, document = coco("coco.every=10")
    for rows in (document["images"], document["annotations"], document["categories"], document["licenses"]):
        assert len({row["id"] for row in rows}) == len(rows) > 0
    assert {row["image_id"] for row in document["annotations"]} <= {row["id"] for row in document["images"]}
    assert {row["license"] for row in document["images"]} == {row["id"] for row in document["licenses"]}
    assert document["licenses"][0]["name"] == "CC0-1.0"


def test_boxes_that_are_hardly_seen_are_left_out_as_in_training(coco, town_store):
    _, document = coco("coco.every=10")
    tables = [town_store.boxes(clip) for clip in town_store.clips()]
    expected = sum(((table["frame"] % 10 == 0) & (table["visibility"] >= 0.15)).sum() for table in tables)
    assert len(document["annotations"]) == expected
    assert all(row["visibility"] >= 0.15 and math.isfinite(row["visibility"]) for row in document["annotations"])


def test_a_split_of_its_own_can_be_taken(coco):
    out, document = coco("splits=[val]", "coco.every=20")
    assert {image["split"] for image in document["images"]} == {"val"}
    assert {path.parent.name for path in out.rglob("*.jpg")} == {
        f"town_0001_{camera}" for camera in ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK")
    }


def test_pycocotools_reads_it_and_scores_the_boxes_themselves_as_perfect(coco):
    tools = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    out, document = coco("coco.every=10")
    truth = tools.COCO(str(out / "annotations.json"))
    found = truth.loadRes([row | {"score": 1.0} for row in document["annotations"]])
    score = evaluation.COCOeval(truth, found, "bbox")
    score.evaluate()
    score.accumulate()
    score.summarize()
    assert score.stats[0] == pytest.approx(1.0)
