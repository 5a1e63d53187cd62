"""The contenders as denoisers of the library: ours as it is, a peer's network behind the same calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.networks import OURS
from benchmarks.peers import PEERS, PUBLISHED, Architecture, Ports, Widths, attention_like, guard, match
from drivesim.clip import Layout
from drivesim.diffusion.tasks import FAR_M, FLAGS
from drivesim.models.denoiser import Context, Denoiser, DenoiserConfig
from drivesim.models.inflation import TemporalConfig
from drivesim.models.motion import Move, SceneFlow
from drivesim.models.tracks import mover

MOTION = 2  # planes of the ego motion: metres and radians from the first frame of the window
NAMES = (OURS, *(peer.name for peer in PEERS))


class PeerDenoiser(Denoiser):
    """A published network in the place of our U-Net with its temporal layers; layout, tokens, spread of the latents,
    prior and preconditioning are ours. It is told all we tell ours, laid beside the latents, and how far the car has
    driven and turned.

    carried  its known frames are moved to where driving brings them, as ours are; else they lie there as its authors
             have it: the newest known frame repeated (Stable Video Diffusion), or known frames alone, zeros elsewhere
    """

    def __init__(
        self, config: DenoiserConfig, architecture: Architecture, ports: Ports, widths: Widths, carried: bool
    ) -> None:
        super().__init__(config)
        del self.unet
        self.architecture, self.ports, self.widths, self.carried = architecture, ports, widths, carried
        self.scene, self.motion = SceneFlow(), TemporalConfig().motion
        self.network = guard(architecture.image(ports, widths))

    def inflate(
        self, context_channels: int, temporal: TemporalConfig | None = None, freeze: bool = True
    ) -> "PeerDenoiser":
        """Become the video network that starts from the image network trained so far. What lies beside the latents
        from now on, and was zero before, counts for nothing at first, or it would be noise.

        temporal  of which the motion alone counts: the layers are the published ones
        freeze    train the temporal layers alone, and the input convolution, which has to learn what is new there
        """
        self.motion = (temporal or TemporalConfig()).motion
        with torch.no_grad():
            self.network.get_parameter("conv_in.weight")[:, -context_channels:] = 0
        self.network = guard(self.architecture.video(self.network, self.ports, self.widths))
        if freeze:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(self.architecture.is_temporal(name) or name.startswith("network.conv_in."))
        return self

    @property
    def carries(self) -> bool:
        return True

    @property
    def flow(self) -> SceneFlow:
        return self.scene

    @property
    def move(self) -> Move:
        return mover(self.scene, self.motion)

    def carry(self, latents: Tensor, mask: Tensor, layout: Layout) -> Tensor:
        if self.carried:
            return super().carry(latents, mask, layout)
        if self.architecture.name != "svd":
            return latents * mask[..., None, None, None]
        last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1)  # the first frame, where none is known
        held = latents[torch.arange(len(latents)), last] * mask.amax(1)[:, None, None, None]
        shown = mask[..., None, None, None]
        return shown * latents + (1 - shown) * held[:, None]

    def condition(
        self, layout: Layout, height: int, width: int, captions: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor | None]:
        planes, tokens = super().condition(layout, height, width, captions)
        moved = torch.stack([layout.travel / FAR_M, layout.heading], -1)
        moved = (
            (moved - moved[..., :1, :]).nan_to_num(0.0)[..., None, None].expand(*planes.shape[:-3], -1, height, width)
        )
        return torch.cat([planes, moved.to(planes)], -3), tokens

    def encode_context(self, context: Tensor) -> Context:
        """Known frames [B, T, C + FLAGS, h, w], as they are but for the spread of each channel."""
        channels = self.config.channels
        scale = torch.cat([self.latent_std, self.latent_std.new_ones(FLAGS)]).to(context)
        planes = (context / scale[:, None, None]).flatten(0, 1)
        given = context[:, :, channels].amax((1, 2, 3))
        return Context({(context.shape[-2], context.shape[-1]): planes}, context[:, :, :channels], given)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        planes: Tensor,
        tokens: Tensor | None = None,
        context: Context | None = None,
        hint: Tensor | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        """As in `Denoiser.forward`; the hint is part of our architecture and not told, a level there is none."""
        b, t, _, h, w = x.shape
        known = x.new_zeros(b, t, self.config.channels + FLAGS, h, w)
        if context is not None:
            known = context.features[h, w].unflatten(0, (b, t))
        beside = torch.cat([x, planes.to(x.dtype), known.to(x.dtype)], 2)
        assert tokens is not None
        return self.architecture.call(self.network, beside, timestep, tokens)


@dataclass(frozen=True)
class Entry:
    """A contender before training. `build` gives its image network as a denoiser; the same weights every time."""

    name: str
    widths: Widths
    build: Callable[[], Denoiser]


def entries(
    names: Sequence[str],
    config: DenoiserConfig,
    temporal: TemporalConfig,
    frames: int,
    context: int,
    carried: bool = False,
    attention: str = "ours",
    seed: int = 0,
) -> list[Entry]:
    """Contenders, of which the peers' video networks have our number of parameters within `peers.MATCH`.

    config    with the prior's size in it;  temporal  layers of ours;  frames  of a window
    context   channels of the known frames with their flags;  carried  see PeerDenoiser
    attention of the peers: ours or published
    """
    levels = PUBLISHED if attention == "published" else attention_like(config.attention)
    beside = config.planes + MOTION + (config.channels if config.prior else 0) + context
    ports = Ports(config.channels, beside, config.token_dim, frames, levels)

    def seeded(build: Callable[[], Denoiser]) -> Callable[[], Denoiser]:
        def make() -> Denoiser:
            torch.manual_seed(seed)
            return build()

        return make

    with torch.device("meta"):
        ours = config.build().inflate(context, temporal)
        total = parameters(ours) - parameters(ours.tokens)
    found = [Entry(OURS, tuple(config.block_out_channels), seeded(config.build))] if OURS in names else []
    for peer in (peer for peer in PEERS if peer.name in names):
        widths = match(peer, replace(ports, frames=1), total)

        def build(peer: Architecture = peer, widths: Widths = widths) -> Denoiser:
            return PeerDenoiser(config, peer, ports, widths, carried)

        found.append(Entry(peer.name, widths, seeded(build)))
    return found


def parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
