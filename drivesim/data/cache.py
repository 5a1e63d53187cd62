"""Caches of a store: frames at the working resolution, and latents. Made once, read by every training step."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from drivesim.clip import from_uint8
from drivesim.data.recent import Recent
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.files import atomic_path

MIRRORED = "_mirrored"
KEPT_CLIPS = 4096  # files of latents that a process holds open; Linux allows 65530 maps


@dataclass
class FrameCache:
    """Frames of a store at one size, as memory-mapped uint8 arrays [T, 3, H, W], one file a clip."""

    store: ClipStore
    height: int
    width: int

    @property
    def folder(self) -> Path:
        return self.store.cache / f"frames_{self.height}x{self.width}"

    def build(self, workers: int = 2) -> "FrameCache":
        """Decode every clip that is not cached yet; whole files only, so an interrupted build goes on."""
        todo = [clip for clip in self.store.clips() if not self._path(clip).exists()]
        if todo:  # PyAV and cv2 release the interpreter lock, so threads are enough
            with ThreadPoolExecutor(workers) as pool:
                list(tqdm(pool.map(self._decode, todo), total=len(todo), desc="frames cached", unit="clip"))
        return self

    def _path(self, clip: str) -> Path:
        return self.folder / f"{clip}.npy"

    def _decode(self, clip: str) -> None:
        frames = [frame.transpose(2, 0, 1) for frame in iterate(self.store.video(clip), size=(self.height, self.width))]
        with atomic_path(self._path(clip)) as path:
            np.save(path, np.stack(frames))

    def read(self, clip: str) -> np.ndarray:
        """[T, 3, H, W] uint8, memory-mapped."""
        return np.load(self._path(clip), mmap_mode="r")

    def window(self, clip: str, start: int, count: int, stride: int, rng: np.random.Generator | None = None) -> Tensor:
        """[count, 3, H, W] float in [-1, 1]."""
        frames = self.read(clip)[start : start + count * stride : stride][:count]
        return from_uint8(torch.from_numpy(np.array(frames)))


@dataclass
class LatentCache:
    """Latents of a store under one autoencoder; `key` tells its weights and the size of the frames, so that
    latents of two autoencoders never mix."""

    store: ClipStore
    key: str

    def __post_init__(self) -> None:
        self.read = Recent(self._load, KEPT_CLIPS)

    def mirrored(self) -> "LatentCache":
        """The cache of the same frames seen in a mirror, which need a copy of their own: no autoencoder here encodes a
        mirrored frame to the mirrored latent."""
        return LatentCache(self.store, self.key + MIRRORED)

    @property
    def folder(self) -> Path:
        return self.store.cache / f"latents_{self.key}"

    def build(self, frames: FrameCache, encode: Callable[[Tensor], Tensor], batch: int = 64) -> "LatentCache":
        """Encode every clip that is not cached yet; latents of other autoencoders are removed."""
        for stale in self.store.cache.glob("latents_*"):
            if stale.name.removesuffix(MIRRORED) != self.folder.name.removesuffix(MIRRORED):
                shutil.rmtree(stale, ignore_errors=True)  # another process may be at it too
        todo = [clip for clip in self.store.clips() if not self._path(clip).exists()]
        for clip in tqdm(todo, desc="latents cached", unit="clip", disable=not todo):
            latents = torch.cat([encode(chunk).half() for chunk in self._chunks(frames.read(clip), batch)])
            with atomic_path(self._path(clip)) as path:
                save_file({"latents": latents.contiguous()}, path, {"autoencoder": self.key})
        return self

    @staticmethod
    def _chunks(video: np.ndarray, batch: int) -> Iterator[Tensor]:
        for start in range(0, len(video), batch):
            yield from_uint8(torch.from_numpy(np.array(video[start : start + batch])))

    def _path(self, clip: str) -> Path:
        return self.folder / f"{clip}.safetensors"

    def _load(self, clip: str) -> Tensor:
        """[T, C, h, w] float16; memory-mapped by safetensors, so only what is used is read."""
        return load_file(self._path(clip))["latents"]

    def window(self, clip: str, start: int, count: int, stride: int, rng: np.random.Generator | None = None) -> Tensor:
        """[count, C, h, w] float32."""
        return self.read(clip)[start : start + count * stride : stride][:count].float()
