"""Generated videos that tests can judge: grey streets with a blue car and a red pedestrian where the layout asks."""

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

from drivesim import cli
from drivesim.clip import CLASSES, Camera, Layout
from drivesim.generation.layout_file import Lens, save_layout
from drivesim.generation.writer import VideoWriter
from drivesim.geometry import corners, picture_box
from drivesim.tags import tags

FPS, HEIGHT, WIDTH = 10.0, 64, 128
LENS = Lens(0.63, 1.26, 0.5, 0.44)
COLOURS = {"car": (30, 60, 220), "pedestrian": (220, 40, 40)}
CAMERA = Camera(np.array([[LENS.fx * WIDTH, 0, 64], [0, LENS.fy * HEIGHT, 0.44 * HEIGHT], [0, 0, 1]]), HEIGHT, WIDTH)


def places(t: int) -> dict[int, tuple[str, list[float], list[float], float]]:
    """Track -> class, centre x y z, length width height, yaw, of frame `t`."""
    return {
        3: ("car", [-2.0, 0.8, 11.0 - 0.1 * t], [4.2, 1.8, 1.5], 0.1),
        7: ("pedestrian", [1.5 + 0.02 * t, 0.7, 5.0], [0.6, 0.6, 1.7], 1.2),
    }


def layout_of(frames: int) -> Layout:
    """A car that is caught up with and a pedestrian who crosses, on a bend to the right at 8 m/s by night."""
    layout = Layout.unknown(frames, slots=3)
    for t in range(frames):
        for slot, (track, (name, centre, size, yaw)) in enumerate(places(t).items()):
            outline = picture_box(CAMERA, corners(np.array([centre]), np.array([size]), np.array([yaw]))[0])
            layout.boxes[t, slot] = torch.tensor(outline)
            layout.classes[t, slot], layout.tracks[t, slot] = CLASSES.index(name), track
            layout.solids[t, slot] = torch.tensor([centre[2], *size, yaw])
    layout.known[:], layout.night[:], layout.weather[:] = True, 1.0, 2
    seconds = torch.arange(frames) / FPS
    layout.travel[:], layout.heading[:], layout.speed[:] = 8 * seconds, 0.05 * seconds, 8
    return layout


def picture(layout: Layout, shown: tuple[str, ...]) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
    for box, kind in zip(layout.boxes, layout.classes.tolist(), strict=True):
        if kind >= 0 and CLASSES[kind] in shown:
            x1, y1, x2, y2 = (box.numpy() * [WIDTH, HEIGHT, WIDTH, HEIGHT]).round().astype(int)
            image[y1:y2, x1:x2] = COLOURS[CLASSES[kind]]
    return image


def write_generated(
    path: Path, frames: int = 40, hidden: range = range(0), lens: Lens | None = LENS, **changes
) -> Path:
    """What `drivesim generate` leaves; `hidden` frames do not show the car that they were asked for.

    changes  layout=, fps= (of the layout file), provenance=, draw_boxes=
    """
    layout = changes.get("layout", layout_of(frames))
    origin = {"synthetic": True, "made_by": "drivesim 0.1.0", "bundle_sha256": "ab" * 32, "seed": 4, "layout": "x.json"}
    origin = changes.get("provenance", origin)
    with VideoWriter(path, FPS, HEIGHT, WIDTH, crf=4, tags=tags(origin)) as writer:
        for t in range(frames):
            shown = ("pedestrian",) if t in hidden else ("car", "pedestrian")
            writer.write(picture(layout[min(t, layout.num_frames - 1)], shown))
    save_layout(layout, changes.get("fps", FPS), Path(f"{path}.layout.json"), lens)
    options = {"draw_boxes": changes.get("draw_boxes", False), "bundle": "gone"}
    Path(f"{path}.json").write_text(json.dumps({"provenance": origin, "options": options}))
    return path


class Blobs(torch.nn.Module):
    """Finds the blue and the red pixels of a frame: one box each, labels 1 and 4."""

    def forward(self, frames: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        boxes, scores, labels = [], [], []
        for frame in frames:
            found: list[torch.Tensor] = []
            kinds: list[int] = []
            red, blue = frame[0].int(), frame[2].int()
            for kind, mask in [(1, blue - red > 90), (4, red - blue > 90)]:
                if bool(mask.any()):
                    rows, columns = mask.nonzero()[:, 0], mask.nonzero()[:, 1]
                    sides = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    found.append(torch.stack(sides).float())
                    kinds.append(kind)
            boxes.append(torch.stack(found) if len(found) > 0 else torch.zeros(0, 4))
            scores.append(torch.full((len(kinds),), 0.9))
            labels.append(torch.tensor(kinds, dtype=torch.long))
        return boxes, scores, labels


@pytest.fixture(scope="session")
def blobs(tmp_path_factory) -> Path:
    """A detector as a user brings it."""
    path = tmp_path_factory.mktemp("detector") / "blobs.pt"
    torch.jit.script(Blobs()).save(str(path))
    return path


@pytest.fixture(scope="session")
def make_generated() -> Callable[..., Path]:
    """make_generated(path, frames=40, hidden=range(0), ...), see `write_generated`."""
    return write_generated


@pytest.fixture
def export(monkeypatch, capsys, blobs):
    """export("videos=...") runs `drivesim export` with the blob detector; (exit code, stdout, last line of stderr)."""
    entry = EntryPoint("export", "data_prep.generated.command:main", "drivesim.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry])

    def run(*words: str, looking: bool = True) -> tuple[int, str, str]:
        detector = [f"detector={blobs}", "detector_labels={1: car, 4: pedestrian}"] if looking else []
        code = 0
        try:
            cli.main(["export", *detector, *words])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err.strip().rpartition("\n")[2]

    return run


@pytest.fixture
def asked() -> Callable[[int], Layout]:
    """asked(frames) is the layout that `make_generated` writes, see `layout_of`."""
    return layout_of
