"""The words of nuScenes: its categories, attributes and levels of visibility, and how it describes a scene."""

import numpy as np

DRAWN = "town"  # value of the index column `source` for pictures that were drawn, not taken
CATEGORIES = {
    "car": ("vehicle.car", "Passenger cars, vans and pick-ups."),
    "truck": ("vehicle.truck", "Vehicles built to carry goods."),
    "bus": ("vehicle.bus.rigid", "Buses; whether they bend is not known, all count as rigid."),
    "pedestrian": ("human.pedestrian.adult", "People on foot; their age is not known, all count as adult."),
    "cyclist": ("vehicle.bicycle", "Bicycles, with their riders if there are any."),
}
ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
VISIBILITIES = {"1": (0.0, 0.4), "2": (0.4, 0.6), "3": (0.6, 0.8), "4": (0.8, 1.0)}  # token -> share seen


def visibility_token(share: float) -> str:
    """Token of the level that a visible share 0..1 falls into; empty where it is unknown (NaN)."""
    if np.isnan(share):
        return ""
    return next((key for key, (_, end) in VISIBILITIES.items() if share < end), "4")


def describe(night: float, weather: str, source: str, synthetic: bool) -> str:
    """A scene in words, as nuScenes has them: "Night, rain, ...". night 0 day .. 1 night, NaN unknown."""
    words = [] if np.isnan(night) else ["night" if night > 0.75 else "dusk" if night > 0.25 else "day"]
    words += [weather] if weather else []
    words += ["synthetic: made by a generative model, not filmed"] if synthetic else []
    words += ["synthetic: drawn by a program, not filmed"] if source == DRAWN and not synthetic else []
    return ", ".join(words).capitalize()


def level(token: str) -> str:
    """v40-60 for token 2."""
    low, high = VISIBILITIES[token]
    return f"v{low * 100:.0f}-{high * 100:.0f}"
