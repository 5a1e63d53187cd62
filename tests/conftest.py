"""What the tests of training and generation share: one thread, small stores of textured drives with a car, and tiny
Stable Diffusion folders of random weights, made and saved by diffusers and transformers themselves."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data_prep.source import Box, Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.data.store import ClipStore
from drivesim.machine import PRECISION, probe

HEIGHT, WIDTH = 64, 128


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny operations on a busy machine wait for their slowest thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def measured_alike() -> Callable[[pytest.MonkeyPatch], None]:
    """measured_alike(patch): no sum depends on what this machine does fastest. Sums of bfloat16 in another order differ
    visibly, and more threads sum in another order."""

    def settle(patch: pytest.MonkeyPatch) -> None:
        patch.setenv(PRECISION, "fp32")
        patch.setenv("OMP_NUM_THREADS", "1")
        probe.cache_clear()

    return settle


@pytest.fixture
def alike(monkeypatch, measured_alike) -> Iterator[None]:
    measured_alike(monkeypatch)
    yield
    probe.cache_clear()


def drive(seed: int, count: int, boxes: bool) -> Iterator[Frame]:
    """`count` frames of a texture that drifts left, and a blue car that grows and drives right."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(40, 216, (HEIGHT // 8, 2 * WIDTH // 8, 3), np.uint8)
    texture = cv2.resize(noise, (2 * WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for t in range(count):
        image = np.roll(texture, -t, 1)[:, :WIDTH].copy()
        side, x = 12 + t // 8, min(20 + t, WIDTH - 30)
        image[30 : 30 + side, x : x + side] = (30, 60, 200)
        corners = (x / WIDTH, 30 / HEIGHT, (x + side) / WIDTH, (30 + side) / HEIGHT)
        labels = {"night": float(seed % 2), "vehicles": 1.0} if boxes else {}
        yield Frame(image, [Box(1, "car", corners, visibility=1.0)] if boxes else [], **labels)


@pytest.fixture(scope="session")
def make_store() -> Callable[..., ClipStore]:
    """make_store(root, [(split, frames, fps), ...], boxes=True, words=""): clips c0, c1, ... in this order."""

    def make(root: Path, clips: list[tuple[str, int, float]], boxes: bool = True, words: str = "") -> ClipStore:
        for i, (split, frames, fps) in enumerate(clips):
            caption = f"{words} {i}" if words else ""
            clip = RawClip(f"c{i}", f"r{i}", fps, "test", "CC0-1.0", boxes, drive(i, frames, boxes), caption=caption)
            write_clip(root, clip, split)
        merge(root, {"source": "test"})
        return ClipStore(root)

    return make


@pytest.fixture(scope="session")
def small_store(make_store, tmp_path_factory) -> ClipStore:
    """Two full-rate and one sparse training clip, one of each held out."""
    clips = [("train", 36, 30), ("train", 44, 30), ("train", 6, 1.875), ("val", 36, 30), ("val", 4, 1.875)]
    return make_store(tmp_path_factory.mktemp("store"), clips)


@pytest.fixture(scope="session")
def upscaler_folder(tmp_path_factory) -> Path:
    """A tiny StableDiffusionUpscalePipeline of random weights, as diffusers saves it. Not to be changed by a test."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )

    folder = tmp_path_factory.mktemp("upscaler")
    save_tokenizer(folder / "tokenizer", 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = StableDiffusionUpscalePipeline(
            unet=UNet2DConditionModel(
                in_channels=7,
                out_channels=4,
                block_out_channels=(16, 32),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                norm_num_groups=8,
                cross_attention_dim=24,
                only_cross_attention=(True, False),
                use_linear_projection=True,
                num_class_embeds=1000,
            ),
            vae=AutoencoderKL(
                block_out_channels=(8, 16, 16),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=4,
                scaling_factor=0.08333,
            ),
            text_encoder=text_encoder(24, 16),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            low_res_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            scheduler=DDIMScheduler(
                beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction"
            ),
            max_noise_level=350,
        )
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture(scope="session")
def captioned_store(make_store, tmp_path_factory) -> ClipStore:
    """Two training clips and one held out, each with a caption."""
    clips = [("train", 44, 30), ("train", 6, 1.875), ("val", 36, 30), ("val", 4, 1.875)]
    return make_store(tmp_path_factory.mktemp("captioned"), clips, words="a blue car at place")


def save_tokenizer(folder: Path, length: int) -> None:
    """A CLIP tokenizer of single letters, in the files that Stable Diffusion folders have."""
    letters = sorted(ByteLevel.alphabet())
    merges = ["c a", "ca r</w>"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "car</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    config = {"model_max_length": length, "tokenizer_class": "CLIPTokenizer", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def text_encoder(width: int, length: int) -> CLIPTextModel:
    """A tiny one of random weights, for the words of `save_tokenizer`."""
    config = CLIPTextConfig(
        vocab_size=516,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=514,
        eos_token_id=515,
        pad_token_id=515,
    )
    return CLIPTextModel(config)


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Path]:
    """make_backbone(folder, version=1, seed=0, widths=(16, 32)): as Stable Diffusion 1 (epsilon) or 2 (v)."""

    def make(folder: Path, version: int = 1, seed: int = 0, widths: tuple[int, ...] = (16, 32), **saving) -> Path:
        torch.manual_seed(seed)
        words, length = 16 if version == 1 else 24, 20
        unet = UNet2DConditionModel(
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=words,
            attention_head_dim=2 if version == 1 else (2, 4),
            use_linear_projection=version == 2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            scaling_factor=0.18215,
        )
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon" if version == 1 else "v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        save_tokenizer(folder / "tokenizer", length)
        model = StableDiffusionPipeline(
            vae=vae, text_encoder=text_encoder(words, length),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        model.save_pretrained(folder, **saving)
        return folder

    return make


@pytest.fixture(scope="session")
def backbone(make_backbone, tmp_path_factory) -> Path:
    """Not to be changed by a test."""
    return make_backbone(tmp_path_factory.mktemp("sd") / "sd1")
