"""Balanced sampling: a tag divides the clips into groups, and each group is drawn from equally often."""

import difflib

import numpy as np
import pandas as pd

from drivesim.clip import CLASSES
from drivesim.data.store import ClipStore
from drivesim.data.where import ALIASES, NIGHT
from drivesim.errors import UserError

# Where a number begins to count as the next group: vehicles in view none, a few, a street's, a jam's; a car that
# stands, creeps, drives through a town, drives on a road.
EDGES = {"night": [NIGHT], "crowdedness": [0.5, 4.0, 10.0], "speed_mps": [0.5, 5.0, 14.0]}
TEXTS = ("weather", "camera", "source", "licence", "route")
CLASS = "class:"  # followed by one of CLASSES: clips that show one, clips that show none


def check_tag(tag: str) -> None:
    """raises UserError if `tag` is no tag; the empty one balances nothing"""
    known = [*EDGES, *ALIASES, *TEXTS, *(CLASS + name for name in CLASSES)]
    if tag and tag not in known:
        close = difflib.get_close_matches(tag, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
        raise UserError(f"balance={tag} is no tag; {hint}")


def groups(store: ClipStore, tag: str) -> np.ndarray:
    """The number of the group of each clip of the index, by its tag: int64 [clips], counted from 0.

    Clips of which the tag is unknown are a group of their own. All are one group for an empty tag.
    raises  UserError if `tag` is no tag
    """
    check_tag(tag)
    if not tag:
        return np.zeros(len(store.index), np.int64)
    if tag.startswith(CLASS):
        known = store.index["has_boxes"].to_numpy()
        return np.where(known, store.holds_class(tag.removeprefix(CLASS)).astype(np.int64), 2)
    values = store.index[ALIASES.get(tag, tag)]
    if tag in TEXTS:
        return pd.factorize(values)[0]
    edges = EDGES[ALIASES.get(tag, tag)]
    return np.where(values.isna(), len(edges) + 1, np.digitize(values, edges))


def shares(seconds: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How likely each clip is drawn, when every group is drawn alike and within one every second: [clips], sum 1.

    seconds [clips] above 0; group [clips]
    """
    together = np.bincount(group, seconds)
    share = seconds / together[group]
    return share / share.sum()
