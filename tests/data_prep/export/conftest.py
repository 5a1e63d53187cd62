"""A small town filmed by three cameras."""

import matplotlib
import pytest

from data_prep.town.source import TownConfig, TownSource
from data_prep.writer import merge, write_clip
from drivesim.data.store import ClipStore

matplotlib.use("Agg")
CAMERAS = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK"]


@pytest.fixture(scope="session")
def town_store(tmp_path_factory) -> ClipStore:
    """town_0000 by day to train, town_0001 by night held out: 22 frames at 10 a second of 128x256, three cameras."""
    root = tmp_path_factory.mktemp("town")
    config = TownConfig(routes=2, sparse_routes=0, seconds=2.2, fps=10.0, crowdedness=1.5, cameras=CAMERAS)
    config.height, config.width = 128, 256
    source = TownSource(config)
    for unit in source.units():
        for clip in source.clips(unit):
            write_clip(root, clip, "train" if unit.route == "town_0000" else "val")
    merge(root, {"source": "town"})
    return ClipStore(root)
