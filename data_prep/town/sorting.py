"""Which of two things on the ground hides the other: the order in which a painter has to paint them."""

import numpy as np

from data_prep.town.shadows import footprints

PAIRED_M = 40.0  # beyond, things overlap so little on the picture that plain distance does
TOUCH_M = 0.05
ROUNDS = 6  # longest chain of things side by side that is put right


def nearest_distance(parts: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[p] metres from a point to the nearest point of each part's rectangle."""
    offset = position - parts[:, :2]
    cos, sin = np.cos(parts[:, 2]), np.sin(parts[:, 2])
    along = np.abs(offset[:, 0] * cos + offset[:, 1] * sin) - parts[:, 3]
    aside = np.abs(offset[:, 1] * cos - offset[:, 0] * sin) - parts[:, 4]
    return np.hypot(np.maximum(along, 0), np.maximum(aside, 0))


def object_distance(parts: np.ndarray, objects: np.ndarray, distance: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[p] metres to sort by, the same for all parts of an object; objects [p], 0 for scenery.

    Starts from the nearest point of the object. That is wrong for a cyclist beside the far end of a parked bus, so
    whatever a line on the ground separates from something else, on the camera's side, is brought in front of it.
    """
    nearest = np.full(objects.max(initial=0) + 1, np.inf)
    np.minimum.at(nearest, objects, distance)
    close = np.flatnonzero((objects > 0) & (distance < PAIRED_M))
    if len(close):
        front = _in_front(parts[close], position) & (objects[close][:, None] != objects[close][None])
        for _ in range(ROUNDS):
            behind = np.where(front, nearest[objects[close]][None], np.inf).min(1) - 1e-3
            if (behind >= nearest[objects[close]]).all():
                break
            np.minimum.at(nearest, objects[close], behind)
    return np.where(objects > 0, nearest[objects], distance)


def _in_front(parts: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[a, b] True where part a may hide part b but not the other way round."""
    turn = np.stack([np.cos(parts[:, 2]), np.sin(parts[:, 2]), -np.sin(parts[:, 2]), np.cos(parts[:, 2])], -1)
    axes, half = turn.reshape(-1, 2, 2), parts[:, 3:5]
    corners = footprints(parts)
    # Corners [a, b, corner, axis] of a and the camera [b, axis], both in the frame of b.
    local = np.einsum("abkj,bij->abki", corners[:, None] - parts[None, :, None, :2], axes)
    eye = np.einsum("bj,bij->bi", position - parts[:, :2], axes)
    front = np.zeros((len(parts), len(parts)), bool)
    for sign in (-1, 1):
        outside = (sign * local).min(2) >= half - TOUCH_M  # all of a beyond an edge of b
        across = sign * eye > half  # and the camera too
        front |= (outside & across[None]).any(-1)
        front |= (outside & ~across[None]).any(-1).T  # b has the camera and itself on one side, a on the other
    return front & ~front.T
