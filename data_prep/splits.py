"""Which routes are for training, validation and testing: by hash, so it depends on nothing but names and seed."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from data_prep.source import Unit


def split_routes(units: Sequence[Unit], val_share: float, test_share: float, seed: int) -> dict[str, str]:
    """Route -> train, val or test; the routes of each group are shared out separately.

    A share above 0 gets at least one route of a group, as long as one is left for training: validation first. A unit
    whose data says where it belongs is not shared out.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    given = {unit.route: unit.split for unit in units if unit.split}
    for unit in units:
        if unit.route in given:
            continue
        groups[unit.group or unit.route.rstrip("0123456789")].add(unit.route)
    splits: dict[str, str] = {}
    for routes in groups.values():
        ordered = sorted(routes, key=lambda route: hashlib.sha256(f"{seed}:{route}".encode()).digest())
        val = _count(val_share, len(ordered), spare=1)
        test = _count(test_share, len(ordered), spare=1 + val)
        names = ["val"] * val + ["test"] * test + ["train"] * (len(ordered) - val - test)
        splits.update(zip(ordered, names, strict=True))
    return splits | given


def _count(share: float, routes: int, spare: int) -> int:
    wanted = max(1, round(share * routes)) if share > 0 else 0
    return max(0, min(wanted, routes - spare))
