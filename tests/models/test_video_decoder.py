"""The video decoder (paper, section 3.1.1): where its layers go, what they may change, large pictures."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.testing import assert_close

from drivesim.errors import UserError
from drivesim.models.autoencoder import Autoencoder, AutoencoderConfig
from drivesim.models.inflation import TemporalConfig
from drivesim.models.temporal import TemporalAttention, TemporalConv
from drivesim.models.video_decoder import VideoDecoderConfig

KINDS = {
    "kl": AutoencoderConfig("kl", channels=4, factor=8, width=8, blocks=1),
    "dc": AutoencoderConfig("dc", channels=8, factor=32, width=8, blocks=1),
}
FAITHFUL = VideoDecoderConfig(align=False)


def decoder(kind: str = "kl", config: VideoDecoderConfig = FAITHFUL, scrambled: bool = True) -> Autoencoder:
    """A random video decoder, all of whose temporal layers do something."""
    torch.manual_seed(0)
    model = KINDS[kind].build().inflate_decoder(config)
    if scrambled:
        for parameter in model.temporal.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def latents(count: int, kind: str = "kl", size: tuple[int, int] = (4, 8)) -> torch.Tensor:
    return torch.randn(count, KINDS[kind].channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_at_alpha_one_it_is_the_image_decoder_bit_for_bit(kind, bf16):
    model, z = decoder(kind), latents(6, kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        image = model.decode(z)
        assert not torch.equal(model.decode(z, 3), image)
        for layer in model.temporal.inside.layers.values():
            nn.init.constant_(layer.merge.logit, float("inf"))
        assert torch.equal(model.decode(z, 3), image)
    assert image.dtype == (torch.bfloat16 if bf16 else torch.float32)


def test_convolutions_follow_every_residual_block_of_the_kl_decoder_and_attention_its_attention():
    model = decoder()
    spatial = list(model.vae.decoder.modules())
    kinds = [type(layer) for layer in model.temporal.inside.layers.values()]
    assert kinds.count(TemporalConv) == sum(isinstance(m, ResnetBlock2D) for m in spatial) == 10
    assert kinds.count(TemporalAttention) == sum(isinstance(m, Attention) for m in spatial) == 1
    assert len(kinds) == 11


@pytest.mark.parametrize("kind", KINDS)
def test_every_temporal_layer_is_run_and_trained_and_nothing_else(kind):
    model = decoder(kind).train()
    model.decode(latents(3, kind), 3).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.temporal.parameters())
    others = [(name, p) for name, p in model.named_parameters() if not name.startswith("temporal.")]
    assert all(p.grad is None and not p.requires_grad for _, p in others)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_frames_of_a_clip_see_each_other_and_clips_of_a_batch_do_not(kind):
    model, z = decoder(kind), latents(6, kind)
    both = model.decode(z, 3)
    assert_close(model.decode(z[:3], 3), both[:3], rtol=1e-4, atol=1e-4)
    other = torch.cat([z[:2], latents(9, kind)[8:], z[3:]])  # the last frame of the first clip
    changed = model.decode(other, 3)
    assert not torch.allclose(changed[:2], both[:2], atol=1e-3)
    assert_close(changed[3:], both[3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [dict(convolution=False), dict(attention="none")])
def test_convolutions_or_attention_can_be_left_out(parts):
    model = decoder(config=VideoDecoderConfig(align=False, temporal=TemporalConfig(**parts)))
    kinds = {type(layer) for layer in model.temporal.inside.layers.values()}
    assert kinds == ({TemporalAttention} if "convolution" in parts else {TemporalConv})
    assert any(model.last_weight() is p for p in model.temporal.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_without_alignment_the_losses_are_balanced_at_the_layer_nearest_to_the_pixels(kind):
    model = decoder(kind)
    order = []
    for name, layer in model.temporal.inside.layers.items():
        layer.register_forward_hook(lambda *_, name=name: order.append(name))
    model.decode(latents(2, kind), 2)
    assert model.last_weight() is model.temporal.inside.layers[order[-1]].conv_out.weight


def test_a_decoder_with_nothing_temporal_is_refused():
    model = AutoencoderConfig("patch", channels=4, width=8, blocks=1).build()
    with pytest.raises(UserError, match=r"has no temporal layer; set decoder\.align=true, or autoencoder\.kind=kl"):
        model.inflate_decoder(FAITHFUL)


def test_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        model = decoder().train()
        if checkpointing:
            model.enable_checkpointing()
        model.decode(latents(3), 3).square().mean().backward()
        found.append([p.grad for p in model.temporal.parameters()])
    for plain, again in zip(*found, strict=True):
        assert_close(again, plain, rtol=1e-3, atol=1e-6)


def test_norms_of_the_image_decoder_keep_their_statistics_while_temporal_layers_are_trained():
    layout = {**KINDS["dc"].build().vae.config, "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3}
    layout = {name: value for name, value in layout.items() if not name.startswith("_")}
    model = AutoencoderConfig("dc", channels=8, factor=32, network=layout).build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.inflate_decoder(FAITHFUL).train()
    model.decode(latents(4, "dc"), 4)
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.temporal.training


def seen_by(model: Autoencoder, call) -> list[torch.Size]:
    """Shapes of what the image decoder is given during a call."""
    shapes: list[torch.Size] = []
    handle = model.vae.decoder.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    call()
    handle.remove()
    return shapes


@pytest.mark.parametrize(("frames", "pieces"), [(1, [1] * 6), (2, [2, 2, 2]), (3, [3, 3])])
@torch.no_grad()
def test_slices_are_clips_and_give_the_same_pictures(frames, pieces):
    model, z = decoder(), latents(6)
    whole = model.decode(z, frames)
    model.enable_slicing()
    assert [shape[0] for shape in seen_by(model, lambda: model.decode(z, frames))] == pieces
    assert_close(model.decode(z, frames), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_large_pictures_are_decoded_in_tiles_of_at_most_the_size_that_was_asked_for(kind):
    model, factor = decoder(kind), KINDS[kind].factor
    tile = 8 * factor
    model.enable_tiling(tile)
    z = latents(2, kind, (12, 20))
    shapes = seen_by(model, lambda: model.decode(z, 2))
    assert len(shapes) > 1
    assert all(max(shape[-2:]) <= 8 and shape[0] == 2 for shape in shapes)
    assert model.decode(z, 2).shape == (2, 3, 12 * factor, 20 * factor)
    small = latents(2, kind, (8, 8))
    assert len(seen_by(model, lambda: model.decode(small, 2))) == 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_tile_shows_what_is_decoded_of_its_latents_alone(kind):
    model, factor = decoder(kind), KINDS[kind].factor
    z = latents(2, kind, (8, 16))
    alone = model.decode(z[..., :8], 2)
    model.enable_tiling(8 * factor)
    inner = 6 * factor  # the last quarter, each way, is blended into the next tile
    assert_close(model.decode(z, 2)[..., :inner, :inner], alone[..., :inner, :inner], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [0, 16, 100])
def test_tiles_that_do_not_split_into_latents_are_refused(size):
    with pytest.raises(UserError, match=rf"tiles of {size} pixels; expected a multiple of 32, 64 or more"):
        decoder().enable_tiling(size)


def test_a_kind_without_tiles_says_so():
    with pytest.raises(UserError, match="kind=patch has no tiles"):
        AutoencoderConfig("patch", channels=4, width=8, blocks=1).build().enable_tiling()


@pytest.mark.parametrize(("frames", "window", "overlap"), [(8, 8, 4), (5, 5, 2), (3, 3, 2)])
def test_layers_inside_the_decoder_see_windows_as_long_as_in_training_of_which_half_overlaps(frames, window, overlap):
    layers = decoder(config=VideoDecoderConfig(align=False, temporal=TemporalConfig(frames=frames))).temporal
    assert (layers.window, layers.overlap(layers.window)) == (window, overlap)


def test_aligned_neighbours_alone_need_one_frame_to_each_side():
    layers = AutoencoderConfig("patch", channels=4, width=8, blocks=1).build()
    layers = layers.inflate_decoder(VideoDecoderConfig(temporal=TemporalConfig(frames=5))).temporal
    assert (layers.window, layers.overlap(layers.window)) == (8, 2)
