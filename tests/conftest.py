"""What the tests of training and generation share: one thread, and small stores of textured drives with a car."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_prep.source import Box, Frame, RawClip
from data_prep.writer import merge, write_clip
from drivesim.data.store import ClipStore

HEIGHT, WIDTH = 64, 128


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny operations on a busy machine wait for their slowest thread."""
    torch.set_num_threads(1)


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
    """make_store(root, [(split, frames, fps), ...], boxes=True): clips c0, c1, ... in this order."""

    def make(root: Path, clips: list[tuple[str, int, float]], boxes: bool = True) -> ClipStore:
        for i, (split, frames, fps) in enumerate(clips):
            clip = RawClip(f"c{i}", f"r{i}", fps, "test", "CC0-1.0", boxes, drive(i, frames, boxes))
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
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder, letters = tmp_path_factory.mktemp("upscaler"), [chr(97 + i) for i in range(26)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
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
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=60,
                    hidden_size=24,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=16,
                    bos_token_id=52,
                    eos_token_id=53,
                    pad_token_id=53,
                )
            ),
            tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16),
            low_res_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            scheduler=DDIMScheduler(
                beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction"
            ),
            max_noise_level=350,
        )
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"
