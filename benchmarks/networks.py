"""The networks whose steps are timed, brought to one size, one input, one question: the velocity of noisy latents."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.peers import PEERS, PUBLISHED, Architecture, Ports, Widths, attention_like, guard, match
from drivesim.clip import CLASSES, Layout
from drivesim.diffusion.tasks import FLAGS
from drivesim.errors import UserError
from drivesim.models.denoiser import DenoiserConfig
from drivesim.models.inflation import TemporalConfig

SLOTS = 24  # boxes a frame: 25 tokens, one more than slots
OURS = "drivesim"


@dataclass(frozen=True)
class Inputs:
    """One clip batch, the same for every network.

    x         [B, T, C, h, w] noisy latents
    timestep  [B]
    layout    [B, T] with SLOTS boxes
    context   [B, T, C + FLAGS, h, w] known frames
    """

    x: Tensor
    timestep: Tensor
    layout: Layout
    context: Tensor

    @classmethod
    def random(cls, batch: int, frames: int, channels: int, height: int, width: int, seed: int) -> "Inputs":
        generator = torch.Generator().manual_seed(seed)
        corners = torch.rand(batch, frames, SLOTS, 2, 2, generator=generator).sort(-2).values
        classes = torch.randint(len(CLASSES), (batch, frames, SLOTS), generator=generator)
        labels = torch.rand(2, batch, frames, generator=generator)
        layout = replace(
            Layout.unknown(batch, frames, slots=SLOTS),
            boxes=corners.flatten(-2),
            classes=classes,
            tracks=classes,
            night=labels[0],
            crowdedness=labels[1],
            known=torch.ones(batch, frames).bool(),
        )
        x = torch.randn(batch, frames, channels, height, width, generator=generator)
        context = torch.randn(batch, frames, channels + FLAGS, height, width, generator=generator)
        return cls(x, torch.randint(1000, (batch,), generator=generator), layout, context)


@dataclass
class Contender:
    """A network with the calls that are timed.

    train       forward pass of a training step -> [B, T, C, h, w]
    denoise     the same in sampling, where what does not depend on the noise was computed before
    temporal    whether a weight, by its name, belongs to the temporal layers
    checkpoint  turns gradient checkpointing on; None where the network has none
    """

    name: str
    widths: Widths
    module: nn.Module
    train: Callable[[], Tensor]
    denoise: Callable[[], Tensor]
    temporal: Callable[[str], bool]
    checkpoint: Callable[[], object] | None = None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def select(self, temporal_only: bool) -> list[nn.Parameter]:
        """Mark the temporal weights, or all, as trained, and return them."""
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not temporal_only or self.temporal(name))
        return [p for p in self.module.parameters() if p.requires_grad]


def contenders(
    config: DenoiserConfig, inputs: Inputs, attention: str = "ours", temporal: TemporalConfig | None = None
) -> list[Contender]:
    """Ours and the peers, parameters within MATCH of ours.

    temporal   layers of ours
    attention  of the peers: at the resolutions where "ours" has it, or on all levels but the lowest as "published"
    raises     UserError if the latents do not divide by the peers' three down-samplings
    """
    h, w = inputs.x.shape[-2:]
    if h % 8 or w % 8:
        raise UserError(f"latents are {h}x{w}, the peers halve them three times; choose multiples of 8")
    us = ours(config, inputs, temporal)
    levels = PUBLISHED if attention == "published" else attention_like(config.attention)
    # What ours is told by planes and context, a peer gets beside its latents, as Stable Video Diffusion does.
    ports = Ports(config.channels, config.planes + config.channels + FLAGS, config.token_dim, inputs.x.shape[1], levels)
    return [us, *(peer(architecture, us.parameters, ports, inputs) for architecture in PEERS)]


def ours(config: DenoiserConfig, inputs: Inputs, temporal: TemporalConfig | None = None) -> Contender:
    """Encodes the layout and the known frames anew in training, as training does; once a window in sampling."""
    module = config.build().inflate(inputs.context.shape[2], temporal)
    h, w = inputs.x.shape[-2:]
    with torch.no_grad():
        conditions = module.condition(inputs.layout, h, w)
        features = module.encode_context(inputs.context)

    def train() -> Tensor:
        planes, tokens = module.condition(inputs.layout, h, w)
        return module(inputs.x, inputs.timestep, planes, tokens, module.encode_context(inputs.context))

    def denoise() -> Tensor:
        return module(inputs.x, inputs.timestep, *conditions, features)

    widths = tuple(config.block_out_channels)
    return Contender(
        OURS, widths, module, train, denoise, lambda name: name.startswith("temporal."), module.enable_checkpointing
    )


def peer(architecture: Architecture, parameters: int, ports: Ports, inputs: Inputs) -> Contender:
    """A published network of as many parameters."""
    widths = match(architecture, replace(ports, frames=1), parameters)
    module = guard(architecture.build(ports, widths))
    x, tokens = peer_inputs(ports, inputs)

    def forward() -> Tensor:
        return architecture.call(module, x, inputs.timestep, tokens)

    able = getattr(module, "_supports_gradient_checkpointing", False)
    checkpoint = module.enable_gradient_checkpointing if able else None
    return Contender(
        architecture.name, widths, module, forward, forward, architecture.is_temporal, checkpoint  # type: ignore[arg-type]
    )  # fmt: skip


def peer_inputs(ports: Ports, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Latents with what lies beside them [B, T, channels + beside, h, w]; tokens [B, T, SLOTS + 1, token_dim]."""
    b, t, _, h, w = inputs.x.shape
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(b, t, ports.beside - inputs.context.shape[2], h, w, generator=generator)
    tokens = torch.randn(b, t, SLOTS + 1, ports.token_dim, generator=generator)
    return torch.cat([inputs.x, planes, inputs.context], 2), tokens
