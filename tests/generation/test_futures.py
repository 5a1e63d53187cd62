"""Many futures of one start as a user meets them, with a pipeline that paints what it was asked for."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from drivesim import cli
from drivesim.data import video
from drivesim.generation import futures as many
from drivesim.generation import generate as single
from drivesim.generation.costs import Meter
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.stage import Rollout, Stage, take


@dataclass
class Settings:
    """Stands in for the sampler's."""

    layout_guidance: float = 1.5


@dataclass
class Painter:
    """Frames whose red is the seed, whose green the night asked for, whose blue the turn in degrees a second."""

    fps, key_fps, slots = 8.0, 1.0, 4
    height, width, low_height, low_width = 64, 128, 32, 64
    config: Settings = field(default_factory=Settings)
    calls: list[tuple[int, float]] = field(default_factory=list)
    stop_at_call: int | None = None
    layout_at = DrivingPipeline.layout_at

    def __call__(self, *, start, layout, seconds, seed, upsampler="diffusion"):
        turn = 0.0 if layout is None else float(torch.rad2deg(layout.turn[0]).nan_to_num())
        night = 0.0 if layout is None else float(layout.night[0].nan_to_num())
        self.calls.append((seed, round(turn)))
        colour = torch.tensor([20.0 * seed, 200 * night, 100 + 5 * turn]).round() / 127.5 - 1

        def paint(kept):
            if len(self.calls) == self.stop_at_call:
                raise KeyboardInterrupt
            return [colour[:, None, None].expand(3, self.height, self.width)]

        return Rollout(take(Stage("paint", paint), round(seconds * self.fps)), Meter())


@pytest.fixture
def painter(tmp_path, monkeypatch) -> Painter:
    made = Painter()
    for module in (single, many):
        monkeypatch.setattr(module, "load_pipeline", lambda config: made)
    monkeypatch.chdir(tmp_path)
    Path("bundle").mkdir()
    Path("bundle/model_index.json").write_text('{"format": 1, "data": {"slots": 4}, "stages": {}}')
    for night in (0, 1):
        frames = [{"time_s": t, "night": night, "boxes": []} for t in (0, 9)]
        Path(f"night{night}.json").write_text(json.dumps({"frames": frames}))
    return made


@pytest.fixture
def generate(capsys) -> Callable[..., tuple[int, str]]:
    """generate("futures=2", ...): the exit code, and what was told on stderr."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        try:
            cli.main(["generate", "bundle=bundle", "seconds=1", *words])
        except SystemExit as stopped:
            return int(stopped.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_each_future_has_a_seed_and_a_video_with_its_record_and_there_is_a_mosaic(painter, generate):
    assert generate("futures=3", "seed=4", "out=drive.mp4")[0] == 0
    assert painter.calls == [(4, 0), (5, 0), (6, 0)]
    rows = json.loads(Path("drive/futures.json").read_text())["futures"]
    assert [(row["file"], row["caption"]) for row in rows] == [(f"future_{i}.mp4", f"seed {4 + i}") for i in range(3)]
    for i in range(3):
        record = json.loads(Path(f"drive/future_{i}.mp4.json").read_text())
        assert (record["options"]["seed"], record["options"]["futures"], record["frames"]) == (4 + i, None, 8)
    assert video.probe(Path("drive.mp4")).frames == 8


def test_a_future_is_what_generate_makes_of_its_record_alone(painter, generate):
    assert generate("futures=2", "futures_turns=[-8,8]", "out=drive.mp4")[0] == 0
    assert generate("turn=8.0", "out=alone.mp4")[0] == 0
    assert Path("alone.mp4").read_bytes() == Path("drive/future_1.mp4").read_bytes()
    both = [json.loads(Path(f"{name}.mp4.json").read_text())["options"] for name in ("alone", "drive/future_1")]
    assert {**both[0], "out": ""} == {**both[1], "out": ""}


def test_what_varies_goes_round_before_the_seed_moves_on(painter, generate):
    assert generate("futures=6", "futures_turns=[-8,0,8]", "out=out")[0] == 0
    assert painter.calls == [(0, -8), (0, 0), (0, 8), (1, -8), (1, 0), (1, 8)]
    assert Path("out/mosaic.mp4").exists()


def test_without_a_number_there_are_as_many_as_there_are_values(painter, generate):
    assert generate("futures_layouts=[night0.json,night1.json]", "out=out")[0] == 0
    first, second = (next(video.iterate(Path(f"out/future_{i}.mp4"))) for i in range(2))
    assert first[..., 1].mean() < 5
    assert second[..., 1].mean() > 190


def test_a_run_that_was_stopped_makes_what_is_missing_and_ends_with_the_same_bytes(painter, generate):
    words = ("futures=3", "futures_turns=[-8,0,8]")
    assert generate(*words, "out=whole.mp4")[0] == 0
    painter.calls.clear()
    painter.stop_at_call = 2
    assert generate(*words, "out=stopped.mp4")[0] == 130
    assert not Path("stopped.mp4").exists()
    painter.stop_at_call = None
    painter.calls.clear()
    assert generate(*words, "out=stopped.mp4")[0] == 0
    assert painter.calls == [(0, 0), (0, 8)]
    assert Path("stopped.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    for i in range(3):
        assert Path(f"stopped/future_{i}.mp4").read_bytes() == Path(f"whole/future_{i}.mp4").read_bytes()


def test_overwrite_makes_all_of_them_anew(painter, generate):
    assert generate("futures=2", "out=drive.mp4")[0] == 0
    before = contents("drive")
    assert generate("futures=2", "seed=9", "out=drive.mp4", "overwrite=true")[0] == 0
    assert painter.calls == [(0, 0), (1, 0), (9, 0), (10, 0)]
    assert contents("drive")["future_0.mp4"] != before["future_0.mp4"]


MISTAKES = {
    "none at all": (["futures=0"], "futures=0, expected 1 to 64"),
    "too many": (["futures=65"], "futures=65, expected 1 to 64"),
    "no multiple": (
        ["futures=4", "futures_turns=[-8,0,8]"],
        "futures_turns has 3; give a multiple of 3",
    ),
    "other lengths": (["futures_turns=[1,2]", "futures_speeds=[1,2,3]"], "futures_turns has 2, futures_speeds has 3"),
    "both": (["turn=3", "futures_turns=[1,2]"], "turn=3.0 and futures_turns are both given"),
    "a turn of no car": (["futures_turns=[0,200]"], "turn=200, expected -90 to 90"),
    "a missing layout": (["futures_layouts=[night0.json,none.json]"], "none.json does not exist"),
    "no list": (["futures_turns=8"], "futures_turns"),
    "words": (["futures=2", "prompt=rain"], "futures=2 does nothing in text-to-video"),
    "a bad start": (["futures=2", "start=nowhere.png"], "nowhere.png does not exist"),
}


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case)
def test_a_mistake_is_one_line_and_nothing_is_written(painter, generate, case):
    words, expected = MISTAKES[case]
    before = sorted(Path().rglob("*"))
    code, told = generate(*words, "out=out")
    assert code == 2
    assert expected in told
    assert len(told.splitlines()) == 1
    assert sorted(Path().rglob("*")) == before
    assert painter.calls == []


def test_what_is_there_already_is_not_touched_unasked(painter, generate):
    Path("other").mkdir()
    Path("other/mine.txt").write_text("mine")
    assert "holds other files" in generate("futures=2", "out=other")[1]
    assert generate("futures=2", "out=drive.mp4")[0] == 0
    assert "drive.mp4 exists" in generate("futures=2", "out=drive.mp4")[1]
    Path("drive.mp4").unlink()
    assert "holds futures of other options" in generate("futures=3", "out=drive.mp4")[1]
    Path("drive/futures.json").write_text("{")
    assert "is not readable" in generate("futures=2", "out=drive.mp4")[1]
    assert len(painter.calls) == 2
