"""A small car finder, trained on real frames. It looks for the vehicles that a generated clip was asked for.

The finder is a head on frozen EfficientNet-lite0 maps: what it knows beyond ImageNet comes from the train
split. Its own recall on held-out real frames is the ceiling of any score.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from drivesim.clip import CLASSES, VEHICLES, Layout
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.errors import UserError
from drivesim.files import atomic_path
from eval.features import efficientnet_lite0, normalise
from eval.videos import resize

INPUT = (128, 256)  # pixels
GRID = (32, 64)  # cells of the occupancy map
TAPS = {2: 24, 4: 40, 10: 112}  # EfficientNet-lite0 block -> channels, at 1/4, 1/8 and 1/16 of the input
SMALLEST = 0.005  # share of the picture; smaller boxes are a few cells and no test of steering
FOUND_IOU = 0.5
FAINTEST = 0.1  # score of the faintest detections that are looked at to choose the threshold
THRESHOLDS = np.arange(0.1, 0.91, 0.05)  # to choose from
VEHICLE_IDS = torch.tensor([CLASSES.index(name) for name in VEHICLES])

Sample = tuple[np.ndarray, np.ndarray]  # frame [H, W, 3] uint8, vehicle boxes [n, 4] fractions


class BoxHead(nn.Module):
    """What finds boxes on the maps of the frozen trunk.

    Per cell it predicts occupancy by each class, nearness to the box's middle (centre-ness of FCOS, Tian et al. 2019)
    and the distances to the four sides.
    """

    def __init__(self, classes: int = 1, width: int = 48) -> None:
        super().__init__()
        self.classes = classes
        self.taps = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in TAPS.values())
        self.head = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width),
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width),
            nn.SiLU(), nn.Conv2d(width, classes + 5, 1),
        )  # fmt: skip

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Trunk maps -> [b, classes + 5, 32, 64]: logits of occupancy by each class and of centre, log distances left,
        top, right, bottom."""
        scaled = [functional.interpolate(tap(m), GRID, mode="bilinear") for tap, m in zip(self.taps, maps, strict=True)]
        return self.head(torch.stack(scaled).sum(0))

    @torch.inference_mode()
    def candidates(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What every cell says of a frame, given its trunk maps [1, ...]: a box [cells, 4] in fractions, its score by
        each class [classes, cells], and how occupied it is by each [classes, cells], both 0..1."""
        occupancy, centre, sides = self(maps)[0].flatten(1).split([self.classes, 1, 4])
        occupied = occupancy.sigmoid()
        return _to_boxes(sides.T).clamp(0, 1), (occupied * centre.sigmoid()).sqrt(), occupied


class CarFinder(BoxHead):
    """Frames -> where vehicles are.

    `threshold` is the score from which a find counts, chosen on held-out real frames; `recall` and `precision` are
    those it has there, nan before.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__(1, width)
        self.threshold, self.recall, self.precision = FAINTEST, float("nan"), float("nan")

    def find(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vehicles in a uint8 frame [H, W, 3]: boxes [n, 4] fractions x1 y1 x2 y2, and occupancy [32, 64] in 0..1."""
        boxes, scores, occupancy = self.look(frame)
        return boxes[scores >= self.threshold], occupancy

    def look(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `find`, with the faint ones too: boxes [n, 4], their scores [n] in 0..1, and occupancy."""
        every, scores, occupied = self.candidates(trunk(frame[None]))
        return *surest(every, scores[0]), occupied[0].unflatten(0, GRID).numpy()

    def calibrate(self, held_out: Iterable[Sample]) -> None:
        """Choose the threshold with the best F1 on real frames that were not trained on, and note what it has there."""
        seen = [(*self.look(frame)[:2], boxes) for frame, boxes in held_out]
        rates = [_recall_precision(seen, threshold) for threshold in THRESHOLDS]
        f1 = [2 * r * p / (r + p) if r + p > 0 else 0.0 for r, p in rates]  # nan, not asked or not found, counts as 0
        best = int(np.argmax(f1))
        self.threshold, (self.recall, self.precision) = float(THRESHOLDS[best]), rates[best]

    def save(self, path: Path | str) -> None:
        with atomic_path(path) as temporary:
            quality = torch.tensor([self.recall, self.precision, self.threshold])
            save_file(self.state_dict() | {"_quality": quality}, str(temporary))

    @classmethod
    def load(cls, path: Path | str) -> "CarFinder":
        """raises UserError if the file is missing or holds something else"""
        finder = cls()
        try:
            state = load_file(str(path))
            finder.recall, finder.precision, finder.threshold = state.pop("_quality").tolist()
            finder.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is no car finder ({reason}); remove it to train anew") from error
        return finder.eval()


@torch.no_grad()
def trunk(frames: np.ndarray) -> list[Tensor]:
    """Frames [n, H, W, 3] uint8 -> frozen EfficientNet-lite0 maps at the TAPS, of frames resized to 128x256."""
    network = efficientnet_lite0()
    x = normalise(np.stack([resize(frame, INPUT) for frame in frames]))
    x = network._swish(network._bn0(network._conv_stem(x)))
    maps = []
    for index, block in enumerate(network._blocks[: max(TAPS) + 1]):
        x = block(x)
        if index in TAPS:
            maps.append(x)
    return maps


def _centres() -> Tensor:
    """[cells, 2] (x, y) middles of the grid's cells, fractions."""
    ys, xs = torch.meshgrid((torch.arange(GRID[0]) + 0.5) / GRID[0], (torch.arange(GRID[1]) + 0.5) / GRID[1],
                            indexing="ij")  # fmt: skip
    return torch.stack([xs, ys], -1).flatten(0, 1)


def _to_boxes(log_sides: Tensor) -> Tensor:
    """[cells, 4] log distances (left, top, right, bottom) -> [cells, 4] boxes, fractions."""
    sides, centres = log_sides.clamp(-7, 1).exp(), _centres()
    return torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], -1)


def surest(every: Tensor, scores: Tensor, faintest: float = FAINTEST) -> tuple[np.ndarray, np.ndarray]:
    """Of boxes [cells, 4] with their scores [cells] those above `faintest` that non-maximum suppression at IoU 0.5
    leaves, the surest first: boxes [n, 4], scores [n]."""
    boxes, given = every[scores > faintest].numpy(), scores[scores > faintest].numpy()
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    kept = cv2.dnn.NMSBoxes(corners.tolist(), given.tolist(), faintest, 0.5) if len(boxes) else []
    return boxes[np.asarray(kept, int)], given[np.asarray(kept, int)]


def targets(boxes: np.ndarray, labels: Sequence[int] | np.ndarray | None = None, classes: int = 1) -> Tensor:
    """[classes + 6, 32, 64] for boxes [n, 4] of classes `labels` [n], or all of the only one: occupancy by each class,
    centre-ness, four log distances, and the weight of the sides.

    Where boxes overlap the smaller one, in front more often than not, owns the cell.
    """
    centres, out = _centres(), torch.zeros(classes + 6, GRID[0] * GRID[1])
    occupancy, centre, log_sides, weight = out.split([classes, 1, 4, 1])
    given = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = [0] * len(given) if labels is None else labels
    for index in (given[:, 2:] - given[:, :2]).prod(-1).argsort(descending=True).tolist():
        box = given[index]
        sides = torch.cat([centres - box[:2], box[2:] - centres], -1)  # left, top, right, bottom
        inside = (sides > 0).all(-1)
        across, down = sides[inside][:, [0, 2]], sides[inside][:, [1, 3]]
        ratio = (across.amin(-1) / across.amax(-1)) * (down.amin(-1) / down.amax(-1))
        occupancy[:, inside] = 0.0
        occupancy[labels[index], inside], centre[0, inside], weight[0, inside] = 1.0, ratio.sqrt(), 1.0
        log_sides[:, inside] = sides[inside].log().T
    return out.unflatten(1, GRID)


def train_finder(
    train: Iterable[Sample],
    held_out: Iterable[Sample],
    seconds: float = 90,
    seed: int = 0,
    progress: bool = True,
    max_steps: float = math.inf,
) -> CarFinder:
    """Train on real frames; the threshold is chosen on held-out ones.

    seconds    for the optimisation; computing the trunk's maps comes before it, about 12 ms a frame on one core
    max_steps  ends it earlier, and at the same weights on any machine
    raises     UserError when no training frame holds a vehicle
    """
    torch.manual_seed(seed)
    samples = [mirrored for sample in train for mirrored in (sample, _mirror(sample))]
    if not any(len(boxes) for _, boxes in samples):
        raise UserError("no vehicle boxes in the training frames; the car finder needs a clip store with boxes")
    maps = [trunk(frame[None]) for frame, _ in tqdm(samples, "car finder: maps", leave=False, disable=not progress)]
    wanted = torch.stack([targets(boxes) for _, boxes in samples])
    finder = CarFinder()
    fit(finder, [torch.cat(level) for level in zip(*maps, strict=True)], wanted, seconds, seed, progress, max_steps)
    finder.eval()
    finder.calibrate(held_out)
    return finder


def fit(
    finder: BoxHead,
    maps: list[Tensor],
    wanted: Tensor,
    seconds: float,
    seed: int,
    progress: bool,
    max_steps: float,
    among: Tensor | None = None,
    told: str = "car finder: train",
) -> None:
    """Train a head on trunk maps [n, ...] and their `targets` [n, classes + 6, 32, 64], in batches drawn by `seed`.

    among  numbers of the frames to draw from; None: all
    """
    among = torch.arange(len(wanted)) if among is None else among
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(finder.parameters(), lr=2e-3, weight_decay=1e-3)
    start, step = time.monotonic(), 0
    with tqdm(total=100, desc=told, unit="%", leave=False, disable=not progress) as bar:
        while (done := max((time.monotonic() - start) / max(seconds, 1e-9), step / max_steps)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * max(0.02, 1 - done)
            batch = among[torch.randint(len(among), (8,), generator=generator)]
            loss = _loss(finder([level[batch] for level in maps]), wanted[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update(int(100 * done) - bar.n)


def _loss(output: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropies of occupancy and centre-ness, and the smooth distance of the log sides inside boxes."""
    inside, wanted_sides = wanted[:, -1:], wanted[:, -5:-1]
    logits = functional.binary_cross_entropy_with_logits(output[:, :-4], wanted[:, :-5], reduction="none")
    # Cars cover a few per cent of the cells; unweighted, "nothing anywhere" is nearly right.
    weight = 1 + 3 * inside
    sides = functional.smooth_l1_loss(output[:, -4:], wanted_sides, reduction="none", beta=0.2).mean(1, keepdim=True)
    # Summed over classes, so that each of many is learned as fast as the only one.
    occupied = (logits * weight).sum(1).mean() / 2
    return occupied + (sides * inside).sum() / inside.sum().clamp(min=1)


def _mirror(sample: Sample) -> Sample:
    frame, boxes = sample
    return frame[:, ::-1], np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], -1)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union [n, m] of boxes a [n, 4] and b [m, 4]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    return common / np.maximum(area_a[:, None] + area_b[None] - common, 1e-9)


def large_boxes(boxes: np.ndarray) -> np.ndarray:
    """Those of at least SMALLEST."""
    return boxes[(boxes[:, 2:] - boxes[:, :2]).prod(-1) >= SMALLEST]


def count_met(boxes: np.ndarray, others: np.ndarray) -> int:
    """How many of `boxes` are met by one of `others` with IoU >= 0.5."""
    return int((overlap(boxes, others) >= FOUND_IOU).any(1).sum())


def _recall_precision(seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]], threshold: float) -> tuple[float, float]:
    """Of frames, each its detections, their scores and the true boxes."""
    kept = [(boxes[scores >= threshold], true) for boxes, scores, true in seen]
    asked, finds = sum(len(large_boxes(true)) for _, true in kept), sum(len(large_boxes(boxes)) for boxes, _ in kept)
    recall = sum(count_met(large_boxes(true), boxes) for boxes, true in kept) / asked if asked else float("nan")
    precision = sum(count_met(large_boxes(boxes), true) for boxes, true in kept) / finds if finds else float("nan")
    return recall, precision


def vehicle_boxes(layout: Layout, frame: int) -> np.ndarray:
    """Vehicle boxes [n, 4] of one frame of a clip's layout; empty where the layout is unknown."""
    chosen = torch.isin(layout.classes[frame], VEHICLE_IDS) & layout.known[frame]
    return layout.boxes[frame][chosen].numpy()


def store_samples(store: ClipStore, split: str, count: int, min_visibility: float = 0.4) -> Iterator[Sample]:
    """At most about `count` frames, spread evenly over the clips of a split that have boxes, each shrunk to 128x256.

    raises  UserError when the split has none
    """
    clips = [clip for clip in store.clips(split) if store.index.loc[clip].has_boxes]
    if not clips:
        raise UserError(f"{store.root}: no clip of split {split} has boxes; the car finder needs some")
    for clip, frames in spread(store, clips, count, f"car finder: {split} frames"):
        layout = store.layout(clip, min_visibility=min_visibility)
        for t, image in frames:
            if t < layout.num_frames:
                yield image, vehicle_boxes(layout, t)


def spread(
    store: ClipStore, clips: list[str], count: int, told: str
) -> Iterator[tuple[str, Iterator[tuple[int, np.ndarray]]]]:
    """At most about `count` frames, spread evenly over clips: each clip with some of its frames, their numbers and
    themselves, shrunk to 128x256."""
    clips = clips[:: max(1, len(clips) // count)]
    for clip in tqdm(clips, told, leave=False):
        stride = max(1, math.ceil(int(store.row(clip).frames) * len(clips) / count))
        frames = enumerate(iterate(store.video(clip)))
        yield clip, ((t, resize(image, INPUT)) for t, image in frames if t % stride == 0)


def finder_for(
    store: ClipStore, cache: Path | str, seconds: float = 90, seed: int = 0, max_steps: float = math.inf
) -> CarFinder:
    """The finder kept at `cache`, or a new one trained (`train_finder`) on the store's train split and kept there."""
    if Path(cache).exists():
        return CarFinder.load(cache)
    held_out = next((split for split in ("val", "test") if store.clips(split)), None)
    if held_out is None:
        raise UserError(f"{store.root} has no val or test split, so the car finder's own recall would be unknown")
    train = store_samples(store, "train", 500)
    finder = train_finder(train, store_samples(store, held_out, 80), seconds, seed, max_steps=max_steps)
    finder.save(cache)
    return finder


__all__ = ["CarFinder", "finder_for", "store_samples", "train_finder", "vehicle_boxes"]
