"""Text-to-video by the public commands: temporal layers trained on a backbone, video of any length from words, the
layers carried over to other backbones, in memory that does not grow."""

import gc
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from drivesim import cli
from drivesim.bundle import Bundle, folder_sha256
from drivesim.bundles import pack, verify
from drivesim.errors import UserError
from drivesim.generation import offload
from drivesim.generation.text_to_video import Look, Memory, TextToVideo
from drivesim.generation.writer import VideoWriter
from drivesim.training import distill
from drivesim.training.stages import load_denoiser

STAGES = ("keyframes", "interpolate", "decoder", "upsample", "upsample_temporal")
TINY = [
    "data.height=32", "data.width=64", "data.workers=0", "denoiser.context_width=8", "temporal.head_dim=8",
    "upsampler.block_out_channels=[16,16]", "upsampler.layers_per_block=[1,1]", "upsampler.attention=[false,false]",
    "upsampler.groups=8", "upsample.factor=2", "predict.frames=3", "stages.decoder.frames=3",
    "stages.upsample_temporal.frames=2", "stages.keyframes.accumulate=1", "stages.keyframes.lr=0.01",
    "sampler.image_steps=2", "sampler.keyframe_steps=2", "sampler.interpolate_steps=1", "sampler.upsample_steps=1",
    *(f"stages.{name}.{limit}=2" for name in STAGES for limit in ("max_steps", "batch_size")),
]  # fmt: skip


@dataclass
class Run:
    out: Path
    store: Path
    backbone: Path

    def train(self, *more: str) -> None:
        words = ["experiment=sd_text_to_video", f"data={self.store}", f"out={self.out}",
                 f"config.denoiser.pretrained={self.backbone}"]  # fmt: skip
        cli.main(["train", *words, *(f"config.{word}" for word in TINY), *more])

    @property
    def bundle(self) -> Path:
        return self.out / "bundle"


@pytest.fixture(scope="module")
def trained(captioned_store, make_backbone, tmp_path_factory) -> Run:
    """Every stage. Its folder is another than the session's, and the same still after training."""
    root = tmp_path_factory.mktemp("text")
    folder = make_backbone(root / "sd", seed=7)
    before = folder_sha256(folder)
    run = Run(root / "out", captioned_store.root, folder)
    run.train()
    assert folder_sha256(folder) == before
    return run


@pytest.fixture
def copy(trained, tmp_path) -> Bundle:
    return Bundle(shutil.copytree(trained.bundle, tmp_path / "bundle"))


def generate(bundle, out, *words: str):
    cli.main(["generate", f"bundle={bundle}", f"out={out}", *words])
    return read(out)


def read(path) -> np.ndarray:
    """[T, H, W, 3]"""
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int)


def video(trained, frames=17, prompt="a car", text_guidance=7.5, **options):
    model = TextToVideo.from_pretrained(trained.bundle, upsampler=False, **options)
    model.config = replace(model.config, text_guidance=text_guidance)
    return torch.stack(list(model(prompt=prompt, frames=frames, seed=0, upsampler="none")))


def test_distilled_keyframes_follow_the_prompt_without_guidance(trained, tmp_path):
    words = "max_steps=2", "steps=2", "teacher_steps=4", "batch_size=2"
    distill.main([f"bundle={trained.bundle}", f"data={trained.store}", f"out={tmp_path}", *words])
    told = Bundle(tmp_path / "bundle").config("keyframes")["distilled"]
    assert told["guidance"]["text_guidance"] == 7.5
    model = TextToVideo.from_pretrained(tmp_path / "bundle", upsampler=False)
    keys = model.keyframes("a car", 2, 0)
    model.config = replace(model.config, text_guidance=1.0)
    assert torch.equal(model.keyframes("a car", 2, 0), keys)
    assert not torch.equal(model.keyframes("a tree at night", 2, 0), keys)


def test_8_keyframes_become_113_frames_by_the_command(trained, tmp_path, capsys):
    frames = generate(trained.bundle, tmp_path / "a.mp4", "prompt=a car, at night", "frames=113", "upsampler=none")
    assert len(frames) == 113
    assert frames.shape[1:] == (32, 64, 3)
    assert "peak memory" in capsys.readouterr().out
    record = json.loads((tmp_path / "a.mp4.json").read_text())
    assert (record["frames"], record["fps"], record["options"]["prompt"]) == (113, 30, "a car, at night")


def test_the_upsampler_makes_it_larger(trained, tmp_path):
    frames = generate(trained.bundle, tmp_path / "a.mp4", "prompt=a car", "frames=17")
    assert len(frames) == 17
    assert frames.shape[1:] == (64, 128, 3)


def test_seed_and_words_decide_what_is_made(trained):
    made = video(trained)
    assert torch.equal(made, video(trained))
    assert not torch.equal(made, video(trained, prompt="rain"))
    assert len(made) == 17


def test_another_height_and_width_are_made_convolutionally(trained):
    assert video(trained, height=48, width=32).shape[2:] == (48, 32)
    with pytest.raises(UserError, match=r"40x32 pixels: height and width must be multiples of 16.*nearest is 32x32"):
        video(trained, height=40, width=32)


@pytest.mark.parametrize(("frames", "nearest"), [(100, "97 and 113"), (16, "17 and 33"), (1, "17 and 33")])
def test_frames_that_no_keyframes_become_are_refused_with_the_nearest(frames, nearest, trained):
    with pytest.raises(UserError, match=rf"frames={frames}: this bundle makes 16k \+ 1.*nearest are {nearest}"):
        video(trained, frames=frames)


def test_layers_that_know_places_make_as_many_keyframes_as_they_know(copy):
    path = copy.root / "keyframes" / "config.json"
    config = json.loads(path.read_text())
    config["temporal"]["positions"] = "sinusoidal"
    path.write_text(json.dumps(config))
    model = TextToVideo.from_pretrained(copy.root, upsampler=False)
    assert model.keys_of(33) == 3
    with pytest.raises(UserError, match=r"113 are 8 keyframes, but .* places of 3; ask for frames=33"):
        model.keys_of(113)


def test_temporal_layers_are_a_file_of_their_own_that_fits_other_backbones(trained, make_backbone, tmp_path):
    held = load_file(trained.bundle / "keyframes" / "temporal.safetensors")
    assert not any("unet" in name for name in held)
    own = load_denoiser(Bundle(trained.bundle), "keyframes")
    assert all(torch.equal(own.temporal.state_dict()[name], weight) for name, weight in held.items())

    other = make_backbone(tmp_path / "dreambooth", seed=8)
    before = folder_sha256(other)
    made = video(trained, look=Look(backbone=str(other)))
    assert folder_sha256(other) == before
    assert not torch.equal(made, video(trained))
    own_folder = video(trained, look=Look(backbone=str(trained.backbone)))
    assert torch.equal(own_folder, video(trained))


def test_a_lora_file_changes_what_is_made(trained, tmp_path):
    lora = style(tmp_path / "style.safetensors")
    made = video(trained, look=Look(lora=str(lora)))
    assert not torch.equal(made, video(trained))
    assert torch.equal(video(trained, look=Look(lora=str(lora), lora_scale=0.0)), video(trained))


def style(path):
    """A LoRA file of one layer."""
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    torch.manual_seed(0)
    save_file({f"{name}.lora_A.weight": torch.randn(2, 16), f"{name}.lora_B.weight": torch.randn(16, 2)}, path)
    return path


def test_the_command_takes_another_backbone_a_lora_and_little_memory(trained, make_backbone, tmp_path, alike):
    other = make_backbone(tmp_path / "dreambooth", seed=8)
    lora = style(tmp_path / "style.safetensors")
    look = Look(str(other), str(lora), 0.5)
    words = [
        f"backbone={other}",
        f"lora={lora}",
        "lora_scale=0.5",
        "offload=disk",
        "vae_slicing=true",
        "text_guidance=3",
    ]
    frames = generate(trained.bundle, tmp_path / "a.mp4", "prompt=a car", "upsampler=none", "frames=17", *words)
    made = video(trained, look=look, text_guidance=3.0)
    with VideoWriter(tmp_path / "b.mp4", 30, 32, 64) as writer:
        for picture in made:
            writer.write(picture)
    assert np.abs(frames - read(tmp_path / "b.mp4")).mean() < 2  # offloaded layers round differently


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["experiment=sd_text_to_video"], "FOLDER is no folder; expected a Stable Diffusion model"),
        (["experiment=sd_text_to_video", "config.denoiser.pretrained=nowhere"], "nowhere is no folder"),
        (
            ["experiment=sd_text_to_video", "config.denoiser.pretrained=SD", "config.data.height=312"],
            "must be multiples of 16",
        ),
        (["experiment=sd_text_to_video", "config.denoiser.pretrained=SD", "config.autoencoder.channels=8"], "channels"),
    ],
)
def test_mistakes_in_training_are_told_before_it_begins(words, told, trained, tmp_path, capsys):
    words = [word.replace("SD", str(trained.backbone)) for word in words]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *words, f"data={trained.store}", f"out={tmp_path / 'out'}"])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_a_backbone_of_other_widths_is_refused_with_the_first_layer_that_differs(trained, make_backbone, tmp_path):
    wide = make_backbone(tmp_path / "wide", widths=(24, 32))
    with pytest.raises(UserError, match=r"16 channels at down_blocks.0.*, this image network 24 channels"):
        video(trained, look=Look(backbone=str(wide)))


def test_a_backbone_of_another_prediction_is_refused(trained, make_backbone, tmp_path):
    second = make_backbone(tmp_path / "sd2", version=2)
    with pytest.raises(UserError, match=r"prediction=v, the temporal layers of .* were trained with epsilon"):
        video(trained, look=Look(backbone=str(second)))


@pytest.mark.parametrize("kind", ["disk", "cpu"])
def test_offloaded_weights_make_the_same_video(kind, trained, alike):
    made = video(trained, memory=Memory(offload=kind)).float()
    assert_close(made, video(trained).float(), atol=3, rtol=0)  # a layer's memory format may change its rounding


def test_with_offload_disk_no_weight_stays_in_memory(trained):
    bundle = Bundle(trained.bundle)
    with offload.in_use(lambda: load_denoiser(bundle, "keyframes"), offload="disk") as (network,):
        assert all(p.device.type == "meta" for p in network.parameters())


@pytest.mark.parametrize("saved", [dict(vae_slicing=True), dict(vae_tiling=64)])
def test_decoding_in_slices_or_tiles_larger_than_the_picture_is_decoding(saved, trained):
    assert torch.equal(video(trained, memory=Memory(**saved)), video(trained))


def test_an_image_network_may_be_trained_further_on_captions(trained, tmp_path):
    shutil.copytree(trained.bundle / "autoencoder", tmp_path / "out" / "bundle" / "autoencoder")
    index = Bundle(trained.bundle).index
    stages = {"autoencoder": index["stages"]["autoencoder"]}
    (tmp_path / "out" / "bundle" / "model_index.json").write_text(json.dumps({**index, "stages": stages}))
    run = Run(tmp_path / "out", trained.store, trained.backbone)
    run.train("stage=image", "config.denoiser.finetune=true", "config.stages.image.max_steps=2",
              "config.stages.image.batch_size=2")  # fmt: skip
    before, after = (load_denoiser(Bundle(root), "image").unet.state_dict() for root in (trained.bundle, run.bundle))
    assert not all(torch.equal(before[name], weight) for name, weight in after.items())


def test_a_bundle_that_reads_is_packed_without_the_pickles_it_brought(copy, tmp_path, capsys):
    (copy.root / "image" / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickle")
    index = json.loads((copy.root / "model_index.json").read_text())
    index["stages"]["image"]["folders"]["text_encoder"] = folder_sha256(copy.root / "image" / "text_encoder")
    (copy.root / "model_index.json").write_text(json.dumps(index))  # as a bundle was saved before pickles were left out
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle.*`drivesim bundle pack`"):
        TextToVideo.from_pretrained(copy.root)
    pack.main([f"bundle={copy.root}", f"out={tmp_path / 'packed'}", "dtype=bf16"])
    verify.main([f"bundle={tmp_path / 'packed'}"])
    assert "is whole: 7 stages" in capsys.readouterr().out
    packed = Bundle(tmp_path / "packed")
    assert not list(packed.root.rglob("*.bin"))
    weights = load_file(packed.folder("image", "text_encoder") / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.dim() > 1} == {torch.bfloat16}
    assert "text-to-video" in (packed.root / "README.md").read_text()
    assert generate(packed.root, tmp_path / "a.mp4", "prompt=a car", "upsampler=none").shape[0] == 33


def test_memory_does_not_grow_with_the_number_of_frames(trained):
    most = []
    for frames in (33, 97):
        model = TextToVideo.from_pretrained(trained.bundle, upsampler=False)
        made = enumerate(model(prompt="a car", frames=frames, seed=0, upsampler="none"))
        most.append(max(live_bytes() for i, _ in made if i % 32 == 31))
    kept = (97 - 33) * 3 * 32 * 64  # bytes; what a reference to each further frame would cost
    assert most[1] - most[0] < kept / 4


def live_bytes() -> int:
    """Bytes of all tensors that Python still reaches."""
    gc.collect()
    found = (o for o in gc.get_objects() if isinstance(o, torch.Tensor))
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in found)}.values())


def test_a_network_is_let_go_before_the_next_is_loaded(trained, monkeypatch):
    alive = []

    def load(bundle, stage, image=None):
        gc.collect()
        alive.append(
            sum(isinstance(o, torch.nn.Module) and type(o).__name__ == "TextDenoiser" for o in gc.get_objects())
        )
        return load_denoiser(bundle, stage, image)

    monkeypatch.setattr("drivesim.generation.text_to_video.load_denoiser", load)
    gc.collect()
    before = sum(isinstance(o, torch.nn.Module) and type(o).__name__ == "TextDenoiser" for o in gc.get_objects())
    video(trained)
    assert alive == [before, before]


def test_running_out_of_memory_names_what_would_help(trained, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("drivesim.generation.text_to_video.sample_frames", full)
    with pytest.raises(
        UserError, match=r"out of memory while keyframes were made .*GiB\); try offload=disk, a smaller"
    ):
        video(trained)
    monkeypatch.setattr("drivesim.generation.text_to_video.device_memory", lambda: 100_000)
    with pytest.raises(UserError, match=r"GiB\); try offload=disk$"):  # weights that fill it leave no other way
        video(trained)
    monkeypatch.undo()
    monkeypatch.setattr("drivesim.generation.text_to_video.cascade.decode", full)
    words = r"after the keyframes .*GiB\); try vae_slicing=true, vae_tiling=256, a smaller height"
    with pytest.raises(UserError, match=words):
        video(trained, memory=Memory(offload="disk"))


def test_a_bundle_does_not_change_with_the_folder_it_came_from(copy, trained, tmp_path, capsys):
    spoiled = Run(tmp_path, trained.store, Path(shutil.copytree(trained.backbone, tmp_path / "sd")))
    with open(spoiled.backbone / "unet" / "diffusion_pytorch_model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x00\x00")
    with pytest.raises(SystemExit):
        spoiled.train("stage=keyframes", "overwrite=true")
    assert "as it is now; run `drivesim train stage=image overwrite=true`" in capsys.readouterr().err
    file = copy.root / "image" / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"text_encoder is missing, damaged or was changed"):
        TextToVideo.from_pretrained(copy.root)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prompt=a", "night=1"], "night=1.0 does nothing in text-to-video"),
        (["lora=a.safetensors"], "lora=a.safetensors is for text-to-video; give prompt"),
        (["prompt=a", "offload=tape"], "offload=tape, expected one of none, cpu, disk"),
        ([], "makes video from words; `drivesim generate prompt=...` does"),
        (["prompt=a", "frames=50"], "the nearest are 49 and 65"),
        (["prompt=a", "height=40"], "must be multiples of 16"),
        (["prompt=a", "lora=none.bin", "frames=17"], "lora=none.bin is no safetensors file"),
        (["prompt=a", "backbone=nowhere"], "nowhere is no folder"),
    ],
)
def test_mistakes_are_told_in_one_line(words, told, trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", f"bundle={trained.bundle}", f"out={tmp_path / 'a.mp4'}", "upsampler=none", *words])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()
