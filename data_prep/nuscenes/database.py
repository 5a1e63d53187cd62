"""The devkit's database of a nuScenes version, without the parts that no clip needs."""

from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from nuscenes.nuscenes import NuScenes

from data_prep.nuscenes.records import Row
from data_prep.nuscenes.tables import Fault, read_tables


class Database(NuScenes):
    """NuScenes over rows that were read and checked before, so that its indexing meets no dangling token.

    faults  what was left out
    raises  UserError if a table cannot be read
    """

    def __init__(self, root: Path, version: str, cameras: tuple[str, ...]) -> None:
        self._rows, self.faults = read_tables(root, version, cameras)
        super().__init__(version, str(root), verbose=False)
        del self._rows
        self._pictures: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.sample_data:
            self._pictures[self.get("sample", row["sample_token"])["scene_token"], row["channel"]].append(row)
        self._samples: dict[str, list[Row]] = defaultdict(list)
        for row in self.sample:
            self._samples[row["scene_token"]].append(row)

    @property
    def table_root(self) -> str:
        """Where the devkit looks for tables beyond those of nuScenes itself, as lidarseg.json: they are not needed."""
        return self.dataroot

    def __load_table__(self, table_name: str) -> list[Row]:
        if table_name == "map":
            # The old maps are pictures that no clip needs; the devkit wants one for every log, and its file there.
            return [{"token": "", "filename": "", "log_tokens": [log["token"] for log in self._rows["log"]]}]
        return self._rows.get(table_name, [])

    def pictures(self, scene: str, camera: str) -> list[Row]:
        """Rows of sample_data, in no order."""
        return self._pictures.get((scene, camera), [])

    def samples(self, scene: str) -> list[Row]:
        """Rows of sample, in no order."""
        return self._samples.get(scene, [])

    def faults_of(self, scene: str, camera: str) -> list[Fault]:
        return [fault for fault in self.faults if fault.scene == scene and fault.camera in ("", camera)]


@lru_cache(maxsize=1)
def open_database(root: Path, version: str, cameras: tuple[str, ...]) -> Database:
    """The database, read once a process."""
    return Database(root, version, cameras)
