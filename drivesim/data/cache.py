"""Caches beside a store: frames at the working resolution, and latents. Made once, read by every training step."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from drivesim.clip import from_uint8
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.errors import UserError
from drivesim.files import atomic_path
from drivesim.locks import holding

SHARD_CLIPS, SHARD_BYTES = 256, 256 << 20  # of latents: a file ends at the first clip that brings it to as many

MIRRORED = "_mirrored"


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
        with holding(self.folder / ".lock", waiting=f"waiting for another process that fills {self.folder}"):
            found = _clean(self.folder, {self._path(clip) for clip in self.store.hashes})
            todo = [clip for clip in self.store.clips() if self._path(clip) not in found]
            if todo:  # PyAV and cv2 release the interpreter lock, so threads are enough
                with ThreadPoolExecutor(workers) as pool:
                    list(tqdm(pool.map(self._decode, todo), total=len(todo), desc="frames cached", unit="clip"))
        return self

    def _path(self, clip: str) -> Path:
        return self.folder / f"{_version(self.store, clip)}.npy"

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
    latents of two autoencoders never mix.

    cache/latents_<key>/00000.safetensors, 00001...  one float16 tensor [T, C, h, w] a clip, named as the clip; the
        metadata tell the key, and for each clip the sha256 of the video that it was made of
    cache/latents_<key>/parts/                       clips that are not in a shard yet
    """

    store: ClipStore
    key: str

    def __post_init__(self) -> None:
        self._open: dict[Path, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker process opens the files for itself

    def mirrored(self) -> "LatentCache":
        """The cache of the same frames seen in a mirror, which need a copy of their own: no autoencoder here encodes a
        mirrored frame to the mirrored latent."""
        return LatentCache(self.store, self.key + MIRRORED)

    @property
    def folder(self) -> Path:
        return self.store.cache / f"latents_{self.key}"

    def build(self, frames: FrameCache, encode: Callable[[Tensor], Tensor], batch: int = 64) -> "LatentCache":
        """Encode every clip that is not cached yet; latents of other autoencoders are removed.

        Killed at any moment, at most the clip at work is lost. raises UserError if latents are not finite numbers
        """
        for stale in self.store.cache.glob("latents_*"):
            if stale.name.removesuffix(MIRRORED) != self.folder.name.removesuffix(MIRRORED):
                shutil.rmtree(stale, ignore_errors=True)  # another process may be at it too
        with holding(self.folder / ".lock", waiting=f"waiting for another process that fills {self.folder}"):
            self._forget()
            _clean(self.folder, set(self._shards.values()))
            todo = [clip for clip in self.store.clips() if clip not in self._shards]
            found = _clean(self.folder / "parts", {self._part(clip) for clip in todo})
            held: list[str] = []
            size = 0
            for clip in tqdm(todo, desc="latents cached", unit="clip", disable=not todo):
                if self._part(clip) not in found:
                    self._encode(clip, frames, encode, batch)
                held.append(clip)
                size += self._part(clip).stat().st_size
                if len(held) == SHARD_CLIPS or size >= SHARD_BYTES:
                    self._pack(held)
                    held, size = [], 0
            if held:
                self._pack(held)
            self._forget()
        return self

    def _encode(self, clip: str, frames: FrameCache, encode: Callable[[Tensor], Tensor], batch: int) -> None:
        latents = torch.cat([encode(chunk).half() for chunk in self._chunks(frames.read(clip), batch)])
        if not latents.isfinite().all():
            raise UserError(f"the autoencoder makes no finite numbers of clip {clip}; train the autoencoder again")
        with atomic_path(self._part(clip)) as path:
            save_file({clip: latents.contiguous()}, path)

    def _pack(self, clips: list[str]) -> None:
        """Move the latents of some clips into a shard of their own."""
        tensors = {clip: load_file(self._part(clip))[clip] for clip in clips}
        about = {"autoencoder": self.key, "sha256": {clip: self.store.hashes[clip] for clip in clips}}
        number = max((int(path.stem) for path in self.folder.glob("[0-9]*.safetensors")), default=-1) + 1
        with atomic_path(self.folder / f"{number:05d}.safetensors") as path:
            save_file(tensors, path, {"latents": json.dumps(about)})
        for clip in clips:
            self._part(clip).unlink()

    @cached_property
    def _shards(self) -> dict[str, Path]:
        """For each clip that is cached the file that holds its latents."""
        shards: dict[str, Path] = {}
        known = self.store.hashes
        for path in sorted(self.folder.glob("[0-9]*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    about = json.loads((file.metadata() or {}).get("latents", "{}"))
            except (SafetensorError, OSError):
                continue  # damaged: its clips are encoded again
            if about.get("autoencoder") == self.key:
                shards |= {clip: path for clip, digest in about["sha256"].items() if known.get(clip) == digest}
        return shards

    def _forget(self) -> None:
        self.__dict__.pop("_shards", None)
        self._open.clear()

    @staticmethod
    def _chunks(video: np.ndarray, batch: int) -> Iterator[Tensor]:
        for start in range(0, len(video), batch):
            yield from_uint8(torch.from_numpy(np.array(video[start : start + batch])))

    def _part(self, clip: str) -> Path:
        return self.folder / "parts" / f"{_version(self.store, clip)}.safetensors"

    def _latents(self, clip: str) -> Any:
        """A safetensors slice: what is taken of it is memory-mapped, so only what is used is read."""
        if clip not in self._shards:
            raise UserError(f"{self.folder} holds no latents of clip {clip}; run `drivesim data cache`")
        path = self._shards[clip]
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        return self._open[path].get_slice(clip)

    def read(self, clip: str) -> Tensor:
        """[T, C, h, w] float16, memory-mapped."""
        return self._latents(clip)[:]

    def window(self, clip: str, start: int, count: int, stride: int, rng: np.random.Generator | None = None) -> Tensor:
        """[count, C, h, w] float32."""
        return self._latents(clip)[start : start + count * stride : stride][:count].float()


def _version(store: ClipStore, clip: str) -> str:
    """A name for this very video: a clip of the same name, prepared anew, is not taken for it."""
    return f"{clip}.{store.hashes[clip][:16]}"


def _clean(folder: Path, wanted: set[Path]) -> set[Path]:
    """Remove files of a cache that are not wanted, or were begun by a process that was killed; returns the others."""
    files = {path for path in folder.glob("*") if path.is_file() and path.name != ".lock"}
    for stale in files - wanted:
        stale.unlink()
    return files & wanted
