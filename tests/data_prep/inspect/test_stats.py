"""`drivesim data stats`: figures against counts by hand, and the page of histograms."""

import cv2
import numpy as np
import pytest

from data_prep.inspect.charts import histograms
from data_prep.inspect.stats import breakdown, overview, timed
from drivesim.data.store import ClipStore


def tables(store: ClipStore):
    index, frames, boxes = (store.table(name) for name in ("index", "frames", "boxes"))
    return *timed(index, frames), boxes


def test_figures_are_those_of_the_store_by_split(small_store):
    figures = overview(*tables(small_store))
    assert list(figures) == ["all", "train", "val"]
    assert figures.loc["clips"].tolist() == ["5", "3", "2"]
    assert figures.loc["routes"].tolist() == ["5", "3", "2"]
    assert figures.loc["frames"].tolist() == ["126", "86", "40"]
    assert figures.loc["seconds"].tolist() == ["9.2", "5.9", "3.3"]  # 116 / 30 + 10 / 1.875
    assert figures.loc["boxes"].tolist() == figures.loc["  car"].tolist() == ["126", "86", "40"]
    assert figures.loc["  bus"].tolist() == ["0", "0", "0"]
    assert figures.loc["tracks"].tolist() == ["5", "3", "2"]
    assert figures.loc["vehicles in view", "all"] == "1.00"
    assert set(figures.loc["speed, m/s"]) == {"unknown"}


def test_the_night_share_counts_seconds_not_frames(small_store):
    train = 44 / 30 / (36 / 30 + 44 / 30 + 6 / 1.875)  # 44 of 86 frames, but a quarter of the time
    assert overview(*tables(small_store)).loc["night share", "train"] == f"{train:.2f}"


def test_sizes_and_rates_are_told_with_clips_and_seconds_and_long_lists_end_in_a_sum(small_store):
    index, _, _ = tables(small_store)
    told = breakdown(index)
    assert told.loc[("size", "64x128"), "clips"] == 5
    assert told.loc[("frames a second", "30")].tolist() == [3, pytest.approx(116 / 30, abs=0.05)]
    assert told.loc[("licence", "CC0-1.0"), "clips"] == 5
    many = index.loc[index.index.repeat(4)].assign(source=[f"{i}.mp4" for i in range(20)], licence="")
    told = breakdown(many)
    assert len(told.loc["source"]) == 9
    assert told.loc[("source", "12 more"), "clips"] == 12
    assert told.loc["source", "seconds"].sum() == pytest.approx(many["seconds"].sum(), abs=0.5)
    assert told.loc[("licence", "not given"), "clips"] == 20


def test_every_second_clip_and_box_is_in_its_histogram(small_store):
    index, frames, boxes = tables(small_store)
    panels = histograms(index, frames, boxes).axes
    drawn = [sum(bar.get_height() for bar in panel.patches) for panel in panels]
    seconds = index["seconds"].sum()
    assert drawn == pytest.approx([0, seconds, seconds, len(index), len(boxes), len(boxes)])
    assert [text.get_text() for text in panels[0].texts] == ["unknown"]  # the speed


def test_a_store_without_boxes_and_labels_is_drawn_too(data, make_store, tmp_path):
    make_store(tmp_path / "films", [("train", 4, 30)], boxes=False)
    code, out, _ = data("stats", f"store={tmp_path / 'films'}", f"out={tmp_path / 'stats.png'}")
    assert code == 0
    assert "unknown" in out
    assert np.ptp(cv2.imread(str(tmp_path / "stats.png"))) == 255


def test_the_command_prints_the_table_and_writes_the_page(data, store, tmp_path):
    code, out, _ = data("stats", f"store={store.root}", f"out={tmp_path / 'stats.png'}")
    assert code == 0
    assert "126" in out
    assert "64x128" in out
    assert cv2.imread(str(tmp_path / "stats.png")).shape == (700, 1300, 3)
    code, _, error = data("stats", f"store={store.root}", f"out={tmp_path / 'stats.png'}")
    assert (code, "exists; choose another name" in error) == (2, True)
