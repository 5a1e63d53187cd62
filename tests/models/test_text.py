"""Captions as Stable Diffusion reads them."""

import copy
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from drivesim.diffusion.tasks import drop_texts
from drivesim.errors import UserError
from drivesim.models.text import KEPT, TextEncoder

TEXTS = ["A red car!", "", "rain on a car", "A red car!"]


def test_texts_are_read_as_diffusers_reads_them(backbone):
    pipeline = StableDiffusionPipeline.from_pretrained(backbone, safety_checker=None)
    expected = pipeline.encode_prompt(TEXTS, "cpu", 1, False)[0]
    assert_close(TextEncoder(backbone)(TEXTS), expected, rtol=1e-5, atol=1e-6)


def test_older_tokenizers_of_two_files_read_alike(backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "copy")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert torch.equal(TextEncoder(folder)(TEXTS), TextEncoder(backbone)(TEXTS))


def test_weights_under_their_older_names_are_read_alike(backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "copy")
    file = folder / "text_encoder" / "model.safetensors"
    older = {f"text_model.{name}": weight for name, weight in load_file(file).items()}
    older["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    save_file(older, file, metadata={"format": "pt"})
    assert torch.equal(TextEncoder(folder)(TEXTS), TextEncoder(backbone)(TEXTS))


def test_what_is_too_long_to_be_read_is_told_once(backbone, capsys):
    encoder = TextEncoder(backbone)
    long = "abcdefghij klmnopqr xyz"  # every letter is a token, and 18 are read
    encoder([long])
    encoder([long, "short"])
    told = capsys.readouterr().err
    assert told.count("of a text of 21 tokens 18 are read") == 1
    assert 'left out: "xyz"' in told
    assert torch.equal(encoder([long]), encoder(["abcdefghij klmnopqr"]))


def test_known_texts_need_no_weights(backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "copy")
    encoder = TextEncoder(folder)
    read = encoder(TEXTS)
    encoder.release()
    shutil.rmtree(folder)
    assert torch.equal(encoder(TEXTS), read)
    with pytest.raises(UserError):
        encoder(["never read"])


def test_a_million_captions_do_not_fill_the_memory(backbone):
    encoder = TextEncoder(backbone)
    texts = [f"{i}" for i in range(KEPT + 50)]
    read = encoder(texts)
    assert len(encoder._known) == KEPT
    assert torch.equal(encoder(texts[:1]), read[:1])


def test_who_averages_a_network_does_not_hold_its_text_encoder_twice(backbone):
    encoder = TextEncoder(backbone)
    assert copy.deepcopy([encoder])[0] is encoder


def test_captions_are_forgotten_at_the_rate_asked_for():
    texts = [f"{i + 1}" for i in range(4000)]
    left = drop_texts(texts, 0.1, torch.Generator().manual_seed(0))
    assert left.count("") == pytest.approx(400, abs=60)
    assert all(a in ("", b) for a, b in zip(left, texts, strict=True))
    assert drop_texts(texts, 0.0, torch.Generator()) == texts
