"""Latent diffusion's autoencoder and its video decoder, part by part: `python -m benchmarks.autoencoder`."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks import start
from drivesim.bundle import Bundle
from drivesim.clip import to_uint8
from drivesim.config import option, parse
from drivesim.data.cache import FrameCache
from drivesim.data.store import ClipStore
from drivesim.data.windows import WindowDataset, WindowSpec
from drivesim.errors import UserError
from drivesim.generation.cascade import decode
from drivesim.models.autoencoder import Autoencoder
from drivesim.training import train
from drivesim.training.stages import load_autoencoder
from eval.motion import MotionMeter
from eval.similarity import psnr, stlpips

L1, LPIPS = "reconstruction=l1", ("perceptual=stlpips", "perceptual_weight=0.2")
AUTOENCODERS = {
    "l1": (L1,),
    "l1, perceptual": (L1, *LPIPS),
    "l1, perceptual, critic": (L1, *LPIPS, "adversarial=0.5"),
}
PAPER = ("config.decoder.align=false",)
CONVOLUTIONS = (*PAPER, "config.decoder.temporal.attention=none")
CRITIC = "config.stages.decoder.adversarial=0.1"
DECODERS = {  # on the last autoencoder
    "convolutions": (*CONVOLUTIONS,),
    "convolutions, attention": (*PAPER,),
    "convolutions, attention, video critic": (*PAPER, CRITIC),
    "the same, picture critic too": (*PAPER, CRITIC, "config.stages.decoder.image_adversarial=0.1"),
    "aligned neighbours": ("config.decoder.temporal.convolution=false", "config.decoder.temporal.attention=none"),
}
FPS = 30.0
WINDOW, WINDOWS = 16, 12  # frames, and how many windows of them are held out
SPARSE = 8  # one frame of so many is compared by ST-LPIPS, which takes a tenth of a second
TOLD = 6  # times that PSNR is told along the training


@dataclass
class AutoencoderBenchmark:
    """Train kind=kl with more and more of latent diffusion's losses, then video decoders of several makes on the last
    one, and compare all of them on held-out video. What is finished is not trained again."""

    data: str = option(help="clip store with held-out clips at 30 frames a second")
    out: str = option("runs/autoencoder", "folder of the runs")
    height: int = option(64, "pixels")
    width: int = option(128, "pixels")
    channels: int = option(16, "of the autoencoder's first level")
    steps: int = option(600, "of each autoencoder")
    decoder_steps: int = option(150, "of each video decoder")
    seed: int = option(0, "seed of weights and windows")


def main(argv: Sequence[str]) -> None:
    options = parse(AutoencoderBenchmark, argv, "python -m benchmarks.autoencoder")
    video = held_out(options)
    print("autoencoder | PSNR of training batches, a mean over each sixth of the steps | held out: PSNR, ST-LPIPS")
    for name, recipe in AUTOENCODERS.items():
        run = Path(options.out, name.replace(", ", "_"))
        words = [f"config.stages.autoencoder.{word}" for word in recipe]
        train_stage(options, run, "autoencoder", options.steps, words)
        model = load_autoencoder(Bundle(run / "bundle"))
        told = judge(video, [rebuilt(model, clip) for clip in video])
        curve = " ".join(f"{value:5.2f}" for value in along(run / "autoencoder" / "logs" / "metrics.csv"))
        print(f"  {name:38} {curve} | {told['psnr']:5.2f} {told['stlpips']:.4f}", flush=True)
    print(
        "video decoder on the last of them, held out | PSNR, ST-LPIPS, flicker_dis, PSNR of the change between frames"
    )
    tell("real video", judge(video, video))
    tell("image decoder", told)
    for name, words in DECODERS.items():
        decoder = Path(options.out, "decoder_" + name.replace(", ", "_").replace(" ", "_"))
        if not decoder.exists():
            shutil.copytree(run / "bundle", decoder / "bundle")
        frames = "config.stages.decoder.frames=8"
        recipe = [f"config.stages.decoder.{word}" for word in (L1, *LPIPS)]
        train_stage(options, decoder, "decoder", options.decoder_steps, [frames, *recipe, *words])
        model = load_autoencoder(Bundle(decoder / "bundle"), decoder=True)
        tell(name, judge(video, [rebuilt(model, clip) for clip in video]))
        tell("  its frames one by one", judge(video, [one_by_one(model, clip) for clip in video]))


def train_stage(options: AutoencoderBenchmark, run: Path, stage: str, steps: int, words: list[str]) -> None:
    about = f"config.stages.{stage}"
    train.main([
        "experiment=town", f"data={options.data}", f"out={run}", f"stage={stage}", f"seed={options.seed}",
        f"config.data.height={options.height}", f"config.data.width={options.width}",
        "config.autoencoder.kind=kl", "config.autoencoder.channels=4", "config.denoiser.channels=4",
        f"config.autoencoder.width={options.channels}", "config.autoencoder.blocks=1",
        f"{about}.max_steps={steps}", f"{about}.adversarial_start={steps // 2 if stage == 'autoencoder' else 0}",
        f"{about}.lr=1e-3", f"{about}.batch_size={4 if stage == 'autoencoder' else 1}", *words,
    ])  # fmt: skip


def held_out(options: AutoencoderBenchmark) -> list[Tensor]:
    """Windows [T, 3, H, W] in [-1, 1] of the held-out split. raises UserError if it has none at 30 frames a second"""
    store = ClipStore(options.data)
    frames = FrameCache(store, options.height, options.width).build(1)
    windows = WindowDataset(store, frames, "val", [WindowSpec(WINDOW, FPS)], options.seed)
    return [windows[i][0] for i in range(WINDOWS)]


@torch.no_grad()
def rebuilt(model: Autoencoder, clip: Tensor) -> Tensor:
    """[T, 3, H, W] by way of latents."""
    return torch.stack(list(decode(model, iter(model.encode(clip).float()))))


@torch.no_grad()
def one_by_one(model: Autoencoder, clip: Tensor) -> Tensor:
    """The same with nothing but itself before and after every frame: what is gained so has nothing to do with time."""
    assert model.temporal is not None
    still, latents = model.temporal.window, model.encode(clip)
    return torch.stack([model.decode(z.expand(still, -1, -1, -1), still)[still // 2] for z in latents])


def judge(real: list[Tensor], made: list[Tensor]) -> dict[str, float]:
    """Likeness of frames, motion, and likeness of the changes from frame to frame, means over all."""
    motion = MotionMeter()
    pairs = [(_pixels(a), _pixels(b)) for a, b in zip(real, made, strict=True)]
    for _, fake in pairs:
        motion.add(fake, FPS)
    frames = [(a, b) for true, fake in pairs for a, b in zip(true, fake, strict=True)]
    change = float(np.mean([(a - b).diff(dim=0).square().mean() for a, b in zip(real, made, strict=True)]))
    return {
        "psnr": float(np.mean([min(psnr(a, b), 60.0) for a, b in frames])),
        "stlpips": float(np.mean([stlpips(a, b) for a, b in frames[::SPARSE]])),
        "flicker_dis": motion.result()["flicker_dis"],
        "change": 10 * float(np.log10(4 / change)) if change else float("inf"),
    }


def tell(name: str, told: dict[str, float]) -> None:
    print(
        f"  {name:38} {told['psnr']:5.2f} {told['stlpips']:.4f} {told['flicker_dis']:.5f} {told['change']:5.2f}",
        flush=True,
    )


def along(log: Path) -> Iterator[float]:
    """Mean PSNR of training batches over each sixth of the steps."""
    if not log.is_file():
        raise UserError(f"{log} is missing; choose another out")
    values = pd.read_csv(log)["psnr"].dropna().to_numpy()
    for a, b in pairwise(np.linspace(0, len(values), TOLD + 1).round().astype(int)):
        yield float(values[a:b].mean()) if b > a else float("nan")


def _pixels(clip: Tensor) -> np.ndarray:
    return to_uint8(clip).permute(0, 2, 3, 1).contiguous().numpy()


if __name__ == "__main__":
    start(main, "python -m benchmarks.autoencoder")
