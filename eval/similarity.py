"""Likeness of one frame to another: PSNR, and the shift-tolerant perceptual distance ST-LPIPS (Ghildyal & Liu 2022).

ST-LPIPS is not on LPIPS's scale: 0 is the same picture, a shift by one pixel about .004, blur or noise .4 to .6.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from drivesim.models.perceptual import ShiftTolerantAlexNet
from eval.videos import resize

SIZE = (128, 256)  # pixels at which ST-LPIPS is taken; it was trained on 64 to 256
PSNR_CAP = 60.0  # dB kept for equal pictures, so that means over frames stay finite


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 pictures of one shape, dB; inf when they are equal."""
    error = float(((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean(dtype=np.float64))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


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
