"""What is known before anything is learned, against what was learned: `python -m benchmarks.closed_forms`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import start
from drivesim.clip import SPEED_MPS, Layout, from_uint8
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion
from drivesim.errors import UserError
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.models.conditioning import label_features, rasterise
from drivesim.models.prior import GaussianPrior
from drivesim.training.stages import PRIOR_FRAMES

APART_S = 0.5
COMPONENTS = (1, 64, 256)
TIMES_S = (0.13, 0.53, 1.07, 2.13, 3.73)
Guess = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # noisy z, planes, alpha, sigma -> latents


@dataclass
class ClosedFormsBenchmark:
    """Compare the closed-form denoiser with the trained image network, and the mean flow of driving with a still
    picture, both on held-out clips."""

    bundle: str = option(help="folder of trained stages, made by `drivesim train`")
    data: str = option(help="the clip store it was trained on; its held-out split is denoised")
    real: str = option(help="a clip store of other drives; their first frames are driven on")
    seed: int = option(0, "seed of the noise")


@dataclass
class Latents:
    """Frames of a split, half a second apart. x [n, C, h, w], planes [n, 1, P, 1, 1] of their labels, layout [n]."""

    x: Tensor
    layout: Layout

    @property
    def labels(self) -> Tensor:
        return rasterise(self.layout, 1, 1)[:, None]


def main(argv: Sequence[str]) -> None:
    options = parse(ClosedFormsBenchmark, argv, "python -m benchmarks.closed_forms")
    pipeline = DrivingPipeline.from_pretrained(options.bundle, tuned_decoder=False, upsampler=False)
    print("guess of the latents from noisy ones, all noise levels | mean squared error")
    for name, error in denoising(pipeline, ClipStore(options.data), options.seed):
        print(f"  {name:45} {error:.4f}", flush=True)
    print("PSNR to the true frame, dB: seconds later | still | driven on")
    for seconds, still, driven in driving(pipeline, ClipStore(options.real)):
        print(f"  {seconds:4.2f}  {still:5.2f}  {driven:5.2f}", flush=True)


def frames(pipeline: DrivingPipeline, store: ClipStore, split: str) -> Latents:
    """raises UserError where the split is empty"""
    if not store.clips(split):
        raise UserError(f"{store.root} has no {split} clips; prepare it with val_share above 0")
    latents, layouts = [], []
    for clip in store.clips(split):
        stride = max(round(float(store.index.loc[clip].fps) * APART_S), 1)
        size = (pipeline.low_height, pipeline.low_width)
        video = [f for i, f in enumerate(iterate(store.video(clip), size=size)) if i % stride == 0]
        pictures = torch.stack([from_uint8(torch.from_numpy(f)).permute(2, 0, 1) for f in video])
        with torch.no_grad():
            latents.append(pipeline.autoencoder.encode(pictures).float())
        layouts.append(store.layout(clip, pipeline.slots)[torch.arange(len(video)) * stride])
    return Latents(torch.cat(latents), Layout.cat(layouts))


def denoising(pipeline: DrivingPipeline, store: ClipStore, seed: int) -> Iterator[tuple[str, float]]:
    """(what guesses, its mean squared error) on the held-out split, every frame at a noise level of its own."""
    known, held_out = frames(pipeline, store, "train"), frames(pipeline, store, "val")
    picked = torch.linspace(0, len(known.x) - 1, min(len(known.x), PRIOR_FRAMES)).long()
    features = label_features(known.labels[picked])[:, 0]
    diffusion, generator = Diffusion(pipeline.schedule), torch.Generator().manual_seed(seed)
    count = len(held_out.x)
    timestep = ((torch.randperm(count, generator=generator) + 0.5) / count * TIMESTEPS).long()
    x = held_out.x[:, None]
    noise = torch.randn(x.shape, generator=generator)
    z, (alpha, sigma) = diffusion.add_noise(x, noise, timestep), diffusion.coefficients(timestep, x)

    def error(guess: Tensor) -> float:
        return float((guess - x).square().mean())

    spread = pipeline.image.latent_std[:, None, None]
    yield "spread of each channel", error(alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * z)
    for components in COMPONENTS:
        prior = GaussianPrior(x.shape[2], x.shape[3], x.shape[4], components).fit(known.x[picked], features)
        guess = prior.posterior(z, held_out.labels, alpha, sigma)
        yield f"Gaussian of frames, {components} components", error(guess)
    yield "image network of the bundle", error(_by_network(pipeline, diffusion, held_out.layout, z, timestep))


@torch.no_grad()
def _by_network(pipeline: DrivingPipeline, diffusion: Diffusion, layout: Layout, z: Tensor, timestep: Tensor) -> Tensor:
    guesses = []
    for part in torch.arange(len(z)).split(32):
        planes, tokens = pipeline.image.condition(layout[part].map(lambda t: t[:, None]), *z.shape[-2:])
        velocity = predict_velocity(pipeline.image, diffusion, z[part], timestep[part], planes, tokens)
        alpha, sigma = diffusion.coefficients(timestep[part], z[part])
        guesses.append(alpha * z[part] - sigma * velocity)
    return torch.cat(guesses)


def driving(pipeline: DrivingPipeline, store: ClipStore) -> Iterator[tuple[float, float, float]]:
    """(seconds, PSNR of the first frame as it is, PSNR of it driven on), mean over the clips that are long enough."""
    fps = pipeline.fps / pipeline.interpolate.factor
    rows: dict[int, list[tuple[float, float]]] = {round(t * fps): [] for t in TIMES_S}
    for clip in store.clips():
        size = (pipeline.low_height, pipeline.low_width)
        video = [
            from_uint8(torch.from_numpy(f)).permute(2, 0, 1) for f in iterate(store.video(clip), fps=fps, size=size)
        ]
        stored = store.layout(clip, pipeline.slots)
        rate = float(store.index.loc[clip].fps)
        stored = stored.driven(torch.arange(stored.num_frames) / rate, SPEED_MPS)
        for later, found in rows.items():
            at = round(later * rate / fps)
            if later >= len(video) or at >= stored.num_frames:
                continue
            travel, heading = (way[at] - way[0] for way in (stored.travel, stored.heading))
            driven = pipeline.keyframes.flow(video[0][None], travel[None], heading[None])[0][0]
            found.append((_psnr(video[0], video[later]), _psnr(driven, video[later])))
    for later, found in rows.items():
        if found:
            still, driven_on = torch.tensor(found).mean(0).tolist()
            yield later / fps, still, driven_on


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


if __name__ == "__main__":
    start(main, "benchmarks.closed_forms")
