"""The idea of the paper in one dimension: samples of a batch, independent of each other, become a sequence.

    python docs/align_1d.py [FOLDER]      less than two minutes of one core; writes align_1d.png and align_1d.gif

A "frame" is one number, with two likely values. A small network learns to denoise frames by themselves: the image
model. A batch of T of its samples, put side by side, is noise that is right frame by frame. Then the image model is
frozen, the library's temporal layers are put in after its blocks and trained on smooth sequences: the samples of a
batch align, and each frame by itself is distributed as before. docs/align_1d.md shows it.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from drivesim.diffusion.sampler import sample, window_noise
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion, ScheduleConfig
from drivesim.models.inflation import TemporalConfig, TemporalLayers
from drivesim.models.temporal import sinusoidal

FRAMES, SMOOTH = 32, 5.0  # T, and the frames over which a sequence changes
MODES, SPREAD = (-1.0, 1.0), 0.35  # of the two Gaussians, equally likely, that a frame comes from
SCHEDULE = ScheduleConfig()
DIFFUSION = Diffusion(SCHEDULE)
SHOWN, STEPS = 6, 40  # sequences in the pictures, steps of sampling


def sequences(count: int, generator: torch.Generator) -> Tensor:
    """Smooth sequences [count, FRAMES] of the data: a Gaussian process whose values are bent to the two modes."""
    apart = torch.arange(FRAMES)[:, None] - torch.arange(FRAMES).double()
    covariance = torch.exp(-0.5 * (apart / SMOOTH) ** 2) + 1e-6 * torch.eye(FRAMES)
    normal = torch.randn(count, FRAMES, generator=generator, dtype=torch.double) @ torch.linalg.cholesky(covariance).T
    grid = torch.linspace(-3, 3, 2001, dtype=torch.double)
    share = torch.stack([torch.special.ndtr((grid - mode) / SPREAD) for mode in MODES]).mean(0)
    place = torch.searchsorted(share, torch.special.ndtr(normal)).clamp_max(len(grid) - 1)
    return grid[place].float()


class Block(nn.Module):
    """A residual block of the image model, which sees one frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv_in, self.conv_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(F.silu(self.conv_in(F.silu(self.norm(x)))))


class Network(nn.Module):
    """Velocity [B, T] of noisy frames [B, T] at timesteps [B]: the image model, to which all frames are independent,
    and after `align` the video model."""

    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.width = width
        self.stem, self.head = nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.temporal: TemporalLayers | None = None

    def align(self) -> "Network":
        """Freeze the image model and put temporal layers in after each of its blocks."""
        self.requires_grad_(False)
        kinds = ("conv", "attention")
        sites = [
            (f"block.{i}.{kind}", block, self.width, kind) for i, block in enumerate(self.blocks) for kind in kinds
        ]
        self.temporal = TemporalLayers(sites, 0, 0, 1, config=TemporalConfig(head=False, head_dim=16))
        return self

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        if self.temporal is None:
            return self._frames(z, timestep)
        with self.temporal.running(z.shape[1]):
            return self._frames(z, timestep)

    def _frames(self, z: Tensor, timestep: Tensor) -> Tensor:
        level = sinusoidal(timestep, self.width, TIMESTEPS).repeat_interleave(z.shape[1], 0)
        x = self.stem(z.reshape(-1, 1, 1, 1)) + level[..., None, None]
        for block in self.blocks:
            x = block(x)
        return self.head(x).view_as(z)


def train(network: Network, draw: Callable[[torch.Generator], Tensor], steps: int, label: str) -> None:
    """Velocity loss on batches [B, T] that `draw` makes."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), label):
        x = draw(generator)
        timestep, noise = DIFFUSION.sample_timesteps(len(x), generator), torch.randn(x.shape, generator=generator)
        error = network(DIFFUSION.add_noise(x, noise, timestep), timestep) - DIFFUSION.velocity(x, noise, timestep)
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def generate(network: Network, count: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Sequences [count, FRAMES], and what they were at every step on the way."""
    way: list[Tensor] = []

    def denoise(z: Tensor, timestep: Tensor) -> Tensor:
        way.append(z)
        return network(z, timestep)

    made = sample(denoise, window_noise((count, FRAMES), seed), SCHEDULE, STEPS)
    return made, [*way, made]


def roughness(x: Tensor) -> float:
    """Root mean square change from frame to frame of sequences [N, T]."""
    return float(x.diff(dim=1).square().mean().sqrt())


@dataclass(frozen=True)
class Result:
    """Sequences of the data, of the image model and of the video model, from the same noise."""

    data: Tensor
    image: Tensor
    video: Tensor
    image_way: list[Tensor]
    video_way: list[Tensor]


def run(image_steps: int = 800, temporal_steps: int = 1000, count: int = 512) -> Result:
    """Train both, sample from both."""
    torch.manual_seed(0)
    network = Network()
    train(network, lambda generator: sequences(64, generator).flatten()[:, None], image_steps, "frames")
    image, image_way = generate(network, count)
    train(network.align(), lambda generator: sequences(32, generator), temporal_steps, "sequences")
    video, video_way = generate(network, count)
    return Result(sequences(count, torch.Generator().manual_seed(1)), image, video, image_way, video_way)


def picture(result: Result, path: Path) -> None:
    """Sequences beside the distribution of their frames; a row each for image model, video model and data."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        3, 2, figsize=(8, 6), sharey=True, width_ratios=[4, 1], layout="constrained", gridspec_kw={"wspace": 0.02}
    )
    rows = (
        ("image model: a batch of independent samples", result.image),
        ("video model: the same noise, after temporal fine-tuning", result.video),
        ("data", result.data),
    )
    for (lines, bars), (name, x) in zip(axes, rows, strict=True):
        lines.plot(x[:SHOWN].T, marker=".", markersize=3, linewidth=1)
        lines.set_title(f"{name}: roughness {roughness(x):.2f}", fontsize=9, loc="left")
        bars.hist(x.flatten().numpy(), bins=60, range=(-2.5, 2.5), density=True, orientation="horizontal", color="0.6")
        bars.set_xticks([])
    axes[0, 1].set_title("frames", fontsize=9)
    axes[2, 0].set_xlabel("frame")
    axes[0, 0].set_ylim(-2.5, 2.5)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def animation(result: Result, path: Path) -> None:
    """Both denoisings side by side, step by step."""
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True, layout="constrained")
    ways = (result.image_way, result.video_way)
    for axis, name in zip(axes, ("image model", "video model"), strict=True):
        axis.set(title=name, xlim=(0, FRAMES - 1), ylim=(-3, 3))
    lines = [axis.plot(way[0][:SHOWN].T, linewidth=1) for axis, way in zip(axes, ways, strict=True)]

    def show(step: int) -> Iterator:
        for drawn, way in zip(lines, ways, strict=True):
            for line, values in zip(drawn, way[min(step, STEPS)][:SHOWN], strict=True):
                line.set_ydata(values)
                yield line

    moving = FuncAnimation(figure, lambda step: list(show(step)), frames=STEPS + 15, blit=True)
    moving.save(path, writer=PillowWriter(fps=12), dpi=70)
    plt.close(figure)


def main(folder: Path) -> None:
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    result = run()
    picture(result, folder / "align_1d.png")
    animation(result, folder / "align_1d.gif")
    for name in ("data", "image", "video"):
        x = getattr(result, name)
        print(f"{name}: roughness {roughness(x):.3f}, mean of all frames {x.mean():.3f}, their spread {x.std():.3f}")
    print(f"{folder / 'align_1d.png'}, {folder / 'align_1d.gif'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "align_1d"))
