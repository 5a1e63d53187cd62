"""The command line as a user meets it: `drivesim generate` end to end with a pipeline that draws a drifting picture."""

import builtins
import errno
import io
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from drivesim import cli, machine
from drivesim.clip import from_uint8
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError
from drivesim.generation import checkpoint, writer
from drivesim.generation.costs import Meter
from drivesim.generation.layout_file import read_layout
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.stage import Rollout, Stage, take

ROOT = Path(__file__).parents[1]
FPS, HEIGHT, WIDTH = 16.0, 64, 128


@dataclass
class Sampling:
    """Stands in for the pipeline's sampler settings."""

    sampler: str = "ddim"
    keyframe_steps: int = 16
    interpolate_steps: int = 6
    upsample_steps: int = 3
    layout_guidance: float = 1.5
    guidance: dict = field(default_factory=dict)
    context_guidance: float = 1.0


@dataclass
class DriftingPipeline:
    """Frame i is a picture moved by i pixels; `stop_at` raises Ctrl-C there, as if the user pressed it."""

    fps, key_fps, slots = FPS, 1.0, 4
    height, width, low_height, low_width = HEIGHT, WIDTH, HEIGHT // 2, WIDTH // 2
    layout_at = DrivingPipeline.layout_at
    config: Sampling = field(default_factory=Sampling)
    calls: list = field(default_factory=list)
    loaded: list = field(default_factory=list)
    stop_at: int | None = None

    def from_pretrained(self, folder, upsampler=True):
        self.loaded.append(folder)
        return self

    def __call__(self, *, start, layout, seconds, seed, upsampler="diffusion"):
        self.calls.append({"start": start, "layout": layout, "seconds": seconds, "seed": seed, "upsampler": upsampler})
        size = (self.low_height, self.low_width) if upsampler == "none" else (self.height, self.width)
        picture = torch.randint(0, 255, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)

        def drift(kept):
            i = kept.setdefault("frame", 0)
            if i == self.stop_at:
                raise KeyboardInterrupt
            kept["frame"] = i + 1
            return [from_uint8(picture.roll(i, -1))]

        return Rollout(take(Stage("drift", drift), round(seconds * self.fps)), Meter())


@pytest.fixture
def pipeline(tmp_path, monkeypatch) -> DriftingPipeline:
    """The working folder holds `bundle`, `start.png` and `layout.json`; the pipeline is a drifting picture."""
    made = DriftingPipeline()
    monkeypatch.setattr(machine, "_settled", None)  # what goes on settles it
    module = types.ModuleType("drivesim.generation.pipeline")
    module.DrivingPipeline = made
    monkeypatch.setitem(sys.modules, "drivesim.generation.pipeline", module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model_index.json").write_text('{"format": 1, "data": {"slots": 4}, "stages": {}}')
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, np.uint8)).save(tmp_path / "start.png")
    box = {"track": 5, "class": "car", "x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 0.6}
    frames = [{"time_s": 0, "night": 0, "boxes": [box]}, {"time_s": 4, "night": 1, "boxes": [box]}]
    (tmp_path / "layout.json").write_text(json.dumps({"frames": frames}))
    return made


def run(*words: str) -> int:
    """The exit code of `drivesim WORDS`."""
    try:
        cli.main(list(words))
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def generate(*words: str) -> int:
    return run("generate", "bundle=bundle", *words)


def frames_of(path) -> int:
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def told(capsys) -> str:
    """The one line on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("drivesim: ")
    return lines[0]


def test_a_video_its_record_and_its_contact_sheet_are_written(pipeline, tmp_path, capsys):
    assert generate("seconds=1.5", "seed=3", "start=start.png", "layout=layout.json", "keyframe_steps=2") == 0
    assert frames_of("generated.mp4") == 24
    record = json.loads((tmp_path / "generated.mp4.json").read_text())
    assert (record["frames"], record["complete"], record["options"]["seed"]) == (24, True, 3)
    assert {"synthetic": True, "seed": 3, "layout": "layout.json"}.items() <= record["provenance"].items()
    with av.open("generated.mp4") as video:
        assert video.metadata["synthetic"] == "true"
    asked, written = (read_layout(f"{name}layout.json") for name in ("", "generated.mp4."))
    assert written.layout.boxes.equal(asked.sample(1.5, FPS, 4).boxes[:, :1])
    assert Image.open("generated.mp4.png").size == (4 * (WIDTH + 4) + 4, 3 * (HEIGHT + 12 + 4) + 4)
    assert {p.name for p in tmp_path.glob("*.*")} == {
        "start.png", "layout.json", "generated.mp4", "generated.mp4.json", "generated.mp4.layout.json",
        "generated.mp4.png",
    }  # fmt: skip
    call = pipeline.calls[0]
    assert call["start"].shape == (1, 3, HEIGHT, WIDTH)
    assert call["layout"].boxes.shape == (24, 4, 4)
    assert pipeline.config.keyframe_steps == 2
    shown = capsys.readouterr()
    assert "24 frames, 1.50 s at 16 fps, 64x128" in shown.out
    assert "x real time" in shown.out
    assert "peak memory" in shown.out
    assert "24/24" in shown.err


def test_the_same_command_gives_the_same_bytes(pipeline, tmp_path):
    for name in ("a", "b"):
        assert generate("seconds=1", "seed=3", f"out={name}.mp4") == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_labels_override_the_layout_and_work_without_one(pipeline):
    generate("seconds=1", "layout=layout.json", "night=0.5", "out=a.mp4")
    generate("seconds=1", "crowdedness=3", "out=b.mp4")
    generate("seconds=1", "out=c.mp4")
    first, second, third = (call["layout"] for call in pipeline.calls)
    assert (first.night == 0.5).all()
    assert first.known.all()
    assert (second.crowdedness == 3).all()
    assert not second.known.any()
    assert third is None


def test_speed_and_turn_say_how_the_car_drives_whatever_the_layout_says(pipeline):
    generate("seconds=1", "speed=5", "turn=90", "out=a.mp4")
    generate("seconds=1", "layout=layout.json", "speed=0", "out=b.mp4")
    turning, standing = (call["layout"] for call in pipeline.calls)
    assert torch.allclose(turning.travel.diff(), torch.tensor(5 / 16))  # at 16 frames a second
    assert torch.allclose(turning.heading.diff(), torch.tensor(torch.pi / 2 / 16))
    assert (standing.travel == 0).all()
    assert standing.known.all()


def told_of(*conditions: str) -> None:
    """Let the bundle be one of a model that is told these conditions."""
    with open("bundle/model_index.json", "w") as index:
        json.dump({"format": 1, "data": {"slots": 4}, "stages": {"image": {"sha256": ""}}}, index)
    os.makedirs("bundle/image", exist_ok=True)
    with open("bundle/image/config.json", "w") as config:
        json.dump({"model": {"conditions": conditions}}, config)


def test_weather_speed_and_turn_are_told_for_every_frame_and_guidance_by_name(pipeline):
    told_of("boxes", "weather", "speed")
    words = ["seconds=1", "layout=layout.json", "weather=fog", "speed=5", "turn=90"]
    assert generate(*words, "guidance={weather: 2, speed: 1.5}") == 0
    layout = pipeline.calls[0]["layout"]
    assert (layout.weather == WEATHERS.index("fog")).all()
    assert (layout.speed == 5).all()
    assert torch.allclose(layout.turn, torch.tensor(torch.pi / 2))
    assert pipeline.config.guidance == {"weather": 2.0, "speed": 1.5}


def test_what_a_file_says_to_a_model_that_is_not_told_it_gets_a_line_and_steers_nothing(pipeline, capsys):
    told_of("boxes", "night")
    frames = [{"time_s": 0, "night": 1, "weather": "rain", "boxes": []}, {"time_s": 4}]
    with open("wet.json", "w") as file:
        json.dump({"frames": frames}, file)
    assert generate("seconds=1", "layout=wet.json") == 0
    assert "layout wet.json: this model is not told weather; that steers nothing" in capsys.readouterr().err
    told_of("boxes", "night", "weather")
    assert generate("seconds=1", "layout=wet.json", "overwrite=true") == 0
    assert "steers nothing" not in capsys.readouterr().err


def test_a_scenario_steers_and_a_line_names_whom_the_model_cannot_take(pipeline, capsys):
    assert generate("seconds=2", "layout=dense_traffic", "seed=1") == 0
    layout = pipeline.calls[0]["layout"]
    assert layout.boxes.shape == (32, 4, 4)
    assert (layout.tracks == 1).any(-1).all()  # the leader, which has priority
    assert layout.speed[0] == 5
    assert layout.solids[0, 0, 1] == pytest.approx(4.4)
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 1
    assert "scenario dense_traffic: the model takes 4 boxes a frame" in lines[0]
    assert generate("seconds=2", "layout=dense") == 2


def test_without_an_upsampler_the_video_has_the_working_size(pipeline):
    assert generate("seconds=1", "upsampler=none") == 0
    with av.open("generated.mp4") as video:
        assert (video.streams.video[0].height, video.streams.video[0].width) == (HEIGHT // 2, WIDTH // 2)


def test_boxes_can_be_drawn_onto_the_video(pipeline):
    generate("seconds=1", "layout=layout.json", "out=plain.mp4")
    generate("seconds=1", "layout=layout.json", "out=drawn.mp4", "draw_boxes=true", "contact_sheet=false")
    plain, drawn = (
        next(av.open(f"{name}.mp4").decode(video=0)).to_ndarray(format="rgb24") for name in ("plain", "drawn")
    )
    assert np.abs(plain.astype(int) - drawn)[:12, :20].mean() > 20


def test_odd_names_work(pipeline, tmp_path):
    name = "my [drive], take=2 {it's}.mp4"
    assert generate("seconds=0.5", f"out=a b/{name}") == 0
    assert frames_of(tmp_path / "a b" / name) == 8


def layout_of(**changes) -> str:
    box = {"track": 7, "class": "car", "x1": 0.1, "y1": 0.1, "x2": 0.2, "y2": 0.2} | changes
    return json.dumps({"frames": [{"time_s": 0, "boxes": [box]}, {"time_s": 9, "boxes": []}]})


MANY = json.dumps({"frames": [{"boxes": [
    {"track": i, "class": "car", "x1": 0.1, "y1": 0.1, "x2": 0.2, "y2": 0.2} for i in range(5)]}]})  # fmt: skip
FILES = {
    "text.png": "no picture",
    "text.json": "{no json",
    "there.mp4": "mine",
    "nan.json": layout_of(x1=float("nan")),
    "negative.json": layout_of(x2=0.05),
    "outside.json": layout_of(x1=2, x2=3),
    "class.json": layout_of(**{"class": "tram"}),
    "many.json": MANY,
    "weather.json": json.dumps({"frames": [{"weather": "hail"}]}),
    "key.json": json.dumps({"frames": [{"wether": "rain"}]}),
}
MISTAKES = {
    "no length": (["seconds=0"], "seconds=0, expected more than 0"),
    "negative length": (["seconds=-1"], "seconds=-1, expected more than 0"),
    "length in letters": (["seconds=abc"], "seconds: found 'abc', expected a number"),
    "length nan": (["seconds=nan"], "seconds=nan"),
    "length inf": (["seconds=inf"], "seconds=inf"),
    "length of a week": (["seconds=604800"], "at most 86400"),
    "less than a frame": (["seconds=0.001"], "less than one frame"),
    "unknown option": (["second=3"], "unknown key 'second'; did you mean seconds"),
    "no option": (["fast"], "expected key=value, found 'fast'"),
    "wrong type": (["seed=x"], "seed: found 'x', expected a whole number"),
    "negative seed": (["seed=-1"], "seed=-1"),
    "night of 2": (["night=2"], "night=2, expected 0 to 1"),
    "backwards": (["speed=-3"], "speed=-3, expected 0 to 60"),
    "unknown weather": (["weather=hail"], "weather=hail, expected one of clear, cloudy, rain, snow, fog"),
    "weather untold": (
        ["weather=rain"],
        "weather=rain: this model is not told weather; it is told boxes, night",
    ),
    "guidance untold": (["guidance={fog: 2}"], "guidance: this model is not told fog; it is told boxes, night"),
    "guidance nan": (["guidance={boxes: nan}"], "guidance.boxes=nan, expected 0 to 100"),
    "guidance in letters": (["guidance={boxes: much}"], "guidance.boxes: found 'much', expected a number"),
    "layout weather": (["layout=weather.json"], "frame 0: weather is 'hail', expected one of clear"),
    "layout key": (["layout=key.json"], "frame 0: unknown key 'wether'; known: time_s, night"),
    "spinning": (["turn=400"], "turn=400, expected -90 to 90"),
    "no steps": (["upsample_steps=0"], "upsample_steps=0, expected 1 to"),
    "unknown upsampler": (["upsampler=magic"], "upsampler=magic, expected one of diffusion, bicubic, none"),
    "unknown sampler": (["sampler=magic"], "sampler=magic, expected one of"),
    "missing bundle": (["bundle=nowhere"], "bundle nowhere is not a folder"),
    "bundle is a file": (["bundle=start.png"], "bundle start.png is not a folder"),
    "empty bundle": (["bundle=."], "has no model_index.json"),
    "missing start": (["start=nothing.png"], "nothing.png does not exist"),
    "start is a folder": (["start=bundle"], "is a folder"),
    "start is text": (["start=text.png"], "named like a picture but holds none"),
    "start is a layout": (["start=layout.json"], "neither a picture nor a video"),
    "start_time alone": (["start_time=1"], "needs start=VIDEO"),
    "start_time of a picture": (["start=start.png", "start_time=1"], "is a picture"),
    "missing layout": (["layout=nothing.json"], "nothing.json does not exist"),
    "layout of no kind": (["layout=start.png"], "expected a .json or .csv file"),
    "layout no json": (["layout=text.json"], "not valid JSON"),
    "layout nan": (["layout=nan.json"], "frame 0: track 7: x1 is nan"),
    "layout negative size": (["layout=negative.json"], "frame 0: track 7: size"),
    "layout outside": (["layout=outside.json"], "frame 0: track 7: wholly outside"),
    "layout class": (["layout=class.json"], "unknown class 'tram'; known: car"),
    "layout full": (["layout=many.json", "seconds=0.01"], "frame 0 has 5 boxes, the model takes 4"),
    "layout short": (["layout=layout.json", "seconds=9"], "has 2 frames, 4.03 s; 9 s were asked for"),
    "layout of no store": (["layout=bundle:clip"], "bundle holds no clip store"),
    "existing output": (["out=there.mp4"], "there.mp4 exists; choose another name or add overwrite=true"),
    "output no mp4": (["out=a.avi"], "expected a name that ends in .mp4"),
    "output is a folder": (["out=folder.mp4"], "is a folder"),
    "output below a file": (["out=start.png/a.mp4"], "start.png is no folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_written(pipeline, tmp_path, capsys, case):
    words, message = MISTAKES[case]
    (tmp_path / "folder.mp4").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    assert generate(*words) == 2
    assert message in told(capsys)
    assert before == {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    if case != "less than a frame":  # the frame rate is known to the loaded bundle only
        assert not pipeline.loaded, "the weights were loaded before the mistake was found"


def unbroken(*words: str) -> list[bytes]:
    """What one run makes under another name: the video and its contact sheet."""
    assert generate("out=unbroken.mp4", *words) == 0
    return made_at("unbroken.mp4")


def made_at(name: str) -> list[bytes]:
    return [Path(name).read_bytes(), Path(f"{name}.png").read_bytes()]


def test_after_ctrl_c_what_is_finished_plays_and_the_same_command_goes_on_to_the_same_bytes(pipeline, tmp_path, capsys):
    whole = unbroken("seconds=4", "start=start.png")
    pipeline.stop_at = 40
    assert generate("seconds=4", "start=start.png") == 130
    assert frames_of("generated.partial.mp4") == 32
    shown = capsys.readouterr().err
    assert "the first 2.00 s (32 frames) play from generated.partial.mp4" in shown
    assert "interrupted; run the same command to go on" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "generated.mp4").exists()
    pipeline.stop_at = None
    assert generate("seconds=4", "start=start.png") == 0
    assert "going on after 2.00 s" in capsys.readouterr().out
    assert made_at("generated.mp4") == whole
    assert {path.name for path in tmp_path.glob("generated*")} == {
        "generated.mp4", "generated.mp4.json", "generated.mp4.layout.json", "generated.mp4.png",
    }  # fmt: skip
    one, other = (json.loads(Path(f"{name}.mp4.json").read_text()) for name in ("unbroken", "generated"))
    assert one.pop("costs").keys() == other.pop("costs").keys() == {"drift", "write"}
    assert one.pop("options") | {"out": "generated.mp4"} == other.pop("options")
    assert one == other


def stop(pipeline, *words: str) -> None:
    """A run of four seconds that is stopped in its third."""
    pipeline.stop_at = 40
    assert generate("seconds=4", *words) == 130
    pipeline.stop_at = None


def test_boxes_are_drawn_where_they_belong_after_going_on(pipeline):
    words = ["seconds=4", "layout=layout.json", "draw_boxes=true"]
    whole = unbroken(*words)
    stop(pipeline, *words)
    assert generate(*words) == 0
    assert made_at("generated.mp4") == whole


def change_bundle() -> None:
    told_of("boxes", "night")
    index = Path("bundle/model_index.json")
    index.write_text(index.read_text().replace('"sha256": ""', f'"sha256": "{"f" * 64}"'))


def change_sampler() -> None:
    index = {"format": 1, "data": {"slots": 4}, "stages": {}, "sampler": {"keyframe_steps": 3}}
    Path("bundle/model_index.json").write_text(json.dumps(index))


def change_start() -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 98, np.uint8)).save("start.png")


def change_layout() -> None:
    Path("layout.json").write_text(Path("layout.json").read_text().replace("0.1", "0.15"))


def cut_partial() -> None:
    Path("generated.partial.mp4").write_bytes(Path("generated.partial.mp4").read_bytes()[:-1])


def damage_checkpoint() -> None:
    Path("generated.partial.safetensors").write_bytes(b"no tensors")


OTHERS = {
    "seed": (["seed=1"], None, "seed=1 instead of 0"),
    "length": (["seconds=8"], None, "seconds=8.0 instead of 4.0"),
    "two": (["seed=1", "night=1"], None, "night=1.0 instead of None, seed=1 instead of 0"),
    "prompt": (["prompt=a car"], None, "generated.mp4 was begun with something else: "),
    "bundle": ([], change_bundle, "bundle.image=ffffffffffff instead of None"),
    "settings of the bundle": ([], change_sampler, "bundle.settings="),
    "start": ([], change_start, "content of start="),
    "layout": ([], change_layout, "content of layout="),
    "video": ([], cut_partial, "generated.partial.mp4 is not what was written of it"),
    "no video": ([], lambda: os.remove("generated.partial.mp4"), "generated.partial.mp4 is missing"),
    "checkpoint": ([], damage_checkpoint, "generated.partial.safetensors is damaged"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_video_does_not_go_on_as_another_one(pipeline, capsys, case):
    words, change, message = OTHERS[case]
    inputs = ["start=start.png", "layout=layout.json"] if case in ("start", "layout") else []
    stop(pipeline, *inputs)
    if change:
        change()
    capsys.readouterr()
    asked = [*(["seconds=4"] if case != "length" else []), *inputs, *words]
    before = {path: path.read_bytes() for path in Path().glob("generated*")}
    assert generate(*asked) == 2
    line = told(capsys)
    assert message in line
    assert "overwrite=true" in line
    assert before == {path: path.read_bytes() for path in Path().glob("generated*")}
    if case not in ("length", "prompt"):
        assert generate(*asked, "overwrite=true") == 0
        assert frames_of("generated.mp4") == 64
        assert not list(Path().glob("*.partial*"))


def test_a_command_that_overwrites_goes_on_as_well(pipeline, capsys):
    Path("generated.mp4").write_text("of before")
    stop(pipeline, "overwrite=true")
    assert Path("generated.mp4").read_text() == "of before"
    assert generate("seconds=4", "overwrite=true") == 0
    assert "going on after 2.00 s" in capsys.readouterr().out
    assert frames_of("generated.mp4") == 64


def test_another_software_does_not_go_on(pipeline, capsys, monkeypatch):
    stop(pipeline)
    capsys.readouterr()
    monkeypatch.setattr(checkpoint, "__version__", "0.0.1")
    assert generate("seconds=4") == 2
    assert "version of drivesim=0.0.1 instead of" in told(capsys)


@pytest.mark.parametrize("killed", ["VideoWriter._finish", "_write_beside", "save_png"])
def test_a_video_whose_last_files_were_not_written_gets_them(pipeline, monkeypatch, killed):
    whole = unbroken("seconds=2")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"drivesim.generation.generate.{killed}", interrupt)
        assert generate("seconds=2") == 130
    assert generate("seconds=2") == 0
    assert made_at("generated.mp4") == whole
    assert not list(Path().glob("*.partial*"))


def test_a_video_that_was_killed_before_its_checkpoint_went_away_is_whole(pipeline, monkeypatch, capsys):
    whole = unbroken("seconds=2")
    unlink = Path.unlink

    def interrupt(path, missing_ok=False):
        if path.suffix == ".safetensors" and Path("generated.mp4").exists():
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupt)
        assert generate("seconds=2") == 130
    assert [path.name for path in Path().glob("*.partial*")] == ["generated.partial.safetensors"]
    assert generate("seconds=2", "seed=1") == 2
    assert "seed=1 instead of 0" in capsys.readouterr().err
    assert generate("seconds=2") == 0
    assert "generated.mp4: whole, 32 frames" in capsys.readouterr().out
    assert made_at("generated.mp4") == whole
    assert not list(Path().glob("*.partial*"))


def test_what_is_computed_with_is_what_a_video_was_begun_with(pipeline):
    stop(pipeline)
    found = checkpoint.Checkpoint.read("generated.mp4")
    replace(found, machine={"bf16": not machine.probe().bf16, "threads": 1}).save("generated.mp4")
    assert generate("seconds=4") == 0
    assert machine.probe().bf16 is not found.machine["bf16"]


def test_ctrl_c_before_the_first_segment_leaves_nothing(pipeline, tmp_path, capsys):
    pipeline.stop_at = 12
    assert generate("seconds=4") == 130
    assert "nothing was finished yet" in capsys.readouterr().err
    assert not list(tmp_path.glob("generated*"))


@pytest.mark.parametrize("full", ["video", "checkpoint", "index"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_when_there_is_room(pipeline, capsys, monkeypatch, full):
    whole = unbroken("seconds=4")
    capsys.readouterr()
    calls = count()
    open_file, write_bytes = builtins.open, Path.write_bytes

    class Full(io.FileIO):
        def write(self, content):
            if next(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    def write_none(path, content):
        if path.suffix == ".safetensors" and next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_bytes(path, content)

    def open_full(path, mode="r", **options):
        return Full(path, mode) if str(path) == "generated.partial.mp4" and "a" in mode else open_file(path, mode)

    def index(source, target, tags):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        if full == "video":
            patch.setattr(writer, "open", open_full, raising=False)
        elif full == "checkpoint":
            patch.setattr(Path, "write_bytes", write_none)
        else:
            patch.setattr(writer, "_index", index)
        assert generate("seconds=4") == 2
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("drivesim: disk full")]
    assert len(shown) == 1
    assert "free some room and run" in shown[0]
    assert frames_of("generated.partial.mp4") == {"video": 32, "checkpoint": 48, "index": 64}[full]
    assert not Path("generated.mp4").exists()
    assert generate("seconds=4") == 0
    assert made_at("generated.mp4") == whole


def test_overwrite_replaces_all_of_its_files(pipeline, tmp_path):
    for seed in (1, 2):
        assert generate("seconds=0.5", f"seed={seed}", "overwrite=true") == 0
    assert json.loads((tmp_path / "generated.mp4.json").read_text())["options"]["seed"] == 2


def test_an_unknown_command_lists_the_known_ones(capsys):
    assert run("simulate") == 2
    message = told(capsys)
    assert "unknown command 'simulate'" in message
    assert all(command in message for command in ("evaluate", "generate", "plan", "prepare", "train"))


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys, words):
    assert run(*words) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("prepare", "train", "generate", "evaluate"))


def test_version_is_printed(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("drivesim 0.")


@dataclass
class Command:
    """An entry point that raises."""

    name: str
    error: BaseException

    def load(self):
        return self

    def __call__(self, argv):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("seven frames, eight expected"), 2, "drivesim: seven frames, eight expected"),
        (KeyboardInterrupt(), 130, "run the same command to go on"),
        (OSError(errno.ENOSPC, "No space left", "a.bin"), 2, "drivesim: disk full (a.bin)"),
    ],
)
def test_every_command_ends_in_one_line_and_its_exit_code(capsys, monkeypatch, error, code, message):
    monkeypatch.setattr(cli, "entry_points", lambda group: [Command("try", error)])
    assert run("try") == code
    assert message in told(capsys)


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: [Command("try", PermissionError(errno.EACCES, "denied"))])
    with pytest.raises(PermissionError):
        run("try")


def test_a_reader_that_has_seen_enough_is_no_mistake(small_store):
    read, write = os.pipe()
    os.close(read)  # as `| head` does
    words = [sys.executable, "-m", "drivesim", "data", "stats", f"store={small_store.root}"]
    run = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, "")
