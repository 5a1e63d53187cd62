"""Rows of single clips, read from tables in row groups of any size, against the whole table."""

import os
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivesim.data import tables
from drivesim.data.schema import BOXES
from drivesim.data.tables import ClipRows, open_table, read_table
from drivesim.errors import UserError

COUNTS = {"a": 3, "b": 0, "c": 5, "d": 1, "e": 7}
BEGINS = dict(zip(COUNTS, np.cumsum([0, *COUNTS.values()]), strict=False))


@pytest.fixture(params=[1, 2, 4, 100])
def root(request, tmp_path):
    """boxes.parquet of five clips, in row groups of so many rows."""
    clips = np.repeat(list(COUNTS), list(COUNTS.values()))
    table = pd.DataFrame({name: np.arange(len(clips)) for name in BOXES.names}).assign(clip=clips)
    table["class"] = np.where(clips == "c", "bus", "car")
    rows = pa.Table.from_pandas(table, BOXES, preserve_index=False)
    pq.write_table(rows, tmp_path / "boxes.parquet", row_group_size=request.param)
    return tmp_path


def test_the_rows_of_a_clip_are_those_of_the_whole_table(root):
    whole, rows = read_table(root, "boxes").to_pandas(), ClipRows(root, "boxes")
    for clip in "ecabd":
        found = rows.of(clip, BEGINS[clip], COUNTS[clip]).to_pandas()
        pd.testing.assert_frame_equal(found, whole[whole["clip"] == clip].reset_index(drop=True))


@pytest.mark.parametrize(("clip", "start", "count"), [("a", 0, 4), ("c", 2, 5), ("e", 9, 8), ("x", 0, 3), ("e", 90, 2)])
def test_rows_of_another_clip_are_told(root, clip, start, count):
    found = f"rows {start} to {start + count - 1} are not the {count} of clip {clip}; see `drivesim data verify`"
    with pytest.raises(UserError, match=found):
        ClipRows(root, "boxes").of(clip, start, count)


def test_a_column_is_scanned_from_top_to_bottom(root):
    found = np.concatenate([part.to_numpy() for part in ClipRows(root, "boxes").scan("track")])
    assert np.array_equal(found, np.arange(16))


def test_row_groups_used_last_are_not_read_again_and_no_more_are_kept(root, monkeypatch):
    monkeypatch.setattr(tables, "KEPT_ROWS", 8)
    rows, read = ClipRows(root, "boxes"), []
    real = ClipRows._read
    monkeypatch.setattr(ClipRows, "_read", lambda self, group, *rest: (read.append(group), real(self, group, *rest))[1])
    for _ in range(3):
        rows.of("a", 0, 3)
    assert len(read) == len(set(read))
    largest = int(np.diff(rows._begins).max())
    assert rows._group.keep == max(8 // largest, 2)


def test_a_copy_in_another_process_opens_the_file_itself(root):
    rows = ClipRows(root, "boxes")
    rows.of("a", 0, 3)
    copy = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 500
    assert copy.of("e", 9, 7).equals(rows.of("e", 9, 7))


def test_two_processes_read_one_open_file_at_places_of_their_own(root):
    rows = ClipRows(root, "boxes")
    rows.of("a", 0, 3)
    child = os.fork()
    if child == 0:
        good = all(rows.of("e", 9, 7)["track"].to_pylist() == list(range(9, 16)) for _ in range(50))
        os._exit(0 if good else 1)
    assert all(ClipRows.of(rows, "c", 3, 5)["track"].to_pylist() == [3, 4, 5, 6, 7] for _ in range(50))
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_that_is_damaged_within_is_named_when_it_is_read(root):
    path = root / "boxes.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    open_table(root, "boxes")  # its footer is whole
    with pytest.raises(UserError, match=r"boxes\.parquet is not readable .*; prepare the store again"):
        ClipRows(root, "boxes").of("a", 0, 3)
