"""The model card and `info`, against what the records say and as Hugging Face's own library reads it."""

import json

import pytest
from huggingface_hub import ModelCard

from drivesim.bundle import Bundle
from drivesim.bundles import info, pack
from drivesim.bundles.command import main
from drivesim.bundles.headers import Header
from drivesim.errors import UserError

DATASET = {"name": "store", "source": "town", "clips": 40, "hours": 0.5, "licences": {"CC0-1.0": 30, "CC-BY-4.0": 10}}
RESULTS = {
    "schema": 1,
    "provenance": {"command": "drivesim evaluate bundle=/home/me/run/bundle real=held_out"},
    "warnings": ["few videos"],
    "metrics": {
        "psnr": {"better": "higher", "meaning": "likeness"},
        "fvd": {"better": "lower", "meaning": "not measured here"},
    },
    "sets": [
        {"name": "real", "metrics": {"psnr": {"value": None, "error": None}}},
        {"name": "ours", "metrics": {"psnr": {"value": 19.8765, "error": 0.21}}},
    ],
}


@pytest.fixture
def told(bundle, change):
    """A bundle whose records say of which data it is."""
    for stage in Bundle(bundle).index["stages"]:
        words = {"dataset": DATASET, "command": "drivesim train data=store"}
        change(bundle / stage / "training.json", lambda record, words=words: record.update(words, train_seconds=90))
    return bundle


def card_of(bundle, tmp_path, *words: str) -> ModelCard:
    pack.main([f"bundle={bundle}", f"out={tmp_path / 'out'}", *words])
    return ModelCard.load(tmp_path / "out" / "README.md")


def row(card: ModelCard | str, name: str) -> list[str]:
    (line,) = [line for line in str(card).splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_its_front_matter_is_what_hugging_face_reads(told, tmp_path):
    card = card_of(told, tmp_path, "licence=Apache-2.0", "name='Town: a model'")
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["town"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("drivesim", "image-to-video")
    assert "synthetic-data" in card.data.tags
    assert card.text.strip().startswith("# Town: a model\n")


def test_it_says_what_the_records_say(told, tmp_path):
    card = card_of(told, tmp_path)
    assert row(card, "store (town)")[1:4] == ["40", "0.50", "CC0-1.0, CC-BY-4.0"]
    header, entry = Header.of(Bundle(told).weights("keyframes")), Bundle(told).index["stages"]["keyframes"]
    cells = row(card, "keyframes")
    assert cells[1:3] == [f"{header.parameters:,}", "fp32"]
    assert cells[4:6] == ["4", "1.5"]
    assert cells[6] == f"{Bundle(told).record('keyframes')['validation_loss']:.4f}"
    assert cells[7:] == ["autoencoder, image", entry["sha256"][:12]]
    assert "10.5 minutes of training in all" in card.text
    assert "Seed 0" in card.text
    assert "drivesim train data=store\n" in card.text
    assert "CC0-1.0 (30 clips), CC-BY-4.0 (10 clips)" in card.text
    assert "Not measured" in card.text


def test_it_does_not_make_up_what_is_not_recorded(bundle, tmp_path):
    (bundle / "image" / "training.json").unlink()
    card = card_of(bundle, tmp_path)
    assert card.data.license == "unknown"
    assert card.data.datasets is None
    assert row(card, "image")[4:7] == ["not recorded"] * 3
    assert row(card, "unknown")[-1] == "image"
    assert "not stated by who packed it" in card.text


def test_metrics_of_an_evaluation_stand_in_it(told, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    card = card_of(told, tmp_path, f"metrics={tmp_path / 'results.json'}")
    assert "| metric | better | real | ours |" in card.text
    assert row(card, "psnr") == ["psnr", "higher", "-", "19.88 ± 0.21"]
    assert "fvd" not in card.text
    assert "drivesim evaluate bundle=bundle real=held_out\n" in card.text
    assert "* few videos" in card.text


@pytest.mark.parametrize("text", ["{", "[]", '{"sets": 3, "metrics": {}}', '{"sets": [{"name": "a"}], "metrics": {}}'])
def test_metrics_that_are_none_are_told(bundle, tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"is no results\.json as `drivesim evaluate` writes it"):
        card_of(bundle, tmp_path, f"metrics={tmp_path / 'results.json'}")


def test_info_says_it_in_a_table(told, capsys):
    info.main([f"bundle={told}"])
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    stages = Bundle(told).index["stages"]
    assert [name for name in lines if name in stages] == list(stages)
    assert stages["image"]["sha256"][:12] in lines["image"]
    assert "autoencoder image" in lines["keyframes"]
    assert "64x128 at 30 fps by way of 32x64" in lines["makes"]
    assert "store (source town), 40 clips, 0.50 h" in text
    assert "sampler ddim, image_steps 20" in lines["sampler"]
    total = sum(Header.of(Bundle(told).weights(stage)).parameters for stage in stages)
    assert lines["together"].split()[1] == f"{total:,}"
    assert "weights: not stated; data: CC0-1.0 (30 clips), CC-BY-4.0 (10 clips)" in lines["licence"]


def test_info_tells_a_stage_that_was_trained_on_another(told, change, capsys):
    change(told / "model_index.json", lambda index: index["stages"]["keyframes"]["built_on"].update(image="0" * 64))
    info.main([f"bundle={told}"])
    assert "autoencoder image (another)" in capsys.readouterr().out


def test_info_tells_damage_in_one_line(told):
    (told / "image" / "model.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(UserError, match=r"image/model\.safetensors is no safetensors file, or not a whole one"):
        info.main([f"bundle={told}"])


def test_the_command_lists_its_verbs(capsys):
    main([])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == ["info", "verify", "pack", "unpack"]
    with pytest.raises(UserError, match="unknown verb 'show'; expected one of info, verify, pack, unpack first"):
        main(["show"])
    for verb in listed:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert "bundle " in capsys.readouterr().out
