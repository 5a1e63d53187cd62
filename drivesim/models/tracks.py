"""Where the boxes of a layout take their pixels from: a car that is asked for is carried from box to box.

The mean flow of driving (models/motion.py) moves what stands beside the road; a car has a motion of its own, which the
boxes of its track tell exactly: what is seen in its box is what was seen there before, shifted and scaled.
"""

import torch
from torch import Tensor

from drivesim.clip import NO_BOX, Layout
from drivesim.models.motion import SceneFlow, centres, look

EDGE = 0.995  # a box that touches the edge of the picture may be cut off by it: its corners are no corners of the car


class TrackedFlow:
    """Moves pictures by the flow of driving, and boxes along their tracks; sampled bicubically, which blurs less."""

    def __init__(self, flow: SceneFlow) -> None:
        self.flow = flow

    def __call__(self, pictures: Tensor, source: Layout, target: Layout) -> tuple[Tensor, Tensor]:
        """As `SceneFlow.move`."""
        travel, heading = target.travel - source.travel, target.heading - source.heading
        place = self.flow.place(travel, heading, *pictures.shape[-2:])
        return look(pictures, follow(place, source, target), mode="bicubic")


def follow(place: Tensor, source: Layout, target: Layout) -> Tensor:
    """`place` [N, H, W, 2], where pixels come from, inside the boxes of `target` [N] set to where the box of the same
    track lies in `source` [N]; where boxes overlap the nearer one, whose lower edge is lower, hides the other."""
    place, (was, now, paired) = place.clone(), pairs(source, target)
    here = centres(*place.shape[1:3]).to(place)
    columns, rows = here[0, :, 0].contiguous(), here[:, 0, 1].contiguous()
    nearer = now[..., 3].argsort(1)
    for n, slot in ((n, int(slot)) for n, order in enumerate(nearer) for slot in order if paired[n, slot]):
        x1, x2 = torch.searchsorted(columns, now[n, slot, 0::2].contiguous()).tolist()
        y1, y2 = torch.searchsorted(rows, now[n, slot, 1::2].contiguous()).tolist()
        old, new = was[n, slot], now[n, slot]
        scale = (old[2:] - old[:2]) / (new[2:] - new[:2]).clamp_min(1e-4)
        place[n, y1:y2, x1:x2] = old[:2] + (here[y1:y2, x1:x2] - new[:2]) * scale
    return place


def pairs(source: Layout, target: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, S, 4] of source and target, from -1 to 1, by the slots of the target, and which of them are of one
    track, [N, S]: both are given, and neither is cut off by the edge."""
    given = [
        (layout.tracks != NO_BOX) & (layout.classes != NO_BOX) & layout.known[:, None] for layout in (source, target)
    ]
    same = (target.tracks[:, :, None] == source.tracks[:, None]) & given[1][:, :, None] & given[0][:, None]
    was = source.boxes.gather(1, same.int().argmax(-1)[..., None].expand(-1, -1, 4)) * 2 - 1
    now = target.boxes * 2 - 1
    cut = ((was.abs() >= EDGE) | (now.abs() >= EDGE)).any(-1)
    return was, now, same.any(-1) & ~cut
