"""Temporal layers against the definitions they are fast versions of, and their insertion into an image network."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel
from diffusers.models.attention import TemporalBasicTransformerBlock
from torch import nn
from torch.testing import assert_close

from drivesim.clip import Layout
from drivesim.errors import UserError
from drivesim.models.denoiser import Denoiser, DenoiserConfig
from drivesim.models.inflation import TemporalConfig, TemporalLayers, temporal_sites
from drivesim.models.temporal import (
    Merge,
    Run,
    TemporalAttention,
    TemporalConv,
    TemporalTransformer,
    fold_time,
    sinusoidal,
    unfold_time,
)

B, T, C, H, W = 2, 4, 4, 8, 16
CONTEXT = C + 2
CONFIG = DenoiserConfig(
    channels=C,
    block_out_channels=[16, 32],
    layers_per_block=[1, 1],
    attention=[False, True],
    token_dim=16,
    head_dim=16,
    groups=8,
    context_width=8,
)


def denoiser(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return CONFIG.build()


def scramble(module: nn.Module) -> None:
    """Give every weight a value, those that start at zero too."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


def run(model: Denoiser, context: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(B, T, C, H, W, generator=generator)
    planes, tokens = model.condition(Layout.unknown(B, T), H, W)
    known = torch.randn(B, T, CONTEXT, H, W, generator=generator)
    features = model.encode_context(known) if model.temporal is not None and context else None
    return model(x, torch.tensor([100, 900]), planes, tokens, features)


def image_weights(model: Denoiser) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("temporal.")}


VARIANTS = {
    "default": TemporalConfig(),
    "transformer": TemporalConfig(attention="transformer", noise_level=True, head=False, carry=False),
    "relative": TemporalConfig(positions="relative", max_distance=2, head=False),
    "relative transformer": TemporalConfig(attention="transformer", positions="relative"),
    "attention only": TemporalConfig(convolution=False),
    "alpha along time": TemporalConfig(merge="time", frames=T),
}
variants = pytest.mark.parametrize("temporal", VARIANTS.values(), ids=list(VARIANTS))


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@variants
@torch.no_grad()
def test_a_freshly_inflated_network_is_the_image_network_bit_for_bit(temporal):
    model = denoiser()
    image = run(model)
    with bf16():
        image_bf16 = run(model)
    model.inflate(CONTEXT, temporal)
    assert torch.equal(run(model), image)
    with bf16():
        assert torch.equal(run(model), image_bf16)


@variants
@torch.no_grad()
def test_with_alpha_one_any_temporal_layers_leave_the_image_network_bit_for_bit(temporal):
    model = denoiser()
    image = run(model)
    with bf16():
        image_bf16 = run(model)
    model.inflate(CONTEXT, temporal)
    scramble(model.temporal)
    assert not torch.allclose(run(model), image)  # they do something
    for module in model.temporal.modules():
        if isinstance(module, Merge):
            module.logit.fill_(float("inf"))
    ones = [1.0] * T if temporal.merge == "time" else 1.0
    assert all(alpha == ones for alpha in model.temporal.alphas().values())
    assert torch.equal(run(model), image)
    with bf16():
        assert torch.equal(run(model), image_bf16)


@torch.no_grad()
def test_frames_by_themselves_do_not_see_each_other_and_a_video_network_does():
    model = denoiser()
    x, planes = torch.randn(1, T, C, H, W), torch.zeros(1, T, CONFIG.planes, H, W)
    other = x.clone()
    other[:, -1] += 1
    words, step = torch.zeros(1, T, 1, 16), torch.tensor([10])
    assert torch.equal(model(x, step, planes, words)[:, :-1], model(other, step, planes, words)[:, :-1])
    scramble(model.inflate(CONTEXT).temporal)
    assert not torch.allclose(model(x, step, planes, words)[:, 0], model(other, step, planes, words)[:, 0])


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other():
    model = denoiser().inflate(0)
    scramble(model.temporal)
    x, planes, words = torch.randn(2, T, C, H, W), torch.zeros(2, T, CONFIG.planes, H, W), torch.zeros(2, T, 1, 16)
    step = torch.tensor([10, 500])
    alone = torch.cat([model(x[i : i + 1], step[i : i + 1], planes[:1], words[:1]) for i in range(2)])
    assert_close(model(x, step, planes, words), alone, atol=1e-4, rtol=1e-4)


def test_unfold_and_fold_are_inverse_and_copy_nothing_in_channels_last():
    x = torch.randn(6, 5, 3, 7).contiguous(memory_format=torch.channels_last)
    unfolded = unfold_time(x, 3)
    assert unfolded.shape == (2, 5, 3, 21)
    assert torch.equal(unfolded[1, :, 2].unflatten(-1, (3, 7)), x[5])
    assert unfolded.data_ptr() == x.data_ptr()
    back = fold_time(unfolded, 3, 7)
    assert torch.equal(back, x)
    assert back.data_ptr() == x.data_ptr()
    assert back.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_a_temporal_convolution_is_the_residual_block_of_3d_convolutions():
    layer = TemporalConv(6, context_channels=3, groups=2).double()
    scramble(layer)
    z = torch.randn(B * T, 6, 4, 5, dtype=torch.double).contiguous(memory_format=torch.channels_last)
    features = torch.randn(B * T, 3, 4, 5, dtype=torch.double)

    def conv3d(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        reference = nn.Conv3d(conv.in_channels, conv.out_channels, (3, 1, 1), padding=(1, 0, 0)).double()
        reference.weight.copy_(conv.weight[..., None])
        reference.bias.copy_(conv.bias)
        return reference(x)

    def volume(x: torch.Tensor) -> torch.Tensor:  # [B·T, C, H, W] -> [B, C, T, H, W]
        return x.unflatten(0, (B, T)).transpose(1, 2)

    hidden = conv3d(layer.conv_in, F.silu(F.group_norm(volume(z), 2, layer.norm.weight, layer.norm.bias)))
    hidden = hidden + volume(layer.context(features))
    change = conv3d(layer.conv_out, F.silu(hidden)).transpose(1, 2).flatten(0, 1)
    alpha = torch.sigmoid(layer.merge.logit)
    assert_close(layer(z, Run(T, {(4, 5): features})), alpha * z + (1 - alpha) * (z + change))


@torch.no_grad()
def test_temporal_attention_is_plain_multi_head_attention_over_time_at_every_pixel():
    layer = TemporalAttention(8, head_dim=4).double()
    scramble(layer)
    z = torch.randn(B * T, 8, 3, 5, dtype=torch.double).contiguous(memory_format=torch.channels_last)
    reference = nn.MultiheadAttention(8, 2, batch_first=True).double()
    reference.in_proj_weight.copy_(layer.to_qkv.weight)
    reference.in_proj_bias.zero_()
    reference.out_proj.weight.copy_(layer.to_out.weight)
    reference.out_proj.bias.copy_(layer.to_out.bias)
    expected = z.unflatten(0, (B, T)).clone()
    positions = sinusoidal(torch.arange(T), 8).double()
    alpha = torch.sigmoid(layer.merge.logit)
    for b in range(B):
        for y in range(3):
            for x in range(5):
                pixel = expected[b, :, :, y, x]  # [T, C]
                words = (layer.norm(pixel) + positions)[None]
                expected[b, :, :, y, x] = pixel + (1 - alpha) * reference(words, words, words)[0][0]
    assert_close(layer(z, Run(T, {})), expected.flatten(0, 1), atol=1e-6, rtol=1e-6)


@variants
def test_a_training_step_changes_temporal_layers_alone(temporal):
    model = denoiser().inflate(CONTEXT, temporal)
    before, temporal = image_weights(model), {n: v.clone() for n, v in model.temporal.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        run(model).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in image_weights(model).items())
    changed = sum(not torch.equal(value, temporal[name]) for name, value in model.temporal.state_dict().items())
    assert changed > 0.8 * len(temporal)


@variants
def test_every_temporal_weight_gets_a_gradient(temporal):
    model = denoiser().inflate(CONTEXT, temporal)
    scramble(model.temporal)
    run(model).square().mean().backward()
    without = [name for name, p in model.temporal.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@torch.no_grad()
def test_temporal_weights_move_to_another_backbone_of_the_same_shape():
    first, second = denoiser(0).inflate(CONTEXT), denoiser(1).inflate(CONTEXT)
    scramble(first.temporal)
    weights = image_weights(second)
    second.temporal.load_state_dict(first.temporal.state_dict())
    assert not torch.allclose(run(first), run(second))
    second.load_state_dict(image_weights(first), strict=False)
    assert torch.equal(run(first), run(second))
    assert not all(torch.equal(weights[name], value) for name, value in image_weights(second).items())


@torch.no_grad()
def test_known_frames_reach_the_answer_at_their_own_pixel():
    model = denoiser().inflate(CONTEXT)
    scramble(model.temporal)
    assert not torch.allclose(run(model), run(model, context=False))


def test_the_backward_pass_of_a_small_frozen_network_survives():
    # torch 2.13's channels_last group norm on a CPU crashes when its input needs no gradient.
    for groups, widths in ((8, [16, 16]), (16, [16, 32])):
        config = DenoiserConfig(3, 4, widths, [1, 1], [False, False], token_dim=0, groups=groups)
        model = config.build().inflate(0)
        x = torch.randn(1, 2, 3, 16, 16)
        model(x, torch.tensor([5]), torch.zeros(1, 2, 4, 16, 16)).sum().backward()


def volume(x: torch.Tensor) -> torch.Tensor:
    """[B·T, C, H, W] -> a channels_last copy in float64."""
    return x.double().contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_a_temporal_transformer_is_diffusers_block_of_stable_video_diffusion():
    ours = TemporalTransformer(8, tokens=6, head_dim=4).double()
    scramble(ours)
    theirs = TemporalBasicTransformerBlock(8, 8, 2, 4, cross_attention_dim=6).double()
    q, k, v = ours.to_qkv.weight.chunk(3)
    pairs = {
        "norm_in": ours.norm_in, "ff_in": ours.feed_in, "norm1": ours.norm, "norm2": ours.norm_cross,
        "attn2": ours.cross, "norm3": ours.norm_out, "ff": ours.feed_out, "attn1.to_out.0": ours.to_out,
    }  # fmt: skip
    state = {f"{name}.{key}": value for name, module in pairs.items() for key, value in module.state_dict().items()}
    theirs.load_state_dict({**state, "attn1.to_q.weight": q, "attn1.to_k.weight": k, "attn1.to_v.weight": v})
    z, words = volume(torch.randn(B * T, 8, 3, 5)), torch.randn(B, 7, 6).double()
    tokens = words.repeat_interleave(T, 0)  # the same of every frame: theirs takes the first frame's for all
    rows = z.permute(0, 2, 3, 1).flatten(1, 2)  # [B·T, HW, C]
    placed = rows + ours.place(sinusoidal(torch.arange(T), 8).double()).repeat(B, 1)[:, None]
    change = theirs(placed, T, words.repeat_interleave(15, 0)) - rows
    change = change.view(B * T, 3, 5, 8).permute(0, 3, 1, 2)
    alpha = torch.sigmoid(ours.merge.logit)
    assert_close(ours(z, Run(T, {}, tokens=tokens)), alpha * z + (1 - alpha) * (z + change))


@torch.no_grad()
def test_relative_attention_with_a_largest_distance_is_a_convolution_in_time():
    layer = TemporalAttention(8, head_dim=4, positions="relative", max_distance=2).double()
    scramble(layer)
    z = volume(torch.randn(12, 8, 3, 5))
    whole, part = layer(z, Run(12, {})), layer(z[3:].contiguous(memory_format=torch.channels_last), Run(9, {}))
    assert_close(part[2:], whole[5:])  # wherever the clip begins, two frames later it does not matter
    assert not torch.allclose(part[0], whole[3])
    other = z.clone()
    other[9].normal_()
    seen = [not torch.equal(a, b) for a, b in zip(layer(other, Run(12, {})), whole, strict=True)]
    assert seen == [False] * 7 + [True] * 5


@torch.no_grad()
def test_alpha_along_time_weighs_every_frame_by_itself():
    merge = Merge(frames=3)
    merge.logit.copy_(torch.tensor([float("inf"), 0.0, -float("inf")]))
    z, change = torch.zeros(6, 2, 1, 1), torch.ones(6, 2, 1, 1)
    assert merge(z, change, 3)[:, 0].flatten().tolist() == [0, 0.5, 1] * 2
    assert merge(z[:4], change[:4], 2)[:, 0].flatten().tolist() == [0, 0.5] * 2  # the last window of a video is short


def test_a_clip_longer_than_its_merge_factors_is_refused():
    model = denoiser().inflate(0, TemporalConfig(merge="time", frames=T - 1))
    with pytest.raises(UserError, match=f"clip of {T} frames.*for {T - 1}"):
        run(model, context=False)


def test_unknown_kinds_of_temporal_layers_are_refused_by_name():
    with pytest.raises(UserError, match="'rotary', expected one of sinusoidal, relative"):
        TemporalConfig(positions="rotary")


@variants
def test_recomputing_activations_changes_no_gradient(temporal):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = denoiser().inflate(CONTEXT, temporal, freeze=False)
        scramble(model.temporal)
        if checkpointing:
            model.enable_checkpointing()
        model.train()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
            loss = run(model).square().mean()
        loss.backward()
        kept.append(sum(saved))
        return [p.grad for p in model.parameters() if p.grad is not None]

    kept: list[int] = []
    torch.manual_seed(3)
    plain = gradients(False)
    torch.manual_seed(3)
    again = gradients(True)
    assert len(plain) == len(again)
    for a, b in zip(plain, again, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert kept[1] < 0.7 * kept[0]


def test_stable_diffusion_gets_the_temporal_parameters_of_the_paper():
    with torch.device("meta"):
        unets = {
            656: UNet2DConditionModel(
                cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
            ),
            649: UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8),
        }
        svd = UNetSpatioTemporalConditionModel()
        for millions, unet in unets.items():
            layers = inflate_backbone(unet)
            assert round(sum(p.numel() for p in layers.parameters()) / 1e6) == pytest.approx(millions, abs=2)
    added = sum(p.numel() for p in svd.parameters()) - sum(p.numel() for p in unets[656].parameters())
    assert added / 1e6 == pytest.approx(656 + 2.6, abs=1)  # 2.6 M of it embed frame rate and motion


def inflate_backbone(unet: UNet2DConditionModel) -> nn.Module:
    temporal = TemporalConfig(attention="transformer", head_dim=64, noise_level=True, head=False)
    return TemporalLayers(temporal_sites(unet), 0, 0, 4, 32, temporal, unet.config.cross_attention_dim, 1280)
