"""Video from words (paper, section 4.2): keyframes at once, interpolated twice, decoded and upsampled as a stream.

T keyframes become factor·(T - 1) + 1 frames, twice: 8 -> 29 -> 113. A network is in memory only while it is used: first
the text encoder, then the keyframe network, then together what the stream of frames passes through. What grows with the
length of the video is the pass over the keyframes alone, of which there are 16 times fewer than frames.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from drivesim.bundle import Bundle
from drivesim.clip import SPEED_MPS, Layout, to_uint8
from drivesim.diffusion.sampler import window_noise
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import Interpolate, Predict
from drivesim.diffusion.upsample import Upsample
from drivesim.errors import UserError
from drivesim.generation import cascade
from drivesim.generation.offload import device_memory, in_use, telling_what_fits
from drivesim.generation.samplers import SamplerConfig, check_upsampling, sample_frames
from drivesim.machine import probe
from drivesim.models.autoencoder import Autoencoder, AutoencoderConfig
from drivesim.models.backbone import Backbone
from drivesim.models.denoiser import Denoiser, DenoiserConfig
from drivesim.models.inflation import TemporalConfig
from drivesim.models.lora import check_lora, merge_lora
from drivesim.models.text import TextEncoder
from drivesim.models.text_denoiser import Reader, TextDenoiser
from drivesim.models.upscaler import UpsamplerConfig
from drivesim.training.stages import load_autoencoder, load_denoiser, load_text

FULL = 0.8  # of the memory: with so much of weights, saving elsewhere makes no room


@dataclass
class Look:
    """Another image network of the same shape in the place of the one the temporal layers were trained in: a folder
    fine-tuned by DreamBooth say, a LoRA file added to either, or both. Empty: the bundle's own."""

    backbone: str = ""
    lora: str = ""
    lora_scale: float = 1.0

    @property
    def lora_file(self) -> Path | None:
        return Path(self.lora) if self.lora else None


@dataclass
class Memory:
    """How much of it is spent; less is slower. offload: see generation/offload.py."""

    offload: str = "none"
    vae_slicing: bool = False  # decode one frame after the other, but those that a temporal decoder must see together
    vae_tiling: int = 0  # decode in overlapping tiles of so many pixels each way; 0: whole frames

    def savings(self, decoding: bool, full: bool) -> list[str]:
        """What is left to be saved, the cheapest first. decoding: frames are; full: weights alone fill the memory"""
        small = decoding and not full
        left = ["vae_slicing=true"] if small and not self.vae_slicing else []
        left += ["vae_tiling=256"] if small and not self.vae_tiling else []
        waiting = ("cpu", "disk") if probe().device != "cpu" else ("disk",)  # on a CPU all memory is main memory
        left += [
            f"offload={name}" for name in waiting[waiting.index(self.offload) + 1 if self.offload in waiting else 0 :]
        ]
        return left if full and left else [*left, "a smaller height and width"]


@dataclass(eq=False)
class TextToVideo:
    """A bundle whose image network reads captions, as an object that makes video.

    height, width  pixels before the upsampler, by default those of training
    fps            of the video
    """

    bundle: Bundle
    height: int
    width: int
    fps: float
    schedule: ScheduleConfig
    predict: Predict
    between: Interpolate
    upsample: Upsample
    config: SamplerConfig
    look: Look = field(default_factory=Look)
    memory: Memory = field(default_factory=Memory)
    _readers: dict[tuple[str, str, float], TextEncoder] = field(default_factory=dict)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        height: int | None = None,
        width: int | None = None,
        upsampler: bool = True,
        look: Look | None = None,
        memory: Memory | None = None,
    ) -> "TextToVideo":
        """Read what a bundle is; its weights are loaded when they are used.

        upsampler  whether the bundle's diffusion upsampler will be asked for
        raises     UserError for a bundle that is damaged, does not read, or cannot make pictures of this size
        """
        bundle = Bundle(Path(folder)).require()
        upsample = bundle.value("upsample", "task", Upsample) if upsampler else Upsample(bundle.index.get("factor", 4))
        data, interpolate = bundle.data, bundle.value("interpolate", "task", Interpolate)
        model = cls(
            bundle=bundle,
            height=height or int(data["height"]),
            width=width or int(data["width"]),
            fps=data["key_fps"] * interpolate.factor**2,
            schedule=bundle.value("image", "schedule", ScheduleConfig),
            predict=bundle.value("keyframes", "task", Predict),
            between=interpolate,
            upsample=upsample,
            config=bundle.sampler(SamplerConfig),
            look=look or Look(),
            memory=memory or Memory(),
        )
        load_text(bundle)
        model._check()
        return model

    def _check(self) -> None:
        if self.predict.context_channels:
            raise UserError(
                f"bundle {self.bundle.root}: its keyframes continue known frames; for text-to-video they are trained "
                "with config.predict.probabilities=[1.0]"
            )
        grid = self._grid
        if self.height % grid or self.width % grid:
            low, wide = (max(round(side / grid), 1) * grid for side in (self.height, self.width))
            raise UserError(
                f"{self.height}x{self.width} pixels: height and width must be multiples of {grid} (autoencoder factor "
                f"x U-Net down-samplings); the nearest is {low}x{wide}"
            )
        if self.look.backbone:
            self._backbone()
        if self.look.lora:
            check_lora(self.look.lora)

    @property
    def _grid(self) -> int:
        levels = len(self.bundle.value("image", "model", DenoiserConfig).block_out_channels)
        return self._factor * 2 ** (levels - 1)

    @property
    def _factor(self) -> int:
        return self.bundle.value("autoencoder", "model", AutoencoderConfig).factor

    def _backbone(self) -> Backbone:
        """The other image network. raises UserError if it is of another process than the bundle's"""
        backbone = Backbone(Path(self.look.backbone))
        theirs = backbone.schedule(self.schedule)
        for name in ("prediction", "beta", "beta_start", "beta_end", "zero_snr"):
            if (found := getattr(theirs, name)) != (ours := getattr(self.schedule, name)):
                raise UserError(
                    f"{backbone.root}: its scheduler has {name}={found}, the temporal layers of {self.bundle.root} "
                    f"were trained with {ours}; use a model fine-tuned from the one of the bundle"
                )
        return backbone

    @property
    def frames(self) -> int:
        """As many as the keyframes of training become."""
        return self.between.factor**2 * (self.predict.frames - 1) + 1

    def keys_of(self, frames: int) -> int:
        """Keyframes that a video of `frames` is made from.

        raises  UserError, naming the nearest numbers, for frames that no number of keyframes becomes, or for more of
                them than the temporal layers can be asked for
        """
        apart = self.between.factor**2 * (self.between.keys - 1)  # frames from a window of keys to the next
        if frames <= 1 or (frames - 1) % apart:
            low = max((frames - 1) // apart, 1) * apart + 1
            raise UserError(
                f"frames={frames}: this bundle makes {apart}k + 1 frames, as many as keyframes and the frames between "
                f"them; the nearest are {low} and {low + apart}"
            )
        keys, trained = (frames - 1) // self.between.factor**2 + 1, self.predict.frames
        temporal = self.bundle.value("keyframes", "temporal", TemporalConfig)
        if keys != trained and (temporal.positions != "relative" or temporal.merge == "time"):
            raise UserError(
                f"frames={frames} are {keys} keyframes, but the temporal layers know the places of {trained}; ask for "
                f"frames={self.frames}, or train with temporal.positions=relative temporal.merge=scalar"
            )
        return keys

    def __call__(self, *, prompt: str, frames: int, seed: int, upsampler: str = "diffusion") -> Iterator[Tensor]:
        """Frames uint8 [3, H, W], one by one.

        upsampler  diffusion, bicubic, or none
        raises     UserError for frames as `keys_of`, or when memory runs out, with what would help
        """
        keys = self.keys_of(frames)
        if upsampler == "diffusion":
            with torch.device("meta"):  # its shapes alone, so that a mistake is told before anything is made
                network = self.bundle.value("upsample", "model", UpsamplerConfig).build()
            check_upsampling(network, self.upsample, self.height, self.width, self.config)
        return islice(self._stream(prompt, keys, seed, upsampler), frames)

    def keyframes(self, prompt: str, count: int, seed: int) -> Tensor:
        """Latents [T, C, h, w] of `count` keyframes, all at once."""
        reader = self._read(prompt, self.look)
        channels = self.bundle.value("image", "model", DenoiserConfig).channels
        shape = (1, count, channels, self.height // self._factor, self.width // self._factor)
        config = replace(self.config.of("keyframes"), image_steps=self.config.keyframe_steps)
        with (
            self._telling("while keyframes were made", "image", "keyframes"),
            in_use(lambda: self._network("keyframes", reader), offload=self.memory.offload) as (network,),
        ):
            noise = window_noise(shape, seed, cascade.KEYS, 0)
            layout = self._layout(torch.arange(count) * self.between.factor**2)[None]
            return sample_frames(network, self.schedule, layout, noise, config, [prompt])[0]

    def _stream(self, prompt: str, count: int, seed: int, upsampler: str) -> Iterator[Tensor]:
        """All frames that `count` keyframes become."""
        print(f"{count} keyframes, {self.config.keyframe_steps} steps", file=sys.stderr)
        keys = self.keyframes(prompt, count, seed)
        # The image layers that were trained with the interpolation were so with the bundle's own text encoder.
        own = bool(self.bundle.config("interpolate").get("image_trained"))
        reader, factor = self._read(prompt, Look() if own else self.look), self.between.factor
        loads = [lambda: self._network("interpolate", reader), self._autoencoder]
        if upsampler == "diffusion":
            loads.append(lambda: load_denoiser(self.bundle, "upsample_temporal"))
        with (
            self._telling("after the keyframes", "interpolate", "autoencoder"),
            in_use(*loads, offload=self.memory.offload) as (between, autoencoder, *upsamplers),
        ):
            self._save_memory(autoencoder)
            frames: Iterator[Tensor] = iter(keys)
            for level, spacing in enumerate((factor**2, factor)):
                frames = cascade.interpolate(
                    between, self.schedule, self.between, frames, self._layout, spacing, level, seed, self.config,
                    caption=prompt,
                )  # fmt: skip
            low = cascade.decode(autoencoder, frames)
            if upsampler == "diffusion":
                schedule = self.bundle.value("upsample", "schedule", ScheduleConfig)
                low = cascade.upsample(upsamplers[0], schedule, self.upsample, low, seed, self.config)
            elif upsampler == "bicubic":
                low = cascade.enlarge(self.upsample, low)
            for frame in low:
                yield to_uint8(frame).cpu()

    def _read(self, prompt: str, look: Look) -> Reader:
        """What knows the prompt, without the weights it was read by."""
        key = (look.backbone, look.lora, look.lora_scale)
        if key not in self._readers:
            root = Path(look.backbone) if look.backbone else self.bundle.root / "image"
            self._readers[key] = TextEncoder(root, look.lora_file, look.lora_scale)
        text = self._readers[key]
        with telling_what_fits("while the prompt was read", "close other programs"):
            text([prompt, self.config.negative_prompt])
        return text.release()

    def _network(self, stage: str, reader: Reader) -> Denoiser:
        denoiser = load_denoiser(self.bundle, stage, self._image(stage))
        if denoiser.carries:
            denoiser.carry_by(load_autoencoder(self.bundle))
        assert isinstance(denoiser, TextDenoiser)
        return denoiser.read_by(reader)

    def _image(self, stage: str) -> Denoiser | None:
        """The image network that the temporal layers of a stage are put into; None: the bundle's own."""
        look = self.look
        if not (look.backbone or look.lora) or self.bundle.config(stage).get("image_trained"):
            return None
        config = self.bundle.value("image", "model", DenoiserConfig)
        if look.backbone:
            return self._backbone().load(replace(config, unet={}), look.lora_file, look.lora_scale)
        denoiser = self.bundle.network("image", DenoiserConfig)
        merge_lora(look.lora, denoiser.unet, look.lora_scale)
        return denoiser

    def _telling(self, what: str, *stages: str) -> AbstractContextManager[None]:
        """Out of memory while networks of `stages` are used is told with what would help."""
        weights, most = sum(self.bundle.weights(name).stat().st_size for name in stages), device_memory()
        savings = self.memory.savings("autoencoder" in stages, full=weights > FULL * most)
        return telling_what_fits(f"{what} (weights {weights / 2**30:.1f} of {most / 2**30:.1f} GiB)", *savings)

    def _autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.bundle, decoder=self.bundle.has("decoder"))

    def _save_memory(self, autoencoder: Autoencoder) -> None:
        if self.memory.vae_slicing:
            autoencoder.enable_slicing()
        if self.memory.vae_tiling:
            autoencoder.enable_tiling(self.memory.vae_tiling)

    def _layout(self, index: Tensor) -> Layout:
        """Nothing is asked for but by words."""
        return Layout.unknown(len(index)).driven(index / self.fps, SPEED_MPS)
