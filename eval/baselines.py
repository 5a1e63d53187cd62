"""The sets a bundle is judged by: what it makes of held-out clips, and what simpler methods make of the same ones.

Every set is a folder of lossless videos named like the clips they continue, made clip by clip under temporary names:
an interrupted run goes on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from drivesim.clip import Layout, from_uint8, to_uint8
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.diffusion.sampler import window_noise
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.generation import cascade
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import sample_frames

Frames = Iterator[Tensor]  # [3, H, W] in [-1, 1]


@dataclass(frozen=True, eq=False)
class Case:
    """A held-out clip from its first frame on.

    video   [T, 3, h, w] in [-1, 1], the true continuation at the working resolution
    layout  [T'] at the full frame rate
    seed    of everything that is made for it
    """

    name: str
    video: Tensor
    layout: Layout
    seed: int


def continuation_sets(
    pipeline: DrivingPipeline,
    store: ClipStore,
    out: Path,
    clips: int,
    frames: int,
    seed: int,
    split: str | None = None,
    seeds: int = 1,
) -> dict[str, Path]:
    """Continuations, `frames` long, of held-out clips after one start frame, steered by the clips' own layouts, at the
    rate of the first interpolation.

    real                 what really happened
    ours                 keyframes and interpolation
    frozen_start         the start frame held still
    driven_start         the start frame moved by the mean flow of driving, as far as the car drives
    carried_start        where keyframes are told more (`temporal.motion=tracks`): the start frame moved just as for
                         them, which is all that is known without a network
    image_ldm_per_frame  every frame by itself from the image LDM, same boxes
    cross_fade           image LDM frames at the keyframes, cross-faded; the first is the start frame
    autoencoder          the true video through the autoencoder: the ceiling of every latent model

    seeds  makes `ours` and `image_ldm_per_frame` again with other noise, as ours_seed1 and so on: how much is chance?
    raises  UserError if no clip of the store is long enough
    """
    fps = pipeline.key_fps * pipeline.interpolate.factor
    makers: dict[str, Callable[[Case], Frames]] = {
        "real": lambda case: iter(case.video),
        "ours": lambda case: continued(pipeline, case, frames),
        "frozen_start": lambda case: iter(case.video[:1].expand(frames, -1, -1, -1)),
        "driven_start": lambda case: _driven(pipeline, case, frames),
        "image_ldm_per_frame": lambda case: per_frame(pipeline, case, frames),
        "cross_fade": lambda case: _cross_fade(pipeline, case, frames),
        "autoencoder": lambda case: rebuilt(pipeline, case),
    }
    if pipeline.keyframes.temporal.config.motion != "mean":  # type: ignore[union-attr]
        makers["carried_start"] = lambda case: _carried(pipeline, case, frames)
    for i in range(1, seeds):
        for name, make in (("ours", continued), ("image_ldm_per_frame", per_frame)):
            makers[f"{name}_seed{i}"] = partial(_with_other_noise, make, i, pipeline, frames)
    names = long_enough(store, frames / fps, split)[:clips]
    cases = (load_case(pipeline, store, name, fps, frames, 1000 * seed + i) for i, name in enumerate(names))
    return write_sets(makers, cases, len(names), out, fps)


def decoder_sets(
    tuned: DrivingPipeline, untuned: DrivingPipeline, store: ClipStore, out: Path, clips: int, frames: int = 48
) -> dict[str, Path]:
    """Reconstructions of real video at the full rate by the image decoder and by the temporally tuned one."""
    names = [n for n in long_enough(store, frames / tuned.fps, "val") if store.index.loc[n].fps == tuned.fps][:clips]
    if not names:
        raise UserError(f"{store.root} has no held-out clip at {tuned.fps:g} fps of {frames} frames")
    makers: dict[str, Callable[[Case], Frames]] = {
        "real": lambda case: iter(case.video),
        "decoder_untuned": lambda case: rebuilt(untuned, case),
        "decoder_tuned": lambda case: rebuilt(tuned, case),
    }
    cases = (load_case(tuned, store, name, tuned.fps, frames, i) for i, name in enumerate(names))
    return write_sets(makers, cases, len(names), out, tuned.fps)


def upsampler_sets(
    pipeline: DrivingPipeline, store: ClipStore, out: Path, clips: int, frames: int = 16
) -> dict[str, Path]:
    """Full-resolution video from the true low resolution: bicubic, and by the diffusion upsampler."""
    names = [
        n
        for n in long_enough(store, frames / pipeline.fps, "val")
        if store.index.loc[n].fps == pipeline.fps and store.index.loc[n].height == pipeline.height
    ][:clips]
    if not names:
        raise UserError(
            f"{store.root} has no held-out clip of {pipeline.height}x{pipeline.width} at {pipeline.fps:g} fps"
        )

    def low(case: Case) -> Frames:
        h, w = pipeline.low_height, pipeline.low_width
        return (torch.nn.functional.interpolate(frame[None], (h, w), mode="area")[0] for frame in case.video)

    makers: dict[str, Callable[[Case], Frames]] = {
        "real": lambda case: iter(case.video),
        "bicubic": lambda case: cascade.enlarge(pipeline.upsample, low(case)),
        "upsampler": lambda case: pipeline.upsampled(low(case), case.seed),
    }
    size = (pipeline.height, pipeline.width)
    cases = (load_case(pipeline, store, name, pipeline.fps, frames, i, size) for i, name in enumerate(names))
    return write_sets(makers, cases, len(names), out, pipeline.fps)


def long_enough(store: ClipStore, seconds: float, split: str | None = None) -> list[str]:
    """Clips of at least `seconds`. raises UserError if there is none"""
    rows = store.index if split is None else store.index[store.index["split"] == split]
    names = list(rows.index[rows["frames"] / rows["fps"] >= seconds - 1e-6])
    if not names:
        raise UserError(f"{store.root}: no {split or ''} clip of {seconds:.1f} s; prepare longer ones")
    return names


def load_case(
    pipeline: DrivingPipeline,
    store: ClipStore,
    name: str,
    fps: float,
    frames: int,
    seed: int,
    size: tuple[int, int] | None = None,
) -> Case:
    size = size or (pipeline.low_height, pipeline.low_width)
    video = np.stack(list(islice(iterate(store.video(name), fps=fps, size=size), frames)))
    stored = store.layout(name, pipeline.slots)
    at = torch.arange(round(frames * pipeline.fps / fps)) * float(store.index.loc[name].fps) / pipeline.fps
    layout = stored[at.round().long().clamp_max(stored.num_frames - 1)]
    return Case(name, from_uint8(torch.from_numpy(video).permute(0, 3, 1, 2)), layout, seed)


def _with_other_noise(
    make: Callable[[DrivingPipeline, Case, int], Frames],
    number: int,
    pipeline: DrivingPipeline,
    frames: int,
    case: Case,
) -> Frames:
    return make(pipeline, replace(case, seed=case.seed + 1_000_000 * number), frames)


def continued(pipeline: DrivingPipeline, case: Case, frames: int) -> Frames:
    latents = pipeline.coarse_latents(case.video[:1], case.layout, case.seed)
    return islice(cascade.decode(pipeline.autoencoder, islice(latents, frames)), frames)


@lru_cache(maxsize=1)  # the per-frame set and the cross-fade of a clip share their frames
def _sampled(pipeline: DrivingPipeline, case: Case, frames: int, spacing: int) -> Tensor:
    """Image LDM frames [frames, 3, h, w] at every `spacing`-th frame of the full rate, each by itself."""
    factor, made = pipeline.autoencoder.config.factor, []
    shape = (pipeline.autoencoder.config.channels, pipeline.low_height // factor, pipeline.low_width // factor)
    at = pipeline.layout_at(case.layout)
    for chunk in torch.arange(frames).split(8):
        noise = torch.stack([window_noise(shape, case.seed, cascade.IMAGE, int(i)) for i in chunk])[:, None]
        layout = at(chunk * spacing).map(lambda t: t[:, None])
        made.append(sample_frames(pipeline.image, pipeline.schedule, layout, noise, pipeline.config)[:, 0])
    return torch.stack(list(cascade.decode(pipeline.autoencoder, iter(torch.cat(made)))))


def _driven(pipeline: DrivingPipeline, case: Case, frames: int) -> Frames:
    layout = pipeline.layout_at(case.layout)(torch.arange(frames) * pipeline.interpolate.factor)
    for travel, heading in zip(layout.travel - layout.travel[0], layout.heading - layout.heading[0], strict=True):
        yield pipeline.keyframes.flow(case.video[:1], travel[None], heading[None])[0][0]


def _carried(pipeline: DrivingPipeline, case: Case, frames: int) -> Frames:
    layout = pipeline.layout_at(case.layout)(torch.arange(frames) * pipeline.interpolate.factor)
    assert pipeline.keyframes.temporal is not None
    for i in range(frames):
        yield pipeline.keyframes.temporal.move(case.video[:1], layout[:1], layout[i : i + 1])[0][0]


def per_frame(pipeline: DrivingPipeline, case: Case, frames: int) -> Frames:
    return iter(_sampled(pipeline, case, frames, pipeline.interpolate.factor))


def _cross_fade(pipeline: DrivingPipeline, case: Case, frames: int) -> Frames:
    keys = _sampled(pipeline, case, frames, pipeline.interpolate.factor)[:: pipeline.interpolate.factor]
    keys = torch.cat([case.video[:1], keys[1:]])
    for i in range(frames):
        before, share = divmod(i / pipeline.interpolate.factor, 1)
        after = min(int(before) + 1, len(keys) - 1)
        yield torch.lerp(keys[int(before)], keys[after], share)


@torch.no_grad()
def rebuilt(pipeline: DrivingPipeline, case: Case) -> Frames:
    latents = torch.cat([pipeline.autoencoder.encode(chunk).float() for chunk in case.video.split(16)])
    return cascade.decode(pipeline.autoencoder, iter(latents))


def write_sets(
    makers: dict[str, Callable[[Case], Frames]], cases: Iterator[Case], count: int, out: Path, fps: float
) -> dict[str, Path]:
    bar = tqdm(total=count * len(makers), desc=out.name, unit="video")
    for case in cases:
        for name, make in makers.items():
            path = out / name / f"{case.name}.mkv"
            if not path.exists():
                write_lossless(path, make(case), fps)
            bar.update()
    bar.close()
    return {name: out / name for name in makers}


def write_lossless(path: Path, frames: Frames, fps: float) -> None:
    """FFV1 in Matroska, RGB: metrics are computed from what was made, not from what a codec left of it."""
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "bgr0"
        for frame in frames:
            picture = to_uint8(frame).permute(1, 2, 0).contiguous().numpy()
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
