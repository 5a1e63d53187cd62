"""How the picture moves when the car drives: what is known of the next frames before anything is learned.

A camera that looks ahead sees much the same scene wherever it drives: road below, things beside it, sky above. So the
mean optical flow of a data set, per metre driven and per radian turned, tells for any frame roughly what the next ones
look like; least squares find it within seconds. On held-out drives of the procedural town a frame moved by it is 3 dB
nearer to the frame half a second later than a frame that stands still.
"""

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drivesim.clip import Layout, to_uint8
from drivesim.models.optical_flow import flow

GRID = (32, 64)  # cells of the flow fields
STEPS = 24  # of the integration: about a metre each over the longest window of keyframes
Move = Callable[[Tensor, Layout, Layout], tuple[Tensor, Tensor]]  # as `SceneFlow.move`
NOISE = (1e-3, 1e-3)  # metres and radians between two frames that say nothing: who hardly turns has no field of turning


class SceneFlow(nn.Module):
    """Moves pictures as driving would. Before `fit` everything stands still.

    fields  [2, 2, gh, gw] where a pixel was, relative to where it is, (x, y) in half pictures: per metre driven and per
            radian turned to the right
    """

    fields: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fields", torch.zeros(2, 2, *GRID))

    def fit(self, motions: Tensor, flows: Tensor) -> "SceneFlow":
        """motions [n, 2] metres driven and radians turned between two frames, flows [n, 2, gh, gw] from the later to
        the earlier one, in half pictures: ridge regression for every cell."""
        a, b = motions.double(), flows.double().flatten(1)
        ridge = len(a) * torch.tensor(NOISE, dtype=a.dtype).square().diag()
        self.fields.copy_(torch.linalg.solve(a.T @ a + ridge, a.T @ b).view(2, 2, *GRID))
        return self

    def trace(self, travel: Tensor, heading: Tensor) -> Tensor:
        """Where the pixels of a frame come from that is `travel` [N] metres and `heading` [N] radians later than the
        frame they come from (earlier, if negative): [N, gh, gw, 2] (x, y) from -1 to 1 over the picture.

        Follows the flow in small steps, since it changes along the way.
        """
        place = centres(*GRID).to(travel.device).expand(len(travel), *GRID, 2)
        motion = torch.stack([travel, heading], 1).float() / STEPS
        step = torch.einsum("nm,mchw->nchw", motion, self.fields.float())
        for _ in range(STEPS):
            moved = F.grid_sample(step, place, padding_mode="border", align_corners=False)
            place = place + moved.permute(0, 2, 3, 1)
        return place

    def forward(self, pictures: Tensor, travel: Tensor, heading: Tensor) -> tuple[Tensor, Tensor]:
        """pictures [N, C, H, W] as they look `travel` [N] metres and `heading` [N] radians later; and which pixels of
        the answer the pictures showed, [N, 1, H, W] 0 or 1 (the others are filled from the border)."""
        return look(pictures, self.place(travel, heading, *pictures.shape[-2:]))

    def place(self, travel: Tensor, heading: Tensor, height: int, width: int) -> Tensor:
        """What `trace` finds for every pixel, [N, height, width, 2]."""
        with torch.autocast(travel.device.type, enabled=False):
            shift = (self.trace(travel, heading) - centres(*GRID).to(travel.device)).permute(0, 3, 1, 2)
            shift = F.interpolate(shift, (height, width), mode="bicubic").permute(0, 2, 3, 1)
            return centres(height, width).to(shift.device) + shift

    def move(self, pictures: Tensor, source: Layout, target: Layout) -> tuple[Tensor, Tensor]:
        """pictures [N, C, H, W] of the moments `source` [N] at the moments `target` [N]; as `forward`."""
        return self(pictures, target.travel - source.travel, target.heading - source.heading)


def look(pictures: Tensor, place: Tensor, mode: str = "bilinear") -> tuple[Tensor, Tensor]:
    """What pictures [N, C, H, W] show at `place` [N, H, W, 2] (x, y) from -1 to 1, and which of it they do show."""
    with torch.autocast(pictures.device.type, enabled=False):
        moved = F.grid_sample(pictures.float(), place, mode=mode, padding_mode="border", align_corners=False)
    return moved, (place.abs().amax(-1) <= 1).float()[:, None]


def centres(height: int, width: int) -> Tensor:
    """Middles of cells, [height, width, 2] (x, y) from -1 to 1 over the picture."""
    axes = [(torch.arange(cells) + 0.5) / cells * 2 - 1 for cells in (height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)


def measured_flow(earlier: Tensor, later: Tensor) -> Tensor:
    """Optical flow from the later frame to the earlier one, both [3, H, W] in [-1, 1]:
    [2, gh, gw] (x, y) in half pictures."""
    motion = flow(*(to_uint8(f).permute(1, 2, 0).numpy() for f in (later, earlier)))
    height, width = motion.shape[:2]
    cells = cv2.resize(motion, GRID[::-1], interpolation=cv2.INTER_AREA) * (2 / np.array([width, height], np.float32))
    return torch.from_numpy(cells).permute(2, 0, 1)


class Carrier:
    """Carries known latents to the unknown frames of a window, by way of pixels: a latent does not shift with the
    picture.

    Keeps no weights of its own: `autoencoder` (its encode and decode) and what `move` uses belong to others.
    """

    def __init__(self, autoencoder, move: Move) -> None:
        self.autoencoder, self.move = autoencoder, move

    @torch.no_grad()
    def __call__(self, latents: Tensor, mask: Tensor, layout: Layout) -> Tensor:
        """Unknown frames filled with the known ones before and after them, moved to where they would be: blended by
        nearness where both are there, and where a moved picture reaches over the border, by the other alone.

        latents [B, T, C, h, w], mask, layout [B, T] -> [B, T, C, h, w]; zeros where nothing is known
        """
        out = latents * mask.to(latents)[..., None, None, None]
        todo = [(b, t, ends) for b, t, ends in gaps(mask)]
        if not todo:
            return out
        sources = sorted({(b, s) for b, _, ends in todo for s, _ in ends})
        rows, times = (torch.tensor(axis) for axis in zip(*sources, strict=True))
        pictures = dict(zip(sources, self.autoencoder.decode(latents[rows, times]).float(), strict=True))
        jobs = [(b, t, s, share) for b, t, ends in todo for s, share in ends]
        at, to, frm = (torch.tensor(axis) for axis in list(zip(*jobs, strict=True))[:3])
        moved, seen = self.move(torch.stack([pictures[b, s] for b, _, s, _ in jobs]), layout[at, frm], layout[at, to])
        weight = (seen + 1e-3) * torch.tensor([share for *_, share in jobs]).to(moved).view(-1, 1, 1, 1)
        owner = torch.tensor([i for i, (*_, ends) in enumerate(todo) for _ in ends], device=moved.device)
        total = moved.new_zeros(len(todo), *moved.shape[1:]).index_add_(0, owner, moved * weight)
        total = total / weight.new_zeros(len(todo), *weight.shape[1:]).index_add_(0, owner, weight)
        b, t = (torch.tensor(axis) for axis in list(zip(*todo, strict=True))[:2])
        out[b, t] = self.autoencoder.encode(total).to(out)
        return out


def gaps(mask: Tensor) -> Iterator[tuple[int, int, Sequence[tuple[int, float]]]]:
    """Every unknown frame of windows [B, T] that has known ones: (window, frame, [(known frame, share), ...]) with the
    known frames next to it on either side and how much each counts, by nearness."""
    for b, row in enumerate(mask.bool().tolist()):
        known = [t for t, is_known in enumerate(row) if is_known]
        for t, is_known in enumerate(row):
            before, after = ([s for s in known if s < t][-1:], [s for s in known if s > t][:1])
            if is_known or not known:
                continue
            if before and after:
                share = (t - before[0]) / (after[0] - before[0])
                yield b, t, [(before[0], 1 - share), (after[0], share)]
            else:
                yield b, t, [((before or after)[0], 1.0)]
