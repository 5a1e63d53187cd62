"""A video that lies within a larger file, as the clips of a store lie in its shards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from drivesim.data.remote import Part, Place, open_file
from drivesim.errors import UserError

SEE_VERIFY = "; see `drivesim data verify`"


@dataclass(frozen=True)
class ClipFile:
    """Bytes `offset` to `offset + bytes` of `shard` are the video file `name`."""

    name: str
    shard: Place
    offset: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.name} in {self.shard}"

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def open(self) -> BinaryIO:
        """The video as a file of its own. raises UserError if the shard is missing, cut off or out of reach"""
        end = self.offset + self.bytes
        if isinstance(self.shard, Path):
            self._check(end)
        return Part(open_file(self.shard, end), self.offset, self.bytes, str(self))  # type: ignore[return-value]

    @contextmanager
    def for_ffmpeg(self) -> Iterator[str | BinaryIO]:
        """What PyAV opens: on a local disk FFmpeg reads by itself, which spares going through Python for each block.

        raises  as `open` does
        """
        if isinstance(self.shard, Path):
            end = self.offset + self.bytes
            self._check(end)
            yield f"subfile,,start,{self.offset},end,{end},,:{self.shard.absolute()}"
        else:
            with self.open() as file:
                yield file

    def _check(self, end: int) -> None:
        if not Path(self.shard).is_file():
            raise UserError(f"{self.shard} is missing, which holds {self.name}{SEE_VERIFY}")
        if (size := os.stat(self.shard).st_size) < end:
            raise UserError(f"{self.shard} is cut off: it has {size} bytes, {self.name} ends at {end}{SEE_VERIFY}")
