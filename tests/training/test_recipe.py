"""The autoencoder's recipe and the video decoder's, through `drivesim train` and step by step."""

import json
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch.testing import assert_close
from torch.utils.data import DataLoader

from drivesim import cli
from drivesim.bundle import Bundle, sha256
from drivesim.data.windows import Batch
from drivesim.errors import UserError
from drivesim.generation.cascade import decode
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.inflation import TemporalConfig
from drivesim.models.video_decoder import VideoDecoderConfig
from drivesim.training.experiment import StageConfig
from drivesim.training.pixels import AutoencoderTraining, check_recipe
from drivesim.training.stages import load_autoencoder

KL = ("config.autoencoder.kind=kl", "config.autoencoder.width=8", "config.autoencoder.blocks=1")
RECIPE = ("reconstruction=l1", "perceptual=stlpips", "adversarial=0.5", "discriminator_width=8", "adversarial_start=1")
KINDS = {
    "kl": AutoencoderConfig("kl", channels=4, factor=8, width=16, blocks=1),
    "dc": AutoencoderConfig("dc", channels=32, factor=32, width=16, blocks=1),
}


def recipe(stage: str, *more: str) -> list[str]:
    return [f"config.stages.{stage}.{word}" for word in (*RECIPE, *more)]


@pytest.fixture(scope="module")
def tuned(run_in, tmp_path_factory):
    """A KL autoencoder and its video decoder, as the paper has them, and the SHA-256 of the first before the second."""
    run = run_in(tmp_path_factory.mktemp("kl") / "out")
    run.train("stage=autoencoder", *KL, *recipe("autoencoder"))
    before = sha256(run.bundle / "autoencoder" / "model.safetensors")
    run.train("stage=decoder", *KL, *recipe("decoder", "image_adversarial=0.5"), "config.decoder.align=false")
    return run, before


def test_the_recipes_of_latent_diffusion_and_of_the_paper_are_trained_through_the_command_line(tuned):
    run, _ = tuned
    for stage in ("autoencoder", "decoder"):
        record = json.loads((run.bundle / stage / "training.json").read_text())
        assert record["steps"] == 3
        assert (record["stage"]["perceptual"], record["stage"]["adversarial_start"]) == ("stlpips", 1)
        assert all(torch.isfinite(w).all() for w in run.weights(stage).values())
    assert not any(name.startswith("after.") for name in run.weights("decoder"))  # nothing but the paper's layers


def test_training_the_video_decoder_leaves_encoder_and_image_decoder(tuned):
    run, before = tuned
    assert sha256(run.bundle / "autoencoder" / "model.safetensors") == before
    model = load_autoencoder(Bundle(run.bundle), decoder=True)
    image = {name: w for name, w in model.state_dict().items() if not name.startswith("temporal.")}
    saved = run.weights("autoencoder")
    assert image.keys() == saved.keys()
    assert all(torch.equal(image[name], saved[name]) for name in saved)
    z = torch.randn(3, 4, 4, 8)
    assert not torch.equal(model.decode(z, 3), model.decode(z))  # and yet it has learned something


@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_video_of_any_length_is_decoded_in_windows_as_long_as_in_training(tuned, length):
    model = load_autoencoder(Bundle(tuned[0].bundle), decoder=True)
    assert model.temporal.window == 3
    z = torch.randn(length, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    made = list(decode(model, iter(z)))
    assert len(made) == length
    if length > 3:
        assert_close(made[0].float(), model.decode(z[:3], 3)[0], rtol=0.1, atol=0.1)  # decoded in bf16 where that pays


def test_windows_of_one_frame_are_refused(tuned, capsys):
    run, _ = tuned
    with pytest.raises(SystemExit):
        cli.main(run.words("stage=decoder", "overwrite=true", *KL, "config.stages.decoder.frames=1"))
    assert "config.stages.decoder.frames is 1, expected 2 or more" in capsys.readouterr().err


def test_a_tuned_decoder_of_before_its_layers_were_told_is_read_with_those_it_had(tuned, tmp_path):
    run, _ = tuned
    bundle = Bundle(tmp_path / "bundle")
    autoencoder = Bundle(run.bundle)
    bundle.save("autoencoder", autoencoder.config("autoencoder"), run.weights("autoencoder"), {}, {})
    model = load_autoencoder(autoencoder)
    model.inflate_decoder(VideoDecoderConfig(temporal=TemporalConfig(attention="none")))
    bundle.save("decoder", {"frames": 3}, model.temporal.state_dict(), {}, {})
    layers = load_autoencoder(bundle, decoder=True).temporal
    assert layers.after is not None
    assert not any("attentions" in name for name in layers.inside.layers)


@pytest.fixture
def folder(tmp_path):
    """A trained autoencoder, as Stable Diffusion's vae/."""
    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    widths = dict(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4)
    AutoencoderKL(down_block_types=down, up_block_types=up, **widths).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_a_pretrained_autoencoder_goes_into_the_bundle_as_it_is_and_its_folder_is_not_needed_again(
    folder, run_in, tmp_path
):
    run = run_in(tmp_path / "out")
    words = ["config.autoencoder.kind=kl", f"config.autoencoder.pretrained={folder}", *recipe("autoencoder")]
    run.train("stage=autoencoder", *words, "config.stages.autoencoder.max_steps=-1")
    own = load_file(folder / "diffusion_pytorch_model.safetensors")
    folder.rename(folder.with_name("gone"))
    record = json.loads((run.bundle / "autoencoder" / "training.json").read_text())
    assert (record["steps"], record["parameters_trained"]) == (0, 0)
    saved = run.weights("autoencoder")
    assert saved.pop("scale").item() == pytest.approx(0.18215)
    assert saved.keys() == {f"vae.{name}" for name in own}
    assert all(torch.equal(saved[f"vae.{name}"], weight) for name, weight in own.items())
    run.train("stage=decoder", "config.autoencoder.kind=kl")
    assert load_autoencoder(Bundle(run.bundle), decoder=True).temporal is not None


def test_a_pretrained_autoencoder_is_trained_further_where_that_is_asked_for(folder, run_in, tmp_path):
    run = run_in(tmp_path / "out")
    words = [
        "config.autoencoder.kind=kl",
        f"config.autoencoder.pretrained={folder}",
        "config.autoencoder.finetune=true",
    ]
    run.train("stage=autoencoder", *words)
    saved, own = run.weights("autoencoder"), load_file(folder / "diffusion_pytorch_model.safetensors")
    assert saved.pop("scale").item() == pytest.approx(0.18215)  # the size that others know its latents by
    assert any(not torch.equal(saved[f"vae.{name}"], weight) for name, weight in own.items())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["config.autoencoder.pretrained={tmp}"], "autoencoder.pretrained is for kind=kl or kind=dc"),
        (["config.autoencoder.kind=kl", "config.autoencoder.pretrained={tmp}"], "has no config.json"),
        (["config.autoencoder.kind=kl", "config.autoencoder.pretrained={tmp}/no"], "/no is no folder"),
        (["config.stages.decoder.perceptual=lpips"], "perceptual=lpips is no file; expected stlpips, or a safetensors"),
        (["config.stages.decoder.reconstruction=l3"], "config.stages.decoder.reconstruction is 'l3', expected one of"),
        (["config.stages.autoencoder.image_adversarial=1"], "image_adversarial is for the decoder"),
        (["config.stages.autoencoder.adversarial_start=-1"], "adversarial_start is -1, expected 0 or more"),
        (["config.decoder.temporal.attention=much"], "temporal.attention is 'much', expected one of none, attention"),
    ],
)
def test_mistakes_in_a_recipe_are_told_in_one_line(run_in, tmp_path, capsys, words, told):
    run = run_in(tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        cli.main(run.words("stage=autoencoder", *(word.format(tmp=tmp_path) for word in words)))
    assert stop.value.code == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not run.bundle.exists()


def test_pictures_too_small_for_what_judges_them_are_refused():
    with pytest.raises(UserError, match="perceptual and picture discriminators need 32 pixels each way, found 16"):
        check_recipe("autoencoder", StageConfig(adversarial=1.0), 16)
    check_recipe("decoder", StageConfig(adversarial=1.0), 16)  # video is judged by patches of it


def batch(frames: int = 1, seed: int = 0) -> Batch:
    """Coarse pictures [2, T, 3, 64, 64] that hold still."""
    coarse = torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    x = torch.nn.functional.interpolate(coarse.flatten(0, 1), (64, 64), mode="bicubic").clamp(-1, 1)
    return Batch(
        x.unflatten(0, (2, 1)).expand(-1, frames, -1, -1, -1).contiguous(), None, torch.zeros(2), numbers=[0, 1]
    )


def fit(module: AutoencoderTraining, steps: int, x: Batch) -> list[dict[str, float]]:
    """Train on the same pictures; what was logged, step by step."""
    logged: list[dict[str, float]] = []
    module.transfer_batch_to_device = lambda batch, device, index: batch
    module.on_train_batch_end = lambda *_: logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DataLoader([x] * steps, batch_size=None))
    return logged


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_autoencoder_learns_pictures_it_sees_again_and_again(kind):
    torch.manual_seed(0)
    stage = StageConfig(lr=3e-3, reconstruction="l1", perceptual="stlpips", perceptual_weight=0.1)
    logged = fit(AutoencoderTraining(KINDS[kind].build(), stage, False, [batch()], 0), 40, batch())
    assert logged[-1]["psnr"] > logged[0]["psnr"] + 5
    assert logged[-1]["loss"] < logged[0]["loss"] / 1.5


def test_critics_begin_at_their_step_and_the_encoder_is_trained_all_along():
    torch.manual_seed(0)
    stage = StageConfig(adversarial=0.5, adversarial_start=2, discriminator_width=4)
    module = AutoencoderTraining(KINDS["kl"].build(), stage, False, [batch()], 0)
    weights = [module.discriminator.networks["picture"][0].weight, module.autoencoder.vae.encoder.conv_in.weight]
    seen = [[w.detach().clone() for w in weights]]
    step = AutoencoderTraining.training_step

    def watched(*args):
        step(module, *args)
        seen.append([w.detach().clone() for w in weights])

    module.training_step = watched
    logged = fit(module, 4, batch())
    critic = [torch.equal(a[0], b[0]) for a, b in pairwise(seen)]
    encoder = [torch.equal(a[1], b[1]) for a, b in pairwise(seen)]
    assert critic == [True, True, False, False]
    assert encoder == [False] * 4
    assert ["loss_discriminator" in row for row in logged] == [False, False, True, True]


@pytest.mark.parametrize(
    ("stage", "video", "networks"),
    [
        (StageConfig(), True, None),
        (StageConfig(adversarial=0.5), False, ["picture"]),
        (StageConfig(adversarial=0.5), True, ["video"]),
        (StageConfig(adversarial=0.5, image_adversarial=0.5), True, ["video", "picture"]),
    ],
)
def test_pictures_are_judged_in_the_autoencoder_and_video_in_the_decoder_unless_both_are_asked_for(
    stage, video, networks
):
    model = KINDS["kl"].build()
    if video:
        model.inflate_decoder(VideoDecoderConfig(align=False))
    critics = AutoencoderTraining(model, stage, video, [], 0).discriminator
    assert (critics and list(critics.networks)) == networks
