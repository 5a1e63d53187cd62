"""A bundle on disk: what is saved comes back to the bit, and whatever is wrong with it is told in one line."""

import json
import pickle
import shutil
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drivesim.bundle import Bundle, from_dict, to_dict
from drivesim.errors import UserError


@dataclass
class Inner:
    width: int = 3


@dataclass
class NetConfig:
    inner: Inner = field(default_factory=Inner)
    outputs: int = 2

    def build(self) -> nn.Module:
        return nn.Linear(self.inner.width, self.outputs)


COMMON = {"data": {"height": 32, "width": 64, "key_fps": 1.875, "slots": 6}}


def save(bundle: Bundle, stage: str = "image", config: NetConfig | None = None) -> nn.Module:
    config = config or NetConfig()
    module = config.build()
    bundle.save(stage, {"model": to_dict(config)}, module.state_dict(), {"steps": 7}, COMMON)
    return module


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    made = Bundle(tmp_path / "bundle")
    save(made)
    return made


def weights(bundle: Bundle):
    return bundle.root / "image" / "model.safetensors"


def test_a_network_comes_back_to_the_bit(tmp_path):
    bundle = Bundle(tmp_path)
    saved = save(bundle, config=NetConfig(Inner(5), 4))
    loaded = Bundle(tmp_path).require().network("image", NetConfig)
    assert torch.equal(loaded.weight, saved.weight)
    assert loaded.weight.shape == (4, 5)
    assert bundle.data == COMMON["data"]
    assert json.loads((tmp_path / "image" / "training.json").read_text()) == {"steps": 7}


def test_saving_a_stage_again_replaces_it_and_leaves_the_others(bundle):
    other = save(bundle, "upsample")
    again = save(bundle)
    assert torch.equal(bundle.network("image", NetConfig).weight, again.weight)
    assert torch.equal(bundle.network("upsample", NetConfig).weight, other.weight)
    assert sorted(p.name for p in bundle.root.iterdir()) == ["image", "model_index.json", "upsample"]


def test_a_stage_is_stale_once_one_that_it_was_trained_on_is_another(bundle):
    save(bundle, "keyframes")
    save(bundle, "upsample")
    assert bundle.stale("keyframes") is None
    save(bundle)
    assert bundle.stale("keyframes") == "image"
    assert bundle.stale("image") is bundle.stale("upsample") is None
    with pytest.raises(UserError, match=r"keyframes was trained on an earlier image.*train stage=keyframes"):
        bundle.network("keyframes", NetConfig)


def test_a_bundle_without_records_of_what_its_stages_were_trained_on_loads(bundle):
    other = save(bundle, "keyframes")
    change_index(bundle, lambda index: [stage.pop("built_on") for stage in index["stages"].values()])
    save(bundle)
    assert torch.equal(bundle.network("keyframes", NetConfig).weight, other.weight)


def test_weights_in_channels_last_memory_come_back(tmp_path):
    module = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    Bundle(tmp_path).save("image", {}, module.state_dict(), {}, COMMON)
    other = nn.Conv2d(4, 4, 3)
    Bundle(tmp_path).load("image", other)
    assert_close(other.weight, module.weight)


def test_temporal_layers_alone_are_a_file_of_another_name(bundle):
    module = NetConfig().build()
    bundle.save("keyframes", {"model": to_dict(NetConfig()), "sites": {}}, module.state_dict(), {}, COMMON)
    assert bundle.weights("keyframes").name == "temporal.safetensors"
    assert torch.equal(bundle.network("keyframes", NetConfig).weight, module.weight)
    save(bundle, "keyframes")  # as older bundles have it
    assert bundle.weights("keyframes").name == "model.safetensors"


def test_a_folder_that_a_stage_brings_with_it_is_copied_and_tied_to_its_hash(bundle, tmp_path):
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "vocab.json").write_text("{}")
    module = NetConfig().build()
    bundle.save("image", {"model": to_dict(NetConfig())}, module.state_dict(), {}, COMMON, [source])
    (source / "vocab.json").write_text("changed")
    assert (bundle.folder("image", "tokenizer") / "vocab.json").read_text() == "{}"
    assert bundle.has_folder("image", "tokenizer")
    assert not bundle.has_folder("image", "text_encoder")
    with pytest.raises(UserError, match="stage image has no text_encoder"):
        bundle.folder("image", "text_encoder")
    (bundle.root / "image" / "tokenizer" / "more.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer is missing, damaged or was changed"):
        bundle.folder("image", "tokenizer")


def test_nothing_in_a_bundle_is_a_pickle(bundle):
    suffixes = {path.suffix for path in bundle.root.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def refuses(bundle: Bundle, *words: str) -> None:
    """Loading raises a UserError in one line that holds all of `words`."""
    with pytest.raises(UserError) as caught:
        bundle.require().network("image", NetConfig)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_stage_is_told_with_those_there_are(bundle):
    with pytest.raises(UserError, match=r"no stage 'decoder' \(it has: image\).*stage=decoder"):
        bundle.config("decoder")


def test_no_bundle_is_told(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        Bundle(tmp_path / "nowhere").require()
    with pytest.raises(UserError, match=r"no model_index\.json"):
        Bundle(tmp_path).require()


def test_a_flipped_bit_is_found(bundle):
    data = bytearray(weights(bundle).read_bytes())
    data[-1] ^= 1
    weights(bundle).write_bytes(data)
    refuses(bundle, str(weights(bundle)), "damaged")


def test_a_truncated_file_is_found(bundle):
    weights(bundle).write_bytes(weights(bundle).read_bytes()[:-4])
    refuses(bundle, str(weights(bundle)), "damaged")


def test_a_missing_file_is_found(bundle):
    weights(bundle).unlink()
    refuses(bundle, str(weights(bundle)), "missing")


def rehash(bundle: Bundle) -> None:
    """Make the index agree with what lies there, as someone who replaces a file on purpose might."""
    from drivesim.bundle import sha256

    change_index(bundle, lambda index: index["stages"]["image"].update(sha256=sha256(weights(bundle))))


def change_index(bundle: Bundle, change) -> None:
    path = bundle.root / "model_index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_a_pickle_under_the_name_is_never_unpickled(bundle, tmp_path):
    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return open, (str(trace), "w")

    torch.save({"weight": torch.ones(2, 3)}, weights(bundle))
    refuses(bundle, "damaged")
    rehash(bundle)
    refuses(bundle, str(weights(bundle)))
    weights(bundle).write_bytes(pickle.dumps(Evil()))
    rehash(bundle)
    refuses(bundle, str(weights(bundle)))
    assert not trace.exists()


@pytest.mark.parametrize("change", [{"outputs": 5}, {"inner": {"width": 4}}])
def test_weights_of_another_configuration_are_refused(bundle, change):
    path = bundle.root / "image" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({"model": config["model"] | change}))
    refuses(bundle, str(weights(bundle)), "does not fit")


def test_missing_and_unknown_weights_are_told_by_name(bundle):
    other = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"4 weights missing or unknown, the first is 0\."):
        bundle.load("image", other)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["not readable"]),
        ("{", ["not readable"]),
        ("\x00\xff", ["not readable"]),
        ("[]", ["format list"]),
        ("{}", ["format None"]),
        ('{"format": 99}', ["format 99", "reads 1"]),
        ('{"format": 1, "stages": []}', ["damaged"]),
        ('{"format": 1, "stages": {"image": {}}}', ["damaged"]),
        ('{"format": 1, "stages": {}, "data": 3}', ["damaged"]),
    ],
)
def test_a_damaged_index_is_told_with_its_name(bundle, text, words):
    (bundle.root / "model_index.json").write_text(text)
    refuses(bundle, "model_index.json", *words)


@pytest.mark.parametrize("value", [None, "wide", 0, -3, [1]])
@pytest.mark.parametrize("name", COMMON["data"])
def test_sizes_that_make_no_sense_are_told(bundle, name, value):
    change_index(bundle, lambda index: index["data"].update({name: value}))
    with pytest.raises(UserError, match=rf"model_index.json: data.{name} is"):
        _ = bundle.data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not readable"]),
        ("[1]", ["list"]),
        ("{}", ["model: None stands"]),
        ('{"model": 3}', ["model: 3 stands"]),
        ('{"model": {"depth": 3}}', ["no field 'depth'", "newer version"]),
        ('{"model": {"inner": 3}}', ["Inner"]),
        ('{"model": {"outputs": "many"}}', ["describes no network"]),
        ('{"model": {"outputs": -1}}', ["describes no network"]),
    ],
)
def test_a_damaged_config_is_told_with_its_name(bundle, text, words):
    (bundle.root / "image" / "config.json").write_text(text)
    refuses(bundle, str(bundle.root / "image" / "config.json"), *words)


def test_a_lost_config_is_told(bundle):
    shutil.rmtree(bundle.root / "image")
    refuses(bundle, "config.json", "not readable")


def test_a_config_of_an_older_version_keeps_the_defaults_of_new_fields():
    assert from_dict(NetConfig, {"inner": {}}) == NetConfig()
    assert from_dict(NetConfig, to_dict(NetConfig(Inner(9), 1))) == NetConfig(Inner(9), 1)
