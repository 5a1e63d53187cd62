"""What a step costs, against closed forms and against the same step run in memory."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from drivesim.clip import Layout
from drivesim.data.windows import Batch
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import Predict
from drivesim.models.denoiser import Denoiser, DenoiserConfig
from drivesim.models.inflation import TemporalConfig
from drivesim.planning.measure import flops_of, mixed_precision, training_step
from drivesim.training.experiment import StageConfig
from drivesim.training.latent import LatentVideoDiffusion

B, IN, HIDDEN, OUT = 8, 16, 64, 4
SMALL = DenoiserConfig(channels=4, block_out_channels=[16, 32], layers_per_block=[1, 1], attention=[False, True],
                       token_dim=16, head_dim=16, groups=8, context_width=8)  # fmt: skip


class TwoLayers(pl.LightningModule):
    """Linear, ReLU, linear; the sum is the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(IN, HIDDEN, bias=False), nn.Linear(HIDDEN, OUT, bias=False)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.log("loss", 0.0)
        return self.second(torch.relu(self.first(batch.x))).sum()


def rows(device: str) -> Batch:
    return Batch(torch.empty(B, IN, device=device), Layout.unknown(B), torch.zeros(B))


def test_a_step_of_two_layers_costs_what_the_closed_form_says():
    with torch.device("meta"):
        module = TwoLayers()
    cost = training_step(module, rows("meta"))
    forward = 2 * B * (IN * HIDDEN + HIDDEN * OUT)
    backward = 2 * B * IN * HIDDEN + 2 * 2 * B * HIDDEN * OUT  # of the first layer's input no gradient is wanted
    assert cost.flops == forward + backward
    # In bfloat16: the input, both weights less the first, which only the gradient of the input needs, the hidden layer.
    assert cost.kept == 2 * (B * IN + HIDDEN * OUT + B * HIDDEN)


def test_a_frozen_layer_keeps_nothing_and_its_weights_cost_no_backward_pass():
    with torch.device("meta"):
        module = TwoLayers()
    module.first.requires_grad_(False)
    cost = training_step(module, rows("meta"))
    assert cost.flops == 2 * B * IN * HIDDEN + 2 * 2 * B * HIDDEN * OUT
    assert cost.kept == 2 * B * HIDDEN


def step_of(device: str, temporal: TemporalConfig, checkpointing: bool) -> tuple[LatentVideoDiffusion, Batch]:
    """A step of keyframes of a small network."""
    frames = 4
    with torch.device(device):
        denoiser: Denoiser = SMALL.build().inflate(4 + Predict().context_channels, temporal)
        diffusion = Diffusion(ScheduleConfig())
    if checkpointing:
        denoiser.enable_checkpointing()
    task = Predict(frames=frames, context_noise=0.0)
    module = LatentVideoDiffusion(denoiser, task, diffusion, StageConfig(), 0, [], lambda denoiser: None)
    layout = Layout.unknown(2, frames, slots=3).driven(torch.arange(frames) / 2, 8.0).to(device)
    return module, Batch(torch.zeros(2, frames, 4, 8, 16, device=device), layout, torch.zeros(2), numbers=[0, 1])


LAYERS = [
    TemporalConfig(carry=False),
    TemporalConfig(attention="transformer", noise_level=True, head=False, carry=False),
    TemporalConfig(positions="relative", max_distance=2, carry=False),
]


@pytest.mark.parametrize("temporal", LAYERS, ids=["attention", "transformer", "relative"])
def test_a_step_without_memory_counts_the_flops_of_the_same_step_in_memory(temporal):
    planned = training_step(*step_of("meta", temporal, checkpointing=False))
    module, batch = step_of("cpu", temporal, checkpointing=False)
    module.log = lambda *_, **__: None
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module.training_step(batch, 0).backward()
    assert planned.flops == pytest.approx(counted.get_total_flops(), rel=0.02)  # fused attention computes qk twice


@pytest.mark.parametrize("temporal", LAYERS, ids=["attention", "transformer", "relative"])
def test_checkpointing_keeps_less_and_computes_more_but_not_twice_as_much(temporal):
    plain, again = (training_step(*step_of("meta", temporal, checkpointing)) for checkpointing in (False, True))
    assert again.kept < 0.7 * plain.kept
    assert 1.1 * plain.flops < again.flops < 1.5 * plain.flops
    assert 0 < plain.largest < plain.kept


def test_what_is_kept_is_what_autograd_keeps_in_memory():
    """In fp32 on both sides, since a CPU's autocast differs from a GPU's."""

    def kept(device: str) -> int:
        module, batch = step_of(device, LAYERS[0], checkpointing=False)
        module.log = lambda *_, **__: None
        weights = {x.untyped_storage()._cdata for x in (*module.parameters(), *module.buffers())}
        found: dict[int, torch.Tensor] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            if x.untyped_storage()._cdata not in weights:
                found[x.untyped_storage()._cdata] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module.training_step(batch, 0)
        return sum(x.untyped_storage().nbytes() for x in found.values())

    assert kept("meta") == pytest.approx(kept("cpu"), rel=0.05)


def test_autocast_is_put_back():
    before = torch.autocast, torch.nn.functional.conv2d, torch.Tensor.matmul
    with mixed_precision():
        conv = nn.Conv2d(3, 4, 3, device="meta")
        norm = nn.GroupNorm(2, 4, device="meta")
        x = conv(torch.empty(1, 3, 8, 8, device="meta"))
        assert (x.dtype, norm(x).dtype) == (torch.bfloat16, torch.float32)
        with torch.autocast("meta", enabled=False):
            assert conv(torch.empty(1, 3, 8, 8, device="meta")).dtype == torch.float32
    assert before == (torch.autocast, torch.nn.functional.conv2d, torch.Tensor.matmul)


def test_flops_of_a_call_are_those_of_its_products():
    conv = nn.Conv2d(3, 8, 3, padding=1, device="meta")
    assert flops_of(lambda: conv(torch.empty(2, 3, 10, 20, device="meta"))) == 2 * 2 * 10 * 20 * 3 * 8 * 9
