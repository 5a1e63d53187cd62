"""A store that a test may damage."""

import shutil

import pytest

from drivesim.data.store import ClipStore


@pytest.fixture
def store(small_store, tmp_path) -> ClipStore:
    """c0, c1, c2 to train, c3, c4 held out; night is 1 in c1 and c3; one car, one vehicle, speed unknown."""
    return ClipStore(shutil.copytree(small_store.root, tmp_path / "store"))
