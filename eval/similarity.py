"""Likeness of one frame to another: PSNR, and the shift-tolerant perceptual distance ST-LPIPS (Ghildyal & Liu 2022).

ST-LPIPS is not on LPIPS's scale: 0 is the same picture, a shift by one pixel about .004, blur or noise .4 to .6.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from drivesim.errors import UserError
from eval.videos import resize

SIZE = (128, 256)  # pixels at which ST-LPIPS is taken; it was trained on 64 to 256
PSNR_CAP = 60.0  # dB kept for equal pictures, so that means over frames stay finite
PLACES = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 pictures of one shape, dB; inf when they are equal."""
    error = float(((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean(dtype=np.float64))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


class ShiftTolerantAlexNet(nn.Module):
    """The AlexNet trunk of ST-LPIPS: strides replaced by blurred subsampling (Zhang 2019). Weights: BSD-2."""

    shift: Tensor  # [1, 3, 1, 1], channel means of inputs in [-1, 1]
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        weights = _weights()
        self.register_buffer("shift", weights["scaling_layer.shift"])
        self.register_buffer("scale", weights["scaling_layer.scale"])
        self.convs = nn.ModuleList(_conv(weights, place, 2 if i < 2 else 1) for i, place in enumerate(PLACES))
        self.heads = nn.ParameterList(weights[f"lin{i}.model.1.weight"] for i in range(5))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """[b, 3, h, w] in [-1, 1] -> five maps, unit length along their channels."""
        maps = [functional.relu(_halve(self.convs[0]((x - self.shift) / self.scale)))]
        for i, conv in enumerate(self.convs[1:], start=1):
            before = _halve(functional.max_pool2d(maps[-1], 3, 1)) if i < 3 else maps[-1]
            maps.append(functional.relu(conv(before)))
        return [m / (m.norm(dim=1, keepdim=True) + 1e-10) for m in maps]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance [b] between the maps of two pictures."""
        parts = [functional.conv2d((p - q) ** 2, head) for p, q, head in zip(a, b, self.heads, strict=True)]
        return torch.stack([part.mean((1, 2, 3)) for part in parts]).sum(0)


def _conv(weights: dict[str, Tensor], place: str, padding: int) -> nn.Conv2d:
    weight = weights[f"{place}.weight"]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=padding)
    conv.load_state_dict({"weight": weight, "bias": weights[f"{place}.bias"]})
    return conv


def _halve(x: Tensor) -> Tensor:
    """Blur with [1 2 1] x [1 2 1] and take every second pixel, mirrored by 2 at the edges."""
    taps = torch.tensor([1.0, 2, 1], device=x.device)
    kernel = (taps[:, None] * taps / 16).expand(x.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _weights() -> dict[str, Tensor]:
    # Located, not imported: the package's modules need torchvision and IPython, its weights need neither.
    spec = find_spec("stlpips_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package stlpips-pytorch is not installed; run `make setup`")
    path = Path(spec.submodule_search_locations[0], "weights", "vST0.0", "alex_shift_tolerant.pth")
    return torch.load(path, map_location="cpu", weights_only=True)


@cache
def stlpips_network() -> ShiftTolerantAlexNet:
    return ShiftTolerantAlexNet()


@torch.inference_mode()
def stlpips_maps(frame: np.ndarray) -> list[Tensor]:
    """Maps of one uint8 frame [H, W, 3], resized to 128x256: keep them to compare one frame with many."""
    pixels = torch.from_numpy(resize(frame, SIZE)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return stlpips_network()(pixels)


@torch.inference_mode()
def stlpips(a: np.ndarray | list[Tensor], b: np.ndarray | list[Tensor]) -> float:
    """ST-LPIPS of two uint8 frames [H, W, 3] (or of their maps); 0 for the same picture, smaller is more alike."""
    maps = [x if isinstance(x, list) else stlpips_maps(x) for x in (a, b)]
    return float(stlpips_network().distance(*maps))


class SimilarityMeter:
    """Likeness over time, gathered frame by frame: to the true continuation, and to the start frame."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float | str]] = []

    def add(self, name: str, time_s: float, frame: np.ndarray, truth: np.ndarray, start: np.ndarray) -> None:
        """Compare a generated frame with the true one of the same moment, and both with the clip's first true frame.

        Rows get: psnr, stlpips (generated to true); psnr_start, stlpips_start (generated to start);
        psnr_frozen, stlpips_frozen (start to true: how well the start frame alone, held still, would do).
        """
        fake, true, first = (stlpips_maps(image) for image in (frame, truth, start))

        def decibel(a: np.ndarray, b: np.ndarray) -> float:
            return min(psnr(a, b), PSNR_CAP)

        self.rows.append({
            "name": name, "time_s": round(time_s, 3),
            "psnr": decibel(frame, truth), "stlpips": stlpips(fake, true),
            "psnr_start": decibel(frame, start), "stlpips_start": stlpips(fake, first),
            "psnr_frozen": decibel(start, truth), "stlpips_frozen": stlpips(first, true),
        })  # fmt: skip

    def curve(self, key: str) -> list[tuple[float, float, int]]:
        """(time in s, mean of a column, number of clips), in order of time."""
        by_time: dict[float, list[float]] = {}
        for row in self.rows:
            by_time.setdefault(float(row["time_s"]), []).append(float(row[key]))
        return [(t, float(np.mean(values)), len(values)) for t, values in sorted(by_time.items())]

    def mean(self, key: str) -> float:
        """Mean of a column over every compared frame after the start frame, which is given and not generated."""
        values = [float(row[key]) for row in self.rows if float(row["time_s"]) > 0]
        return float(np.mean(values)) if values else float("nan")
