import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.testing import assert_close

from drivesim.models.cpu import AttentionProcessor, GroupNorm, attend, speed_up
from drivesim.models.denoiser import DenoiserConfig, build_unet


def test_attention_in_bf16_is_as_good_as_fp32_attention_of_the_same_numbers():
    q, k, v = torch.randn(3, 2, 4, 20, 8).to(torch.bfloat16)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v)
    assert out.dtype == torch.bfloat16
    assert_close(out.double(), exact, atol=1e-6, rtol=2**-8)  # one rounding to bf16 of an fp32 sum


@torch.no_grad()
def test_the_attention_processor_is_the_default_one_of_diffusers():
    attn = Attention(24, cross_attention_dim=10, heads=3, dim_head=8)
    x, words = torch.randn(2, 6, 24), torch.randn(2, 5, 10)
    expected = attn(x, words)
    attn.set_processor(AttentionProcessor())
    assert_close(attn(x, words), expected)


@pytest.mark.parametrize("size", [(4, 5), (32, 40)])
@pytest.mark.parametrize("gradient", [True, False])
def test_group_norm_of_a_bf16_picture_is_the_usual_one_and_stays_channels_last(size, gradient):
    x = torch.randn(2, 8, *size).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    with torch.set_grad_enabled(gradient):
        out = norm(x.requires_grad_(gradient))
    expected = F.group_norm(x.detach().float(), 4, norm.weight, norm.bias, norm.eps)
    assert_close(out.detach().float(), expected, atol=0.05, rtol=0.02)
    assert out.is_contiguous(memory_format=torch.channels_last)
    if gradient:
        out.float().sum().backward()
        assert x.grad.shape == x.shape


@torch.no_grad()
def test_a_faster_network_has_the_weights_of_the_plain_one_and_gives_its_answer():
    config = DenoiserConfig(
        channels=4, block_out_channels=[16, 32], layers_per_block=[1, 1], attention=[False, True], token_dim=8
    )
    fast = build_unet(config)
    plain = type(fast).from_config(fast.config)
    plain.load_state_dict(fast.state_dict())  # the same names
    x, step, words = torch.randn(2, 4 + config.planes, 8, 8), torch.tensor([3, 700]), torch.randn(2, 3, 8)
    assert_close(fast(x, step, words).sample, plain(x, step, words).sample, atol=1e-5, rtol=1e-4)
    assert not any(type(module) is nn.GroupNorm for module in fast.modules())


def test_a_network_without_attention_is_left_whole():
    network = build_unet(
        DenoiserConfig(
            channels=4, block_out_channels=[16, 16], layers_per_block=[1, 1], attention=[False, False], token_dim=0
        )
    )
    names = set(network.state_dict())
    speed_up(network)
    assert set(network.state_dict()) == names
