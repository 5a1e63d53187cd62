"""The temporal layer that draws: neighbouring frames, moved to where the frame shows the same things, correct it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drivesim.clip import to_uint8
from drivesim.models import optical_flow
from drivesim.models.motion import centres

GAIN = 8.0  # what neighbours say differently is about an eighth as large as the picture


class AlignedNeighbours(nn.Module):
    """Frames [B·T, 3, H, W] -> corrected by the frame before and the frame after, both moved along optical flow.

    What a decoder misses depends on where the grid of latents cuts the picture, and the grid cuts the next frame
    elsewhere, so neighbours know it better, if they are looked up where things have moved to: at driving speed some
    pixels away, each pixel another way. A small network says, pixel by pixel, how much of either neighbour to take.
    It starts with nothing of either: as the image decoder.

    grid  pixels per latent, each way. Coarser than that the image decoder is right, so only what is finer is corrected.
    """

    def __init__(self, grid: int, width: int = 48, fold: int = 2) -> None:
        super().__init__()
        self.grid, self.fold = grid, fold  # fold x fold pixels are channels: a quarter of the work
        self.conv_in = nn.Conv2d(9 * fold**2, width, 3, padding=1)
        self.conv_mid = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, 5 * fold**2, 3, padding=1)  # two shares and three colours
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x [B·T, 3, H, W] in [-1, 1], `frames` consecutive ones belong together -> same shape."""
        before, after = neighbours(x, frames)
        seen = F.pixel_unshuffle(torch.cat([x, GAIN * before, GAIN * after], 1), self.fold)
        hidden = F.silu(self.conv_in(seen.contiguous(memory_format=torch.channels_last)))
        answer = F.pixel_shuffle(self.conv_out(F.silu(self.conv_mid(hidden))), self.fold).to(x.dtype)
        change = answer[:, :1] * before + answer[:, 1:2] * after + answer[:, 2:] / GAIN
        size = self.grid // 2 * 2 + 1
        return x + change - F.avg_pool2d(change, size, 1, size // 2, count_include_pad=False)


def neighbours(x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """What the frame before and the frame after say differently, each moved onto the frame itself: [B·T, 3, H, W]
    both; zero at the ends of a clip and for what comes from outside the picture."""
    clips = x.unflatten(0, (-1, frames))
    early, late = clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1)
    before = (move(early, late) - late).unflatten(0, (-1, frames - 1))
    after = (move(late, early) - early).unflatten(0, (-1, frames - 1))
    return F.pad(before, (0, 0, 0, 0, 0, 0, 1, 0)).flatten(0, 1), F.pad(after, (0, 0, 0, 0, 0, 0, 0, 1)).flatten(0, 1)


def move(source: Tensor, target: Tensor) -> Tensor:
    """Frames [N, 3, H, W] with everything where `target` [N, 3, H, W] has it; target's own pixels where the source
    does not show the place. No gradient passes through the motion."""
    motion = flow(target, source)
    height, width = motion.shape[1:3]
    grid = centres(height, width).to(motion.device) + 2 * motion / torch.tensor([width, height], device=motion.device)
    moved = F.grid_sample(source, grid.to(source.dtype), padding_mode="border", align_corners=False)
    return torch.where((grid.abs() <= 1).all(-1)[:, None], moved, target)


def flow(first: Tensor, second: Tensor) -> Tensor:
    """Where each pixel of `first` [N, 3, H, W] is in `second`: [N, H, W, 2] (x, y) pixels."""
    if first.is_meta:  # shapes alone
        return first.new_empty(len(first), *first.shape[-2:], 2)
    pairs = zip(_pictures(first), _pictures(second), strict=True)
    return torch.from_numpy(np.stack([optical_flow.flow(*pair) for pair in pairs])).to(first.device)


def _pictures(x: Tensor) -> np.ndarray:
    return to_uint8(x.detach()).permute(0, 2, 3, 1).contiguous().cpu().numpy()
