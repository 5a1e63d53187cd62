"""Does an image network listen to what it is told? `python -m benchmarks.conditions`"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import start
from drivesim.bundle import Bundle
from drivesim.clip import Layout, from_uint8
from drivesim.config import option, parse
from drivesim.data.schema import WEATHERS
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.data.where import NIGHT
from drivesim.diffusion.precondition import predict_velocity
from drivesim.diffusion.sampler import window_noise
from drivesim.diffusion.schedule import TIMESTEPS, Diffusion, ScheduleConfig
from drivesim.errors import UserError
from drivesim.generation.samplers import SamplerConfig, sample_frames
from drivesim.models.conditioning import rasterise
from drivesim.models.conditions import without
from drivesim.models.denoiser import Denoiser
from drivesim.training.stages import load_autoencoder, load_denoiser

APART_S = 1.0
PART = 32  # frames at a time
PLACES = 7  # a prime: the other clip whose conditions are told is so many frames of it away
ROAD = (slice(80, 128), slice(64, 192))  # of a picture of 128x256: the carriageway ahead
# Of a layout, where a condition is not the field of its name; what is told of boxes goes with them.
FIELDS = {"boxes": ("boxes", "classes", "known", "tracks", "solids")}
FAR = (slice(40, 62), slice(96, 160))  # the distance


@dataclass
class ConditionsBenchmark:
    """On held-out frames: the error of denoising with everything told, with one condition left out, and with that
    condition as another clip has it. And for one layout and one noise each weather: how bright the road is and how much
    contrast there is far ahead, beside real frames in that weather, by day.
    """

    bundle: str = option(help="folder of trained stages, made by `drivesim train`; autoencoder and image are enough")
    data: str = option(help="the clip store it was trained on; its held-out split is looked at")
    pictures: int = option(24, "layouts that are drawn in each weather")
    seed: int = option(0, "seed of the noise")


@dataclass
class Frames:
    """Frames of a split, APART_S apart. x [n, 3, h, w] in [-1, 1]; layout [n]; clip [n] the number of the clip"""

    x: Tensor
    layout: Layout
    clip: Tensor


def main(argv: Sequence[str]) -> None:
    options = parse(ConditionsBenchmark, argv, "python -m benchmarks.conditions")
    bundle, store = Bundle(Path(options.bundle)).require(), ClipStore(options.data)
    denoiser, autoencoder = load_denoiser(bundle, "image"), load_autoencoder(bundle)
    schedule, config = bundle.value("image", "schedule", ScheduleConfig), bundle.sampler(SamplerConfig)
    held_out = frames(bundle, store, "val")
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(part).float() for part in held_out.x.split(PART)])
    print(f"{len(latents)} held-out frames | velocity error of the whole, of vehicles: change in % (error over clips)")
    for name, *found in worth(denoiser, schedule, latents, held_out, options.seed):
        print(f"  {name:28}" + " |".join(f" {change:+6.2f} ({spread:.2f})" for change, spread in found), flush=True)
    if "weather" not in denoiser.config.conditions:
        return
    day = (held_out.layout.night < NIGHT).nonzero()[:, 0]
    picked = day[torch.linspace(0, len(day) - 1, min(options.pictures, len(day))).long()]
    print("weather | road made, real | contrast far ahead made, real")
    known = frames(bundle, store, "train")
    for number, weather in enumerate(WEATHERS):
        layout = held_out.layout[picked]
        layout.weather[:] = number
        noise = window_noise((len(picked), 1, *latents.shape[1:]), options.seed, 0)
        made = sample_frames(denoiser, schedule, layout.map(lambda t: t[:, None]), noise, config)[:, 0]
        with torch.no_grad():
            drawn = looks(autoencoder.decode(made).clamp(-1, 1))
        real = looks(known.x[(known.layout.weather == number) & (known.layout.night < NIGHT)])
        print(f"  {weather:8}" + " |".join(f" {a:.3f} {b:.3f}" for a, b in zip(drawn, real, strict=True)), flush=True)


def frames(bundle: Bundle, store: ClipStore, split: str) -> Frames:
    """raises UserError where the split is empty"""
    if not store.clips(split):
        raise UserError(f"{store.root} has no {split} clips; prepare it with val_share above 0")
    size = (int(bundle.data["height"]), int(bundle.data["width"]))
    pictures, layouts, clips = [], [], []
    for number, clip in enumerate(store.clips(split)):
        stride = max(round(float(store.row(clip).fps) * APART_S), 1)
        shown = [frame for i, frame in enumerate(iterate(store.video(clip), size=size)) if i % stride == 0]
        pictures.append(from_uint8(torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)))
        layouts.append(store.layout(clip, int(bundle.data["slots"]))[torch.arange(len(shown)) * stride])
        clips.append(torch.full((len(shown),), number))
    return Frames(torch.cat(pictures), Layout.cat(layouts), torch.cat(clips))


def worth(
    denoiser: Denoiser, schedule: ScheduleConfig, latents: Tensor, held_out: Frames, seed: int
) -> Iterator[tuple[str, tuple[float, float], tuple[float, float]]]:
    """What is told, and how the error then changes: percent of that with everything told, and the standard error of
    this over clips; of all cells, and of those that vehicles cover."""
    count, diffusion = len(latents), Diffusion(schedule)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    timestep = ((order + 0.5) / count * TIMESTEPS).long()
    x, noise = latents[:, None], window_noise((count, 1, *latents.shape[1:]), seed, 1)
    z, target = diffusion.add_noise(x, noise, timestep), diffusion.velocity(x, noise, timestep)
    covered = rasterise(held_out.layout, *latents.shape[-2:])[:, 0]

    @torch.no_grad()
    def errors(layout: Layout) -> Tensor:
        """[n, h, w]"""
        found = []
        for part in torch.arange(count).split(PART):
            told = denoiser.condition(layout[part].map(lambda t: t[:, None]), *z.shape[-2:])
            velocity = predict_velocity(denoiser, diffusion, z[part], timestep[part], *told)
            found.append((velocity - target[part]).square().mean((1, 2)))
        return torch.cat(found)

    clips = held_out.clip.unique()
    first = torch.stack([(held_out.clip == clip).int().argmax() for clip in clips])
    other = held_out.layout[first[(held_out.clip + PLACES) % len(clips)]]
    base = errors(held_out.layout)

    def change(layout: Layout, weight: Tensor) -> tuple[float, float]:
        more = (errors(layout) - base) * weight
        by_clip = torch.stack([more[held_out.clip == clip].sum() for clip in clips]) * (100 / (base * weight).sum())
        return float(by_clip.sum()), float(by_clip.std() * len(clips) ** 0.5)

    for name in denoiser.config.conditions:
        swapped = replace(held_out.layout, **{field: getattr(other, field) for field in FIELDS.get(name, (name,))})
        for what, layout in (("left out", without(held_out.layout, [name])), ("of another clip", swapped)):
            yield f"{name} {what}", change(layout, torch.ones_like(base)), change(layout, covered)


def looks(pictures: Tensor) -> tuple[float, float]:
    """Brightness of the road, 0..1, and standard deviation of brightness far ahead, of pictures [n, 3, h, w]."""
    if not len(pictures):
        return float("nan"), float("nan")
    grey = torch.nn.functional.interpolate((pictures.mean(1, keepdim=True) + 1) / 2, (128, 256), mode="area")
    road, far = (grey[:, 0][:, rows, columns] for rows, columns in (ROAD, FAR))
    return float(road.mean()), float(far.flatten(1).std(1).mean())


if __name__ == "__main__":
    start(main, "benchmarks.conditions")
