"""A denoiser that is told words instead of a layout: an image network trained elsewhere on pictures with captions."""

from collections.abc import Callable, Sequence

from torch import Tensor

from drivesim.clip import Layout
from drivesim.models.denoiser import Denoiser, DenoiserConfig

Reader = Callable[[Sequence[str]], Tensor]  # B texts -> [B, L, D]


class TextDenoiser(Denoiser):
    """The U-Net of `config.unet`, unchanged in class and weights. Nothing is laid beside the latents."""

    reads = True

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        self._reader: list[Reader] = []  # in a list, so that the text encoder is no part of this network

    def read_by(self, reader: Reader) -> "TextDenoiser":
        """Name what turns captions into what the network attends to: a `models.text.TextEncoder`."""
        self._reader = [reader]
        return self

    def condition(
        self, layout: Layout, height: int, width: int, captions: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """No planes, [B, T, 0, h, w], and tokens [B, T, L, D] of B captions, the same for all frames; of layout [B, T]
        the size alone counts."""
        if not self._reader:
            raise RuntimeError("name the text encoder first: read_by")
        clips, frames = layout.night.shape
        words = self._reader[0](list(captions) or [""] * clips).to(self.latent_std)
        return words.new_zeros(clips, frames, 0, height, width), words[:, None].expand(-1, frames, -1, -1)
