"""What makes an image decoder a video decoder: temporal layers in it (paper, section 3.1.1), and after it, ours."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from drivesim.errors import UserError
from drivesim.models.alignment import AlignedNeighbours
from drivesim.models.inflation import Site, TemporalConfig, TemporalLayers

WINDOW = 8  # frames decoded at once, where the layers do not care


@dataclass
class VideoDecoderConfig:
    """align     frames correct each other along optical flow, after the decoder (models/alignment.py); ours, not the
                 paper's
    temporal  layers inside the decoder of kind=kl and kind=dc: 3D convolutions after its residual blocks, attention
              over time after its own attention
    """

    align: bool = True
    temporal: TemporalConfig = field(default_factory=TemporalConfig)


class VideoLayers(nn.Module):
    """All that is trained of a video decoder.

    raises  UserError if `config` and `sites`, in the order they are run in, leave nothing
    """

    def __init__(self, config: VideoDecoderConfig, sites: list[Site], factor: int) -> None:
        super().__init__()
        self.config = config
        self.inside = TemporalLayers(sites, 0, 0, 1, config=config.temporal)
        self.after = AlignedNeighbours(factor) if config.align else None
        if not len(self.inside.layers) and self.after is None:
            raise UserError(
                "the video decoder has no temporal layer; set decoder.align=true, or autoencoder.kind=kl or dc with "
                "decoder.temporal.convolution or attention"
            )

    def correct(self, x: Tensor, frames: int) -> Tensor:
        """What the decoder made, [B·T, 3, H, W], `frames` consecutive ones belong together -> same shape."""
        return self.after(x.float(), frames) if self.after is not None else x

    def last_weight(self) -> nn.Parameter:
        """Of the last layer before the pixels."""
        if self.after is not None:
            return self.after.conv_out.weight
        last: Any = list(self.inside.layers.values())[-1]
        return (last.conv_out if hasattr(last, "conv_out") else last.to_out).weight

    @property
    def window(self) -> int:
        """Frames to decode at once: layers inside the decoder have learned to see as many as in training."""
        return self.config.temporal.frames if len(self.inside.layers) and self.config.temporal.frames else WINDOW

    def overlap(self, window: int) -> int:
        """Frames, an even number, that a window of 3 or more shares with the next. Aligned neighbours see one frame to
        each side, layers inside the decoder as far as the window goes: half of it leaves a frame a quarter to each
        side."""
        return max(2 * (window // 4), 2) if len(self.inside.layers) else 2
