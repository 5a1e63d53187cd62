"""The leaves of trees: heaps of round blobs that always face the camera."""

import numpy as np

from data_prep.town.mesh import CORNERS, Polygons
from data_prep.town.view import View

# Uneven steps round the circle: still convex, but less like a coin.
_ANGLES = 2 * np.pi * (np.arange(CORNERS) + np.array([0, 0.25, -0.2, 0.1, 0.3, -0.25, 0, 0.2, -0.1, -0.3])) / CORNERS
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], -1).astype(np.float32)


def leaf_polygons(blobs: np.ndarray, view: View) -> tuple[Polygons, np.ndarray]:
    """Turn blobs (rows as in `scenery.Scenery.blobs`) into polygons, far ones first; also returns that order."""
    ahead = view.rotation[:, 2].astype(np.float32)
    order = np.argsort(-(blobs[:, :3] @ ahead), kind="stable")
    blobs = blobs[order]
    right, up = view.rotation[:, 0].astype(np.float32), np.array([0, 0, 1], np.float32)
    outline = _CIRCLE[:, :1] * right + _CIRCLE[:, 1:] * up
    points = blobs[:, None, :3] + blobs[:, 3, None, None] * outline
    count = len(blobs)
    normal, colour = blobs[:, 7:10], blobs[:, 4:7]
    return Polygons(
        points, np.full(count, CORNERS), normal, colour, colour, np.zeros((count, 3), np.float32),
        np.zeros(count, bool), blobs[:, 10].astype(int),
    ), order  # fmt: skip
