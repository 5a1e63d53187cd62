"""Reading the Parquet tables of a store: whole columns, or the few rows of one clip of a table of any size.

Every file is opened here. Tables are sorted by clip, so a clip's rows lie side by side, where the index says.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from drivesim.data.recent import Recent
from drivesim.data.remote import Place, join, open_file
from drivesim.data.schema import OPTIONAL, TABLES
from drivesim.errors import UserError

TYPES = {field.name: field.type for schema in TABLES.values() for field in schema}
KEPT_ROWS = 2**18  # decoded rows of a table that a process keeps: 30 MB of frames.parquet


def open_table(root: Place, name: str, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """One of TABLES, nothing of it read but its footer.

    dictionaries  text columns of few values, which are held once
    raises        UserError if the file is missing or damaged, or lacks columns
    """
    path = join(root, f"{name}.parquet")
    with readable(path):
        file = pq.ParquetFile(path if isinstance(path, Path) else open_file(path), read_dictionary=list(dictionaries))
    expected = [column for column in TABLES[name].names if column not in OPTIONAL]
    if missing := [column for column in expected if column not in file.schema_arrow.names]:
        raise UserError(f"{path} lacks {', '.join(missing)}; prepare the store again")
    return file


def read_table(
    root: Place, name: str, columns: Sequence[str] | None = None, dictionaries: Sequence[str] = ()
) -> pa.Table:
    """All rows of one of TABLES, of all columns or some. raises UserError as `open_table` does"""
    wanted = list(columns or TABLES[name].names)
    sure = [column for column in dictionaries if column not in OPTIONAL]
    with open_table(root, name, sure) as file, readable(join(root, f"{name}.parquet")):
        table = file.read([column for column in wanted if column in file.schema_arrow.names])
    return completed(table, wanted, dictionaries).select(wanted)


def completed(table: pa.Table, columns: Sequence[str], dictionaries: Sequence[str] = ()) -> pa.Table:
    """A table with those of OPTIONAL among `columns` that it lacks; texts in `dictionaries` are held once each."""
    for column in (column for column in OPTIONAL if column in columns):
        if column not in table.column_names:
            table = table.append_column(column, pa.repeat(pa.scalar(OPTIONAL[column], TYPES[column]), len(table)))
        if column in dictionaries:
            at = table.column_names.index(column)
            texts = pc.fill_null(table[column].cast(pa.string()), "")
            table = table.set_column(at, column, texts.dictionary_encode())
    return table


@contextmanager
def readable(path: Place) -> Iterator[None]:
    """Turns what pyarrow raises about a file into a UserError of one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not readable ({reason}); prepare the store again") from error


class ClipRows:
    """The rows of single clips in a table that stays on disk, but for the row groups used last.

    Works in forked processes, whose copies of the open file read at places of their own, and in spawned ones, which
    open it again.
    """

    def __init__(self, root: Place, name: str) -> None:
        self.root, self.name = root, name

    def __reduce__(self) -> tuple:
        return ClipRows, (self.root, self.name)

    def of(self, clip: str, start: int, count: int) -> pa.Table:
        """Rows start .. start + count. raises UserError if they are not those of `clip` alone"""
        rows = self._rows(start, count)
        if len(rows) != count or not pc.all(pc.equal(rows["clip"], clip), min_count=0).as_py():
            found = f"rows {start} to {start + count - 1} are not the {count} of clip {clip}"
            raise UserError(f"{join(self.root, self.name)}.parquet: {found}; see `drivesim data verify`")
        return rows.cast(TABLES[self.name])

    def scan(self, column: str) -> Iterator[pa.ChunkedArray]:
        """One column from top to bottom, a row group at a time."""
        for group in range(len(self._begins) - 1):
            yield self._read(group, [column])[column]

    def _rows(self, start: int, count: int) -> pa.Table:
        first, last = np.searchsorted(self._begins, [start, start + count - 1], side="right") - 1
        groups = [self._group(group) for group in range(max(first, 0), min(last + 1, len(self._begins) - 1))]
        table = pa.concat_tables(groups) if groups else TABLES[self.name].empty_table()
        return table.slice(max(start - int(self._begins[first]), 0), count)

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return open_table(self.root, self.name, ["clip"])

    @cached_property
    def _begins(self) -> np.ndarray:
        """Where each row group begins, and the last one ends: int64 [groups + 1]."""
        footer = self._file.metadata
        return np.cumsum([0] + [footer.row_group(i).num_rows for i in range(footer.num_row_groups)])

    @cached_property
    def _group(self) -> Recent[int, pa.Table]:
        largest = int(np.diff(self._begins).max(initial=1))
        return Recent(self._read, max(KEPT_ROWS // largest, 2))

    def _read(self, group: int, columns: list[str] | None = None) -> pa.Table:
        with readable(join(self.root, f"{self.name}.parquet")):
            # By this thread alone: a group is small, and the threads of a forked process are not there.
            wanted = columns or TABLES[self.name].names
            return completed(self._file.read_row_group(group, wanted, use_threads=False), wanted).select(wanted)
