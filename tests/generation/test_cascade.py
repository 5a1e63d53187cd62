"""The cascade with denoisers that write the index of a frame into it: every frame once, in order, at any length."""

from dataclasses import dataclass, replace
from itertools import count, islice
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drivesim.clip import SPEED_MPS, Layout
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import FLAGS, Interpolate, Predict
from drivesim.diffusion.upsample import Upsample
from drivesim.generation import cascade
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.denoiser import DenoiserConfig

SCHEDULE, CONFIG = ScheduleConfig(), SamplerConfig(keyframe_steps=1, interpolate_steps=1, upsample_steps=1)
C, H, W = 4, 4, 8


def index_layout(index: torch.Tensor) -> Layout:
    """A layout whose crowdedness is the index of the final frame."""
    layout = Layout.unknown(len(index))
    layout.crowdedness[:] = index.float()
    return layout


def frame(value: float) -> torch.Tensor:
    return torch.full((C, H, W), float(value))


def numbers(frames) -> list[float]:
    return [round(float(f.mean()), 3) for f in frames]


@pytest.fixture
def windows(monkeypatch) -> list[dict]:
    """Replaces sampling: an unknown frame gets the index that its layout tells. Keeps what was asked for."""
    asked: list[dict] = []

    def sample_window(
        denoiser, schedule, layout, latents, known, noise, steps, config, guidance, strength, captions=()
    ):
        asked.append({"layout": layout.crowdedness.clone(), "latents": latents.clone(), "mask": known.mask,
                      "flag": known.flag, "noise": noise, "strength": strength})  # fmt: skip
        told = layout.crowdedness[..., None, None, None].expand_as(latents)
        return torch.where(known.mask[..., None, None, None].bool(), latents, told)

    monkeypatch.setattr(cascade, "sample_window", sample_window)
    return asked


def keyframes(start: torch.Tensor, frames: int = 4, seed: int = 0):
    return cascade.keyframes(None, SCHEDULE, Predict(frames=frames), start, index_layout, 16, seed, CONFIG)


def interpolated(frames, spacing: int, level: int, factor: int = 4, batch: int = 4, seed: int = 0):
    task = Interpolate(factor=factor)
    return cascade.interpolate(None, SCHEDULE, task, frames, index_layout, spacing, level, seed, CONFIG, batch)


def test_only_the_first_window_of_keyframes_starts_from_what_is_carried(windows):
    config = SamplerConfig(keyframe_strength=0.2)
    list(islice(cascade.keyframes(None, SCHEDULE, Predict(frames=4), frame(0)[None], index_layout, 16, 0, config), 8))
    assert [w["strength"] for w in windows] == [0.2, 1.0, 1.0]


@pytest.mark.parametrize("frames", [3, 4, 8])
@pytest.mark.parametrize("start", [[0], [-16, 0]])
def test_keyframe_k_is_final_frame_16_k_across_windows(windows, start, frames):
    made = numbers(islice(keyframes(torch.stack([frame(v) for v in start]), frames), 20))
    assert made == [16 * k for k in range(20)]


def test_windows_of_keyframes_go_on_from_the_last_two(windows):
    list(islice(keyframes(torch.stack([frame(0)]), 4), 8))
    assert [w["mask"].sum().item() for w in windows] == [1, 2, 2]
    assert [w["layout"][0].tolist() for w in windows] == [[0, 16, 32, 48], [32, 48, 64, 80], [64, 80, 96, 112]]
    assert [numbers(w["latents"][0, :2]) for w in windows[1:]] == [[32, 48], [64, 80]]


def test_unknown_frames_of_a_window_hold_nothing_that_could_leak(windows):
    list(islice(keyframes(torch.stack([frame(0)]), 4), 8))
    assert all((w["latents"][~w["mask"].bool()] == 0).all() for w in windows)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_interpolation_fills_between_with_no_frame_twice(windows, batch, factor):
    given = [frame(16 * k) for k in range(8)]
    made = numbers(interpolated(iter(given), 16, 0, factor, batch))
    assert made == [k * 16 / factor for k in range(7 * factor + 1)]
    assert all(w["mask"][0].tolist() == [1] + [0] * (factor - 1) + [1] for w in windows)


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_n_frames_become_4_n_minus_3(windows, length):
    assert len(list(interpolated((frame(16 * k) for k in range(length)), 16, 0))) == 4 * (length - 1) + 1


@pytest.mark.parametrize("start", [[0], [-16, 0]])
def test_final_frame_i_is_frame_i(windows, start):
    keys = keyframes(torch.stack([frame(v) for v in start]), 5)
    fine = interpolated(interpolated(keys, 16, 0), 4, 1)
    assert numbers(islice(fine, 300)) == list(range(300))


def test_the_two_levels_tell_themselves_apart_and_use_other_noise(windows):
    list(islice(interpolated(interpolated(keyframes(torch.stack([frame(0)])), 16, 0), 4, 1), 40))
    levels = {level: [w for w in windows if w["mask"].shape[1] == 5 and (w["flag"] == level).all()] for level in (0, 1)}
    assert levels[0]
    assert levels[1]
    noise = torch.cat([w["noise"] for level in levels.values() for w in level])
    flat = noise.flatten(1)
    assert len({tuple(row[:4].tolist()) for row in flat}) == len(flat)


def test_the_number_of_pairs_made_at_once_changes_no_noise(windows):
    found = []
    for batch in (1, 4):
        windows.clear()
        list(interpolated((frame(16 * k) for k in range(8)), 16, 0, batch=batch))
        found.append(torch.cat([w["noise"] for w in windows]))
    assert torch.equal(*found)


class Counting(nn.Module):
    """An autoencoder that shows a latent's value; `temporal` only says how much windows overlap."""

    def __init__(self, temporal: bool) -> None:
        super().__init__()
        self.temporal = SimpleNamespace(window=8, overlap=lambda window: 2) if temporal else None
        self.windows: list[list[float]] = []

    def decode(self, z: torch.Tensor, frames: int) -> torch.Tensor:
        self.windows.append(numbers(z))
        assert frames == len(z)
        return z[:, :3].double()


@pytest.mark.parametrize("window", [4, 8])
@pytest.mark.parametrize("temporal", [True, False])
def test_decoding_gives_each_frame_once_and_in_order_at_any_length(temporal, window):
    for length in range(41):
        frames = cascade.decode(Counting(temporal), (frame(i) for i in range(length)), window)
        assert numbers(frames) == list(range(length))


def test_the_temporal_decoder_sees_both_sides_of_every_frame_it_keeps():
    autoencoder = Counting(True)
    list(cascade.decode(autoencoder, (frame(i) for i in range(20)), 8))
    assert autoencoder.windows == [list(range(8)), list(range(6, 14)), list(range(12, 20)), [18, 19]]


def tiny(channels: int, planes: int, context: int | None = None):
    torch.manual_seed(0)
    config = DenoiserConfig(channels, planes, [16, 16], [1, 1], [False, False], token_dim=0, groups=8, context_width=8)
    model = config.build()
    return model if context is None else model.inflate(context)


def upsampled(lengths, seed: int = 0, portion: int = 4):
    task = Upsample(factor=2, patch=4, residual_std=0.1)
    low = (torch.full((3, 8, 8), i / 50) for i in lengths)
    config = replace(CONFIG, upsample_portion=portion)
    return cascade.upsample(tiny(task.channels, task.planes), SCHEDULE, task, low, seed, config)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8])
def test_upsampling_keeps_every_frame_at_twice_the_size(length):
    frames = list(upsampled(range(length)))
    assert len(frames) == length
    assert all(f.shape == (3, 16, 16) for f in frames)


def test_a_short_last_portion_gets_the_noise_of_a_whole_one():
    whole, short = list(upsampled(range(8))), list(upsampled(range(6)))
    assert_close(torch.stack(short), torch.stack(whole[:6]), atol=1e-5, rtol=0)


def test_bicubic_enlargement_keeps_every_frame():
    frames = list(cascade.enlarge(Upsample(factor=2), (torch.full((3, 4, 4), i / 9) for i in range(5))))
    assert numbers(frames) == [round(i / 9, 3) for i in range(5)]


@pytest.fixture
def pipeline() -> DrivingPipeline:
    torch.manual_seed(0)
    return DrivingPipeline(
        autoencoder=AutoencoderConfig("patch", 4, 8, 16, 1).build().requires_grad_(False),
        image=tiny(4, 12),
        keyframes=tiny(4, 12, 4 + FLAGS),
        interpolator=tiny(4, 12, 4 + FLAGS),
        upsampler=tiny(48, 25, 0),
        schedule=SCHEDULE,
        predict=Predict(frames=3),
        interpolate=Interpolate(),
        upsample=Upsample(factor=2, patch=4),
        low_height=32,
        low_width=64,
        key_fps=1.875,
        slots=3,
        config=SamplerConfig(image_steps=2, keyframe_steps=2, interpolate_steps=1, upsample_steps=1),
    )


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 128, generator=torch.Generator().manual_seed(3)) * 2 - 1


def make(pipeline: DrivingPipeline, seconds: float = 0.3, seed: int = 1, start=None, layout=None, upsampler="none"):
    made = pipeline(start=start, layout=layout, seconds=seconds, seed=seed, upsampler=upsampler)
    return torch.stack(list(made))


def test_the_same_seed_gives_the_same_video_and_another_seed_another(pipeline):
    first = make(pipeline)
    torch.manual_seed(99)
    assert torch.equal(make(pipeline), first)
    assert not torch.equal(make(pipeline, seed=2), first)


def test_a_short_video_is_the_beginning_of_a_longer_one(pipeline):
    for upsampler in ("none", "bicubic"):
        long = make(pipeline, 1.0, upsampler=upsampler)
        assert torch.equal(make(pipeline, 0.4, upsampler=upsampler), long[:12])


@pytest.mark.parametrize("start", [None, 1, 2])
@pytest.mark.parametrize(("upsampler", "size"), [("none", (32, 64)), ("bicubic", (64, 128)), ("diffusion", (64, 128))])
def test_every_start_and_upsampler_gives_the_frames_asked_for(pipeline, start, upsampler, size):
    video = make(pipeline, 0.5, start=start and pictures(start), upsampler=upsampler)
    assert video.shape == (15, 3, *size)
    assert video.dtype == torch.uint8


def test_a_video_begins_with_its_start_frame_and_the_older_of_two_is_not_shown(pipeline):
    start = pictures(2)
    shown = torch.nn.functional.interpolate(start, (32, 64), mode="area")
    latents = pipeline.autoencoder.encode(shown)
    rebuilt = cascade.decode(pipeline.autoencoder, iter(latents[1:]))
    first = make(pipeline, 0.1, start=start)[0]
    assert (first.float() - (next(rebuilt).clamp(-1, 1) + 1) * 127.5).abs().max() < 2


def test_beyond_its_end_a_layout_holds_its_last_frame(pipeline):
    layout = index_layout(torch.arange(4)).pad(1)
    at = pipeline.layout_at(layout)(torch.tensor([0, 3, 4, 1000]))
    assert at.crowdedness.tolist() == [0, 3, 3, 3]
    assert at.classes.shape == (4, 3)
    assert not pipeline.layout_at(None)(torch.arange(5)).known.any()


@dataclass
class Endless:
    """Latents without end that count what was taken."""

    taken: int = 0

    def __iter__(self):
        for i in count():
            self.taken += 1
            yield frame(i)


def test_iterators_take_no_more_than_a_window_ahead(windows):
    source = Endless()
    fine = interpolated(interpolated(iter(source), 16, 0), 4, 1)
    first = islice(cascade.decode(Counting(True), fine), 5)
    assert numbers(first) == list(range(5))
    assert source.taken <= 6


def test_ten_minutes_may_be_asked_for_and_five_frames_taken(pipeline):
    video = pipeline(start=None, layout=None, seconds=600, seed=0, upsampler="diffusion")
    assert len(list(islice(video, 5))) == 5


def test_where_no_layout_says_how_the_car_moves_it_drives_straight_on(pipeline):
    layout = pipeline.layout_at(None)(torch.tensor([-16, 0, 30, 300]))
    assert_close(layout.travel, torch.tensor([-16 / 30, 0, 1, 10]) * SPEED_MPS)
    assert layout.heading.tolist() == [0] * 4


def test_beyond_the_ends_of_a_layout_the_car_goes_on_as_it_did(pipeline):
    layout = replace(Layout.unknown(3, slots=2), travel=torch.tensor([5.0, 6, 8]), heading=torch.tensor([0.0, 0, 0.5]))
    at = pipeline.layout_at(layout)(torch.tensor([-2, 0, 1, 2, 3, 5]))
    assert at.travel.tolist() == [3, 5, 6, 8, 10, 14]
    assert at.heading.tolist() == [0, 0, 0, 0.5, 1, 2]
    assert at.classes.shape == (6, 3)
