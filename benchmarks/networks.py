"""The networks that are compared, brought to one size, one input and one question: the velocity of noisy latents.

Peers are diffusers' UNetSpatioTemporalConditionModel (Stable Video Diffusion's architecture: spatial and temporal
residual blocks and attention) and UNetMotionModel (AnimateDiff's: temporal attention only). They keep their published
layout: 4 levels, 2 layers a block, attention on all but the lowest; widths are scaled to our number of parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from diffusers import UNetMotionModel, UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from drivesim.clip import CLASSES, Layout
from drivesim.diffusion.tasks import FLAGS
from drivesim.errors import UserError
from drivesim.models.denoiser import DenoiserConfig

RATIO = (1, 2, 4, 4)  # published widths 320, 640, 1280, 1280
HEAD_DIM = 64  # of Stable Video Diffusion: 5, 10, 20, 20 heads
MATCH = 0.10  # parameters may differ by this share
PROBED = (64, 128, 256, 256)  # widths that tell how parameters grow
SLOTS = 24  # boxes a frame: 25 tokens, one more than slots
TEMPORAL_SVD = ("temporal_", "time_mixer", "time_pos_embed")
TEMPORAL_MOTION = ("motion_modules",)


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

    train     forward pass of a training step -> [B, T, C, h, w]
    denoise   the same in sampling, where what does not depend on the noise was computed before
    temporal  whether a weight, by its name, belongs to the temporal layers
    """

    name: str
    widths: tuple[int, ...]
    module: nn.Module
    train: Callable[[], Tensor]
    denoise: Callable[[], Tensor]
    temporal: Callable[[str], bool]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def select(self, temporal_only: bool) -> list[nn.Parameter]:
        """Mark the temporal weights, or all, as trained, and return them."""
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not temporal_only or self.temporal(name))
        return [p for p in self.module.parameters() if p.requires_grad]


def contenders(config: DenoiserConfig, inputs: Inputs) -> list[Contender]:
    """Ours and the two peers, parameters within MATCH of ours.

    raises  UserError if the latents do not divide by the peers' three down-samplings
    """
    h, w = inputs.x.shape[-2:]
    if h % 8 or w % 8:
        raise UserError(f"latents are {h}x{w}, the peers halve them three times; choose multiples of 8")
    us = ours(config, inputs)
    return [us, svd(us.parameters, config, inputs), motion(us.parameters, config, inputs)]


def ours(config: DenoiserConfig, inputs: Inputs) -> Contender:
    """Encodes the layout and the known frames anew in training, as training does; once a window in sampling."""
    module = config.build().inflate(inputs.context.shape[2])
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
    return Contender("drivesim", widths, module, train, denoise, lambda name: name.startswith("temporal."))


def svd(parameters: int, config: DenoiserConfig, inputs: Inputs) -> Contender:
    """Stable Video Diffusion's U-Net. Its group norms are fixed at 32 groups, so widths are multiples of 32."""
    frames, channels = inputs.x.shape[1:3]

    def build(widths: tuple[int, ...]) -> nn.Module:
        return UNetSpatioTemporalConditionModel(  # type: ignore[return-value]
            in_channels=peer_channels(config), out_channels=channels, block_out_channels=widths,
            cross_attention_dim=config.token_dim, num_attention_heads=heads(widths), num_frames=frames,
        )  # fmt: skip

    widths = match(build, 32, parameters)
    module = build(widths)
    x, tokens = peer_inputs(config, inputs)
    ids = torch.zeros(len(x), 3)  # frame rate, motion and augmentation level

    def forward() -> Tensor:
        # one set of tokens a clip is all that this network takes
        return module(x, inputs.timestep, tokens[:, 0], ids, return_dict=False)[0]

    return Contender("svd", widths, module, forward, forward, names(TEMPORAL_SVD))


def motion(parameters: int, config: DenoiserConfig, inputs: Inputs) -> Contender:
    """AnimateDiff's U-Net: temporal attention after every block, no temporal convolution."""

    def build(widths: tuple[int, ...]) -> nn.Module:
        return UNetMotionModel(  # type: ignore[return-value]
            in_channels=peer_channels(config), out_channels=inputs.x.shape[2], block_out_channels=widths,
            cross_attention_dim=config.token_dim, norm_num_groups=8, num_attention_heads=heads(widths),
            motion_num_attention_heads=heads(widths), motion_max_seq_length=max(32, inputs.x.shape[1]),
        )  # fmt: skip

    widths = match(build, 8, parameters)
    module = build(widths)
    x, tokens = peer_inputs(config, inputs)

    def forward() -> Tensor:
        out = module(x.transpose(1, 2), inputs.timestep, tokens.flatten(0, 1), return_dict=False)[0]
        return out.transpose(1, 2)

    return Contender("animatediff", widths, module, forward, forward, names(TEMPORAL_MOTION))


def match(build: Callable[[tuple[int, ...]], nn.Module], multiple: int, parameters: int) -> tuple[int, ...]:
    """Widths, multiples of `multiple`, nearest to RATIO among those with the number of parameters within MATCH.

    raises  UserError when there are none
    """
    # Parameters grow with the square of the width: one network tells where to look.
    centre = PROBED[3] * (parameters / size(build, PROBED)) ** 0.5

    def off(widths: tuple[int, ...]) -> tuple[float, float]:
        ratio = sum(abs(w / widths[3] - r / RATIO[3]) for w, r in zip(widths, RATIO, strict=True))
        return round(ratio, 3), abs(widths[3] - centre)

    for widths in sorted(candidates(centre, multiple), key=off):
        if abs(size(build, widths) / parameters - 1) <= MATCH:
            return widths
    raise UserError(
        f"no widths of a peer give {parameters / 1e6:.1f} M parameters within {MATCH:.0%}; "
        "change config.denoiser.block_out_channels"
    )


def size(build: Callable[[tuple[int, ...]], nn.Module], widths: tuple[int, ...]) -> int:
    """Number of parameters, counted without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(widths).parameters())


def candidates(centre: float, multiple: int) -> set[tuple[int, ...]]:
    """Ascending widths around RATIO, the widest within 40 % of `centre`."""

    def around(value: float) -> list[int]:
        return [w for w in (round_to(value, multiple) + shift for shift in (-multiple, 0, multiple)) if w > 0]

    tops = range(max(round_to(0.6 * centre, multiple), multiple), round_to(1.4 * centre, multiple) + 1, multiple)
    found = (w for top in tops for w in product(around(top / 4), around(top / 2), around(top), [top]))
    return {w for w in found if list(w) == sorted(w)}


def round_to(value: float, multiple: int) -> int:
    return int(value / multiple + 0.5) * multiple


def heads(widths: tuple[int, ...]) -> tuple[int, ...]:
    """The most heads of at least HEAD_DIM channels that divide each width: the published head size, kept."""
    return tuple(next(n for n in range(max(w // HEAD_DIM, 1), 0, -1) if w % n == 0) for w in widths)


def peer_channels(config: DenoiserConfig) -> int:
    """What ours is told by planes and context, a peer gets beside its latents, as Stable Video Diffusion does."""
    return config.channels + config.planes + config.channels + FLAGS


def peer_inputs(config: DenoiserConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Latents with planes and known frames [B, T, peer_channels, h, w]; tokens [B, T, SLOTS + 1, token_dim]."""
    b, t, _, h, w = inputs.x.shape
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(b, t, config.planes, h, w, generator=generator)
    tokens = torch.randn(b, t, SLOTS + 1, config.token_dim, generator=generator)
    return torch.cat([inputs.x, planes, inputs.context], 2), tokens


def names(parts: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: any(part in name for part in parts)
