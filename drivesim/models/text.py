"""Captions as what an image network attends to: CLIP's text encoder, frozen (paper, section 4.2)."""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drivesim.errors import UserError
from drivesim.machine import probe
from drivesim.models.lora import merge_lora_into_text
from drivesim.models.vae_folder import weight_variant

KEPT = 512  # embeddings that are kept: 0.3 MB each


class TextEncoder:
    """`text_encoder/` and `tokenizer/` of a folder, loaded when the first text comes that is not known yet.

    lora  a file whose changes to the text encoder are added, where it has any
    """

    def __init__(self, root: Path | str, lora: Path | None = None, lora_scale: float = 1.0) -> None:
        self.root, self.lora, self.lora_scale = Path(root), lora, lora_scale
        self.warned: set[str] = set()
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._model: Any = None
        self._tokenizer: Any = None

    def __deepcopy__(self, memo: dict) -> "TextEncoder":
        """Itself: it is frozen, and whoever averages the weights of a network that reads need not hold it twice."""
        return self

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B texts -> [B, L, D] fp32 on the CPU, L the length that all are padded or cut to. What is cut is told."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = {text: self._known[text] for text in texts if text in self._known}
        if new:
            found |= dict(zip(new, self._encode(new), strict=True))
        for text in found:
            self._known[text] = found[text]
            self._known.move_to_end(text)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return torch.stack([found[text] for text in texts])

    def release(self) -> "TextEncoder":
        """Let the weights go; the texts that came last stay known."""
        self._model = None
        return self

    def _encode(self, texts: list[str]) -> Tensor:
        if self._model is None:
            self._load()
        length = self._tokenizer.model_max_length
        for text in texts:
            self._tell_cut(text, length)
        tokens = self._tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return self._model(tokens.input_ids.to(self._model.device))[0].float().cpu()

    def _tell_cut(self, text: str, length: int) -> None:
        """Say which words of a text are beyond the length, once."""
        tokens = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if len(tokens) > length - 2 and text not in self.warned:
            self.warned.add(text)
            cut = self._tokenizer.decode(tokens[length - 2 :])
            print(
                f'drivesim: of a text of {len(tokens)} tokens {length - 2} are read; left out: "{cut}"', file=sys.stderr
            )

    def _load(self) -> None:
        from transformers import CLIPTextModel, CLIPTokenizer  # seconds that nobody else need wait
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = self.root / "text_encoder"
        variant = weight_variant(folder, "model")
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(str(self.root / "tokenizer"), local_files_only=True)
            loaded: Any = CLIPTextModel.from_pretrained(
                str(folder),
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{self.root}: the text encoder does not load ({str(error).splitlines()[0]})") from error
        self._model, report = loaded
        if wrong := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise UserError(f"{folder}: {len(wrong)} weights do not fit config.json, the first is {wrong[0]}")
        most = self._model.config.max_position_embeddings
        if self._tokenizer.model_max_length > most:  # where the tokenizer does not know how long a text may be
            self._tokenizer.model_max_length = most
        if self.lora is not None:
            merge_lora_into_text(self.lora, self._model, self.lora_scale)
        self._model.requires_grad_(False).eval().to(probe().device)
