"""`drivesim generate`: a video from a bundle, a start and a layout, streamed to disk frame by frame."""

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from drivesim import __version__
from drivesim.bundle import Bundle
from drivesim.clip import SPEED_MPS, Layout
from drivesim.config import option, parse
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError
from drivesim.files import atomic_path, check_output, refuse_existing, remove_leftovers
from drivesim.generation import costs
from drivesim.generation.checkpoint import Checkpoint, Keeper, checkpoint_path, content, going_on, is_whole, settings
from drivesim.generation.draw import contact_sheet, draw_layout, save_png
from drivesim.generation.labels import LAYOUT_SUFFIX, RECORD_SUFFIX, provenance, save_labels
from drivesim.generation.layout_file import Lens, TimedLayout, read_layout
from drivesim.generation.start import load_start, read_start
from drivesim.generation.writer import VideoWriter
from drivesim.machine import probe, return_freed_memory, settle
from drivesim.models.conditions import CONDITIONS, USUAL, check_known
from drivesim.tags import tags

if TYPE_CHECKING:
    from drivesim.generation.pipeline import DrivingPipeline

SAMPLERS = ("ddim", "ddpm", "dpm++", "dpm++_sde", "unipc", "euler", "euler_a", "heun")
SPACINGS = ("trailing", "leading")
UPSAMPLERS = ("diffusion", "bicubic", "none")
STEPS = ("keyframe_steps", "interpolate_steps", "upsample_steps")
TILING = ("upsample_tile", "upsample_overlap", "upsample_portion", "upsample_portion_overlap")
SHARES = ("eta", "guidance_low", "guidance_high", "guidance_rescale")
ALWAYS_TOLD = ("speed", "turn", "tracks")  # by a layout, whether the model listens or not; driving steers anyway
ASKED = ("night", "crowdedness", "weather")  # options that only a model can follow that is told of them
STRENGTHS = ("keyframe_strength", "interpolate_strength")
GUIDANCE = ("layout_guidance", "context_guidance", "interpolate_guidance", "text_guidance")
TAUGHT = ("sampler", "spacing", "guidance", *GUIDANCE, *SHARES)  # what a distilled stage has learned already
OFFLOADS = ("none", "cpu", "disk")
# What steers driving video alone, and text-to-video alone.
FUTURES = ("futures", "futures_layouts", "futures_turns", "futures_speeds")
DRIVING = ("start", "start_time", "layout", "night", "crowdedness", "speed", "turn", "draw_boxes", "layout_guidance",
           *FUTURES)  # fmt: skip
TEXT = ("negative_prompt", "text_guidance", "frames", "height", "width", "backbone", "lora", "lora_scale", "offload",
        "vae_slicing", "vae_tiling")  # fmt: skip
MAX_SECONDS = 24 * 3600.0
SHEET_SUFFIX = ".png"
BESIDE = (RECORD_SUFFIX, LAYOUT_SUFFIX, SHEET_SUFFIX)  # of the files that belong to a video
SHEET_FRAMES, SHEET_COLUMNS, SHEET_WIDTH = 12, 4, 384  # a sheet that fits a screen, pixels a frame


@dataclass
class GenerateConfig:
    """Generate a driving video; or, with a prompt, a video of what it says. Beside OUT come OUT.json (how it was made),
    OUT.layout.json (what steered each frame of a driving video: its labels) and OUT.png (a contact sheet).

    A driving video that is stopped, even by kill -9, goes on when the same command is given again, and becomes the same
    file; what is finished of it plays from OUT.partial.mp4 at any moment."""

    bundle: str = option(help="folder of trained stages, made by `drivesim train`")
    start: str = option("none", "picture, video or stored clip (STORE:CLIP) to start from, or none")
    start_time: float | None = option(None, "moment of the start video to go on from, seconds; its end if not given")
    layout: str = option(
        "none", "boxes and labels: a scenario (.yaml, or its name), a .json or .csv file, STORE:CLIP[:START_S], or none"
    )
    night: float | None = option(None, "0 day .. 1 night, for every frame; overrides the layout")
    crowdedness: float | None = option(None, "vehicles in view, for every frame; overrides the layout")
    weather: str | None = option(None, f"one of {', '.join(WEATHERS)}, for every frame; overrides the layout")
    speed: float | None = option(
        None, "ego speed, m/s, of the whole drive; overrides the layout, which else decides, or 8"
    )
    turn: float | None = option(None, "degrees a second that the car turns to the right; overrides the layout")
    seconds: float = option(4.0, "length, up to 24 h")
    out: str = option("generated.mp4", "video to write, .mp4")
    overwrite: bool = option(False, "replace files that exist, and a video that was begun with something else")
    seed: int = option(0, "the same seed gives the same video")
    upsampler: str = option("diffusion", f"one of {', '.join(UPSAMPLERS)}")
    sampler: str | None = option(None, f"one of {', '.join(SAMPLERS)}; this and what follows: the default if not given")
    keyframe_steps: int | None = option(None, "denoising steps of a window of keyframes")
    interpolate_steps: int | None = option(None, "denoising steps of the frames between")
    upsample_steps: int | None = option(None, "denoising steps of the upsampler")
    keyframe_strength: float | None = option(
        None, "share of the steps, above 0, up to 1: below 1 the first keyframes start from the carried start"
    )
    interpolate_strength: float | None = option(None, "the same for the frames between")
    layout_guidance: float | None = option(None, "how strongly the layout steers; 1 is unguided")
    guidance: dict[str, float] = option(
        {}, "how strongly single conditions steer, on top of it, as in {boxes: 2, weather: 1.5}; 1 is unguided"
    )
    context_guidance: float | None = option(None, "how strongly the start steers; 1 is unguided")
    interpolate_guidance: float | None = option(None, "how strongly keyframes steer the frames between; 1 is unguided")
    guidance_low: float | None = option(None, "timesteps that are guided, as shares of all: 0 is data,")
    guidance_high: float | None = option(None, "1 is noise")
    guidance_rescale: float | None = option(None, "0 to 1, how far guided answers get the contrast of unguided ones")
    spacing: str | None = option(None, f"of the denoising steps, one of {', '.join(SPACINGS)}")
    eta: float | None = option(None, "noise drawn in every step of sampler=ddim: 0 none, 1 as much as ddpm")
    upsample_tile: int | None = option(
        None, "low-resolution pixels, each way, upsampled at once; 0: all. Bounds memory"
    )
    upsample_overlap: int | None = option(None, "low-resolution pixels that neighbouring tiles share")
    upsample_portion: int | None = option(None, "frames upsampled at once")
    upsample_portion_overlap: int | None = option(None, "frames that a portion shares with the next")
    futures: int | None = option(
        None, "continuations of one start, with other seeds from `seed` on: each in folder OUT, a mosaic in OUT.mp4"
    )
    futures_layouts: list[str] = option([], "a layout for each, as in [a.json,b.json], instead of `layout`")
    futures_turns: list[float] = option([], "a turn for each, as in [-8,0,8], instead of `turn`")
    futures_speeds: list[float] = option([], "a speed for each, instead of `speed`")
    draw_boxes: bool = option(False, "draw the asked boxes and labels onto the video")
    contact_sheet: bool = option(True, "write OUT.png")
    prompt: str | None = option(
        None, "what the video shows, in words, of a bundle that reads (docs/text_to_video.md); the rest is for it alone"
    )
    negative_prompt: str | None = option(None, "what text guidance leads away from")
    text_guidance: float | None = option(None, "how strongly the prompt steers; 1 is unguided")
    frames: int | None = option(None, "length in frames, 16k + 1; as many keyframes as in training if not given")
    height: int | None = option(None, "pixels before the upsampler; as in training if not given")
    width: int | None = option(None, "pixels before the upsampler; as in training if not given")
    backbone: str = option("", "Stable Diffusion folder whose image network takes the place of the bundle's")
    lora: str = option("", "LoRA file, .safetensors, added to the image network")
    lora_scale: float = option(1.0, "how much of it is added")
    offload: str = option("none", "where weights wait until a layer needs them: none (they do not wait), cpu, disk")
    vae_slicing: bool = option(False, "decode one frame after the other: less memory")
    vae_tiling: int = option(0, "decode in tiles of so many pixels each way: less memory; 0: whole frames")


def main(argv: Sequence[str]) -> None:
    """Check every input, load the bundle, write the video.

    raises  UserError for a mistake; KeyboardInterrupt, with what was kept as its text, after Ctrl-C
    """
    config = parse(GenerateConfig, argv, "drivesim generate")
    if config.prompt is None and any(getattr(config, name) not in (None, []) for name in FUTURES):
        from drivesim.generation.futures import generate_futures

        return generate_futures(config)
    timed = check(config)
    begun = going_on(config.out, settings(asdict(config), Bundle(Path(config.bundle))), config.overwrite)
    if begun is not None and is_whole(config.out, begun):
        checkpoint_path(config.out).unlink()
        print(f"{config.out}: whole, {begun.written.frames} frames")
        return
    if begun is not None:
        settle(**begun.machine)
    return_freed_memory()
    if config.prompt is not None:
        return generate_text(config)
    pipeline = load_pipeline(config)
    start = load_start(config.start, pipeline.height, pipeline.width, pipeline.key_fps, config.start_time)
    make(config, pipeline, start, timed)


def load_pipeline(config: GenerateConfig) -> "DrivingPipeline":
    """The bundle with the settings of the sampler that were given."""
    # Loads the model libraries: seconds that a typo need not wait.
    from drivesim.generation.pipeline import DrivingPipeline

    _tell_learned(config)
    pipeline = DrivingPipeline.from_pretrained(config.bundle, upsampler=config.upsampler == "diffusion")
    pipeline.config = replace(pipeline.config, **_chosen(config))
    return pipeline


def make(config: GenerateConfig, pipeline: "DrivingPipeline", start: Tensor | None, timed: TimedLayout | None) -> None:
    """Write the video that is asked for, what `check` read of its layout brought to the frames of the pipeline."""
    lens = None if timed is None else timed.lens
    generate(config, pipeline, start, _layout(config, timed, pipeline), lens)


def generate_text(config: GenerateConfig) -> None:
    """Stream a video of `config.prompt`."""
    from drivesim.generation.text_to_video import Look, Memory, TextToVideo

    _tell_learned(config)
    model = TextToVideo.from_pretrained(
        config.bundle,
        config.height,
        config.width,
        upsampler=config.upsampler == "diffusion",
        look=Look(config.backbone, config.lora, config.lora_scale),
        memory=Memory(config.offload, config.vae_slicing, config.vae_tiling),
    )
    model.config = replace(model.config, **_chosen(config))
    assert config.prompt is not None
    frames = model.frames if config.frames is None else config.frames
    video = model(prompt=config.prompt, frames=frames, seed=config.seed, upsampler=config.upsampler)
    scale = 1 if config.upsampler == "none" else model.upsample.factor
    told = f"prompt {config.prompt!r}"
    write(config, video, frames, model.fps, model.height * scale, model.width * scale, told)


def _chosen(config: GenerateConfig) -> dict[str, Any]:
    """Settings of the sampler that were given."""
    names = ("sampler", "spacing", "guidance", "negative_prompt", *STEPS, *STRENGTHS, *GUIDANCE, *SHARES, *TILING)
    return {name: value for name in names if (value := getattr(config, name)) not in (None, {})}


def _tell_learned(config: GenerateConfig) -> None:
    """Say which options do nothing in stages that have a sampler and guidance in their weights (`drivesim distill`)."""
    taught = Bundle(Path(config.bundle)).index.get("sampler", {}).get("distilled", [])
    if taught and (idle := [name for name in _chosen(config) if name in TAUGHT]):
        found = f"{', '.join(idle)}: nothing of it in {', '.join(taught)}, which learned a sampler and guidance"
        print(f"drivesim: {found}", file=sys.stderr)


def check(config: GenerateConfig) -> TimedLayout | None:
    """Find every mistake that can be found without the weights; return the layout that was read on the way.

    raises  UserError
    """
    _range("seconds", config.seconds, 0, MAX_SECONDS, above=True)
    _range("night", config.night, 0, 1)
    _range("crowdedness", config.crowdedness, 0, 1000)
    _range("speed", config.speed, 0, 60)
    _range("turn", config.turn, -90, 90)
    _range("seed", config.seed, 0, 2**63 - 1)
    for name in STEPS:
        _range(name, getattr(config, name), 1, 1000)
    for name in STRENGTHS:
        _range(name, getattr(config, name), 0, 1, above=True)
    for name in GUIDANCE:
        _range(name, getattr(config, name), 0, 100)
    for name, scale in config.guidance.items():
        _range(f"guidance.{name}", scale, 0, 100)
    for name in SHARES:
        _range(name, getattr(config, name), 0, 1)
    for name, known in (
        ("upsampler", UPSAMPLERS),
        ("sampler", SAMPLERS),
        ("spacing", SPACINGS),
        ("weather", WEATHERS),
    ):
        if (value := getattr(config, name)) is not None and value not in known:
            raise UserError(f"{name}={value}, expected one of {', '.join(known)}")
    _check_text(config)
    _check_out(config)
    bundle = Bundle(Path(config.bundle)).require()
    _check_conditions(config, bundle)
    slots = bundle.index.get("data", {}).get("slots", sys.maxsize)
    if config.start == "none" and config.start_time is not None:
        raise UserError(f"start_time={config.start_time:g} needs start=VIDEO")
    read_start(config.start, config.start_time)
    timed = read_layout(config.layout)
    if timed is not None:
        _tell_unused(timed, bundle)
    return timed and timed.check(config.seconds, slots)


def _check_text(config: GenerateConfig) -> None:
    """Options of driving video do nothing in text-to-video, and the other way round."""
    usual = {f.name: [] if f.default is MISSING else f.default for f in fields(GenerateConfig)}
    given = [name for name in (TEXT if config.prompt is None else DRIVING) if getattr(config, name) != usual[name]]
    if given and config.prompt is None:
        raise UserError(f"{given[0]}={getattr(config, given[0])} is for text-to-video; give prompt=... too")
    if given:
        raise UserError(f"{given[0]}={getattr(config, given[0])} does nothing in text-to-video; leave it out")
    if config.offload not in OFFLOADS:
        raise UserError(f"offload={config.offload}, expected one of {', '.join(OFFLOADS)}")
    _range("lora_scale", config.lora_scale, -10, 10)
    for name in ("frames", "height", "width"):
        _range(name, getattr(config, name), 1, 1_000_000)


def generate(
    config: GenerateConfig,
    pipeline: "DrivingPipeline",
    start: Tensor | None,
    layout: Layout | None,
    lens: Lens | None = None,
) -> None:
    """Stream a driving video to `config.out`; what steered it, boxes seen through `lens`, is written beside it."""
    fps, frames = pipeline.fps, round(config.seconds * pipeline.fps)
    if not frames:
        raise UserError(f"seconds={config.seconds:g} is less than one frame at {fps:g} fps; ask for more")
    working = config.upsampler == "none"
    height, width = (pipeline.low_height, pipeline.low_width) if working else (pipeline.height, pipeline.width)
    made_of = settings(asdict(config), Bundle(Path(config.bundle)))
    made_of["content of start"] = None if start is None else content({"start": start})
    made_of["content of layout"] = None if layout is None else content(vars(layout))
    video = pipeline(start=start, layout=layout, seconds=config.seconds, seed=config.seed, upsampler=config.upsampler)
    keeper = Keeper(config.out, video, made_of, config.overwrite)
    told = f"start {config.start}, layout {config.layout}"
    drawn = layout if config.draw_boxes else None
    labels = partial(save_labels, beside(config.out, LAYOUT_SUFFIX), pipeline, layout, lens)
    write(config, video, frames, fps, height, width, told, drawn, keeper, labels)


def write(
    config: GenerateConfig,
    video: Iterator[Tensor],
    frames: int,
    fps: float,
    height: int,
    width: int,
    told: str,
    drawn: Layout | None = None,
    keeper: Keeper | None = None,
    labels: Callable[[int], object] | None = None,
) -> None:
    """Stream frames uint8 [3, height, width] to `config.out`, with the boxes of `drawn` on them; then what belongs
    beside it.

    keeper  of a video that can go on, saves after every segment how far it has come. Without one the finished part is
            kept after Ctrl-C, and the same command begins anew
    labels  writes those of so many frames beside it
    """
    out, begun = Path(config.out), keeper.begun if keeper else None
    done, sheet = (begun.written.frames, dict(begun.sheet)) if begun else (0, {})
    print(f"{out}: {frames} frames, {frames / fps:.2f} s at {fps:g} fps, {height}x{width}")
    print(f"bundle {config.bundle}, {told}, seed {config.seed}")
    if done:
        print(f"{out}: going on after {done / fps:.2f} s")

    wanted = set(np.linspace(0, frames - 1, min(SHEET_FRAMES, frames)).round().astype(int).tolist())
    origin = _provenance(config)
    replacing = config.overwrite or (begun is not None and begun.complete)
    written = begun.written if begun else None
    writer = VideoWriter(out, fps, height, width, overwrite=replacing, begun=written, tags=tags(origin))
    pictures = tqdm(_pictures(video, drawn, done), "generate", frames, initial=done, unit="frame")
    began = time.perf_counter()
    try:
        with writer, pictures:
            if not done:
                checkpoint_path(out).unlink(missing_ok=True)  # of another video, which is replaced
            remove_leftovers(out, checkpoint_path(out), *(beside(out, suffix) for suffix in BESIDE))
            for i, picture in enumerate(pictures, done):
                writer.write(picture)
                if i in wanted:
                    sheet[i] = _small(picture)
                if keeper and writer.written.frames == i + 1 < frames:
                    keeper.save(writer.written, sheet)
            if keeper:
                writer.flush()
                keeper.save(writer.written, sheet, complete=True)
                if labels is not None:
                    labels(frames)
                _write_beside(config, writer, origin, sheet, complete=True, spent=keeper.costs)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_interrupted(writer)) from interrupt
    finally:
        if writer.kept and not keeper:
            _write_beside(config, writer, origin, sheet, complete=writer.frames == frames)
    if keeper:
        checkpoint_path(out).unlink()
    wall, made = time.perf_counter() - began, (frames - done) / fps
    speed = f"{made / wall:.3g} x real time"
    print(f"{out}: {made:.2f} s of video in {wall:.1f} s ({speed}), peak memory {peak_memory()}")
    if keeper:
        print(costs.table(keeper.costs, frames / fps))


def _interrupted(writer: VideoWriter) -> str:
    if not writer.written.frames:
        return "interrupted; nothing was finished yet"
    again = "run the same command to go on" if writer.resumable else "add overwrite=true to make it anew"
    return f"interrupted; {again}"


def beside(out: Path | str, suffix: str) -> Path:
    """OUT.json and OUT.png keep the .mp4 in their names, so that they never hit a layout or start called like OUT."""
    return Path(f"{out}{suffix}")


def peak_memory() -> str:
    """The most memory that was held at once, of this process and on the GPU, for people."""
    gpu = f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU" if torch.cuda.is_available() else ""
    return f"{peak_mib():.0f} MiB{gpu}"


def peak_mib() -> float:
    """The most memory this process held at once, MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _range(name: str, value: float | None, low: float, high: float, above: bool = False) -> None:
    """Refuse a value outside [low, high], or (low, high] with `above`; NaN lies in neither."""
    if value is not None and not (low < value <= high if above else low <= value <= high):
        expected = f"more than {low:g} and at most {high:g}" if above else f"{low:g} to {high:g}"
        raise UserError(f"{name}={value:g}, expected {expected}")


def _check_conditions(config: GenerateConfig, bundle: Bundle) -> None:
    """raises UserError if something is asked for that the model was not trained on: it would steer nothing"""
    have = _conditions(bundle)
    for name in ASKED:
        if (value := getattr(config, name)) is not None:
            check_known(f"{name}={value}", [name], have)
    check_known("guidance", config.guidance, have)


def _tell_unused(timed: TimedLayout, bundle: Bundle) -> None:
    """Say what a file asks for that the model was not trained on. A stored clip tells all that was known of it."""
    if timed.keep_largest:
        return
    unheard = [name for name in CONDITIONS if name not in (*ALWAYS_TOLD, *_conditions(bundle))]
    if unused := [name for name in unheard if CONDITIONS[name].told(timed.layout).any()]:
        found = f"{timed.source}: this model is not told {', '.join(unused)}"
        print(f"drivesim: {found}; that steers nothing", file=sys.stderr)


def _conditions(bundle: Bundle) -> Sequence[str]:
    """What a model is told, as its config says; the usual ones where there is none, which is told later."""
    model = bundle.config("image").get("model") if bundle.has("image") else None
    return model.get("conditions", USUAL) if isinstance(model, dict) else USUAL


def _check_out(config: GenerateConfig) -> None:
    begun = None if config.overwrite else Checkpoint.read(config.out)
    replacing = config.overwrite or (begun is not None and begun.complete)  # then these are the files of this video
    out = check_output(config.out, ".mp4", replacing)
    unwritten = {SHEET_SUFFIX: not config.contact_sheet, LAYOUT_SUFFIX: bool(config.prompt)}
    for suffix in BESIDE:
        if not unwritten.get(suffix):
            refuse_existing(beside(out, suffix), replacing)


def _layout(config: GenerateConfig, timed: TimedLayout | None, pipeline: "DrivingPipeline") -> Layout | None:
    """The layout with labels and ego motion as asked; None if nothing is asked for."""
    asked = (config.night, config.crowdedness, config.weather, config.speed, config.turn)
    if timed is None and asked == (None,) * len(asked):
        return None
    # Two frames are enough where nothing changes: the pipeline goes on from there, and a day takes no more memory.
    still = Layout.unknown(2, slots=pipeline.slots)
    layout = timed.sample(config.seconds, pipeline.fps, pipeline.slots) if timed else still
    seconds = torch.arange(layout.num_frames) / pipeline.fps
    layout = layout.driven(seconds, SPEED_MPS)
    values = {
        "night": config.night,
        "crowdedness": config.crowdedness,
        "speed": config.speed,
        "travel": config.speed and config.speed * seconds,
        "turn": config.turn and math.radians(config.turn),
        "heading": config.turn and math.radians(config.turn) * seconds,
    }
    given = {name: value + torch.zeros_like(seconds) for name, value in values.items() if value is not None}
    if config.weather is not None:
        given["weather"] = torch.full_like(layout.weather, WEATHERS.index(config.weather))
    return replace(layout, **given)


def _pictures(frames: Iterator[Tensor], drawn: Layout | None, first: int = 0) -> Iterator[np.ndarray]:
    """Frames uint8 [3, H, W], the first of this number, as arrays [H, W, 3], with the boxes of `drawn` on them."""
    for i, frame in enumerate(frames, first):
        picture = frame.permute(1, 2, 0).cpu().numpy()
        yield picture if drawn is None else draw_layout(picture, drawn[min(i, drawn.num_frames - 1)])


def _small(picture: np.ndarray) -> np.ndarray:
    """A copy for the contact sheet, at most SHEET_WIDTH wide."""
    height, width = picture.shape[:2]
    scale = min(1.0, SHEET_WIDTH / width)
    return cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def _provenance(config: GenerateConfig) -> dict[str, Any]:
    asked = {"prompt": config.prompt} if config.prompt is not None else {"start": config.start, "layout": config.layout}
    return provenance(Bundle(Path(config.bundle)), config.seed, **asked)


def _write_beside(
    config: GenerateConfig,
    writer: VideoWriter,
    origin: dict[str, Any],
    sheet: dict[int, np.ndarray],
    complete: bool,
    spent: dict[str, costs.Cost] | None = None,
) -> None:
    """OUT.json, what made the video and is enough to make it again, and OUT.png."""
    record: dict[str, Any] = {
        "drivesim": __version__,
        "torch": torch.__version__,
        "provenance": origin,
        "options": asdict(config),
        "frames": writer.frames,
        "fps": float(writer.rate),
        "height": writer.height,
        "width": writer.width,
        "complete": complete,
        "machine": {"device": probe().device, "precision": probe().precision, "threads": probe().threads},
    }
    if spent is not None:
        record["costs"] = costs.record(spent)
    with atomic_path(beside(config.out, ".json")) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    if config.contact_sheet:
        captions = [f"{i / float(writer.rate):.2f} s" for i in sheet]
        save_png(contact_sheet(list(sheet.values()), SHEET_COLUMNS, captions), beside(config.out, ".png"))
