"""Town to nuScenes and back: what `source=nuscenes` reads from an export is what the store said."""

import numpy as np
import pytest

from data_prep.export.command import main
from data_prep.prepare import PrepareConfig, make_source
from data_prep.writer import merge, write_clip
from drivesim.data.store import ClipStore
from drivesim.data.video import read_window

CAMERAS = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK"]
KEPT = 21  # frames up to the last key frame, of 22


@pytest.fixture(scope="module")
def again(town_store, tmp_path_factory) -> ClipStore:
    folder = tmp_path_factory.mktemp("again")
    main([f"store={town_store.root}", "format=nuscenes", f"out={folder / 'tree'}"])
    config = PrepareConfig(str(folder / "store"), "nuscenes", str(folder / "tree"))
    config.nuscenes.version, config.nuscenes.cameras = "v1.0-drivesim", CAMERAS
    config.nuscenes.height, config.nuscenes.width, config.nuscenes.fps, config.nuscenes.min_seconds = (
        128,
        256,
        10.0,
        1.0,
    )
    source = make_source(config)
    for unit in source.units():
        for clip in source.clips(unit):
            write_clip(folder / "store", clip, unit.split)
    merge(folder / "store", {"source": "nuscenes"})
    return ClipStore(folder / "store")


def pairs(town_store, again):
    """(clip of the town, clip of the same camera and route read from the export)."""
    by_camera = {(row.route, row.camera): clip for clip, row in again.index.iterrows()}
    return [(clip, by_camera[row.route, row.camera]) for clip, row in town_store.index.iterrows()]


def test_cameras_and_pictures_come_back(town_store, again):
    for old, new in pairs(town_store, again):
        before, after = town_store.frames(old)[:KEPT], again.frames(new)
        assert len(after) == KEPT
        moved = before[["x_m", "y_m", "z_m"]].to_numpy() - after[["x_m", "y_m", "z_m"]].to_numpy()
        np.testing.assert_allclose(moved, moved[:1].repeat(KEPT, 0), atol=1e-9)
        assert np.allclose(moved[0], np.round(moved[0]))  # whole metres: the corner of the map
        for columns in (["qw", "qx", "qy", "qz"], ["fx", "fy", "cx", "cy"]):
            np.testing.assert_allclose(after[columns], before[columns], atol=1e-9)
        shown, were = (read_window(store.video(clip), 0, KEPT) for store, clip in ((again, new), (town_store, old)))
        assert np.abs(shown.astype(float) - were).mean() < 3  # JPEG and H.264 once more
        assert again.row(new)["split"] == town_store.row(old)["split"]
        assert (again.row(new)["night"] > 0.5) == (town_store.row(old)["night"] > 0.5)


def test_boxes_of_key_frames_come_back(town_store, again):
    compared = 0
    for old, new in pairs(town_store, again):
        found = again.boxes(new)
        boxes = town_store.boxes(old).rename(columns={"class": "name"})
        for row in boxes.itertuples():
            if row.frame % 5 or row.frame >= KEPT or (row.x2 - row.x1) * 256 < 4.5 or (row.y2 - row.y1) * 128 < 4.5:
                continue  # interpolated, or too small for one of the two
            there = found[found["frame"] == row.frame]
            off = np.linalg.norm(there[["x_m", "y_m", "z_m"]].to_numpy() - [row.x_m, row.y_m, row.z_m], axis=1)
            same = there.iloc[off.argmin()]
            assert off.min() < 2e-5
            assert same["class"] == row.name
            np.testing.assert_allclose(
                same[["x1", "y1", "x2", "y2"]].to_numpy(float), [row.x1, row.y1, row.x2, row.y2], atol=1e-5
            )
            np.testing.assert_allclose(np.exp(1j * same["yaw"]), np.exp(1j * row.yaw), atol=1e-5)
            compared += 1
    assert compared > 100
