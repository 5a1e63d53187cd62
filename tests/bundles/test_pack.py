"""A packed bundle is what it was made from, clean, whole, and nothing else."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file
from safetensors.torch import load_file

from drivesim.bundle import Bundle
from drivesim.bundles import pack
from drivesim.bundles.headers import Headers
from drivesim.bundles.verify import problems
from drivesim.errors import UserError
from drivesim.generation.pipeline import DrivingPipeline

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("alike")  # frames are compared


def packs(*words: str) -> None:
    pack.main(list(words))


def frames(root: Path) -> torch.Tensor:
    pipeline = DrivingPipeline.from_pretrained(root)
    return torch.stack(list(islice(pipeline(start=None, layout=None, seconds=1, seed=3), 3))).float()


def retrain(root: Path, stage: str, rehash) -> None:
    """Other weights, as training anew would leave."""
    path = Bundle(root).weights(stage)
    save_file({name: np.asarray(array * np.float32(0.5)) for name, array in load_arrays(path).items()}, path)
    rehash(root, stage)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_makes_the_same_video(golden, packed_once):
    assert torch.equal(frames(packed_once), frames(golden))


def test_packing_again_gives_the_same_bytes(golden, packed_once, tmp_path):
    packs(f"bundle={golden}", f"out={tmp_path / 'bundle'}", "licence=CC0-1.0")
    assert files(tmp_path / "bundle") == files(packed_once)
    packs(f"bundle={packed_once}", f"out={tmp_path / 'again' / 'bundle'}")  # of what is packed, licence and all
    assert files(tmp_path / "again" / "bundle") == files(packed_once)


def test_every_file_but_the_card_is_in_its_checksums(packed_once):
    lines = (packed_once / "CHECKSUMS").read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    assert set(listed) == set(files(packed_once)) - {"CHECKSUMS", "README.md"}
    for name, data in files(packed_once).items():
        assert listed.get(name, "") in (hashlib.sha256(data).hexdigest(), "")


def test_only_what_is_needed_is_taken(bundle, tmp_path, capsys):
    (bundle / ".image.partial").mkdir()
    (bundle / ".image.partial" / "model.safetensors").write_bytes(b"half")
    (bundle / "notes.txt").write_text("secret")
    (bundle / "image" / "last.ckpt").write_bytes(b"pickle")
    packs(f"bundle={bundle}", f"out={tmp_path / 'out'}")
    assert f"left out: {bundle / 'image' / 'last.ckpt'}, a pickle" in capsys.readouterr().err
    kept = {Path(name).name for name in files(tmp_path / "out")}
    known = {"model_index.json", "config.json", "training.json", "model.safetensors", "temporal.safetensors"}
    assert kept == known | {"README.md", "CHECKSUMS"}


def test_no_folder_of_the_machine_is_in_it(bundle, tmp_path, change):
    change(bundle / "image" / "training.json", lambda record: record.update(
        data="/home/me/secret/town", command="drivesim train data=/home/me/secret/town out=~/secret/run"))  # fmt: skip
    change(bundle / "image" / "training.json", lambda record: record["stage"].update(perceptual="../secret/vgg.bin"))
    packs(f"bundle={bundle}", f"out={tmp_path / 'out'}")
    for name, data in files(tmp_path / "out").items():
        assert b"secret" not in data, name
    assert Bundle(tmp_path / "out").record("image")["command"] == "drivesim train data=town out=run"
    assert "drivesim train data=town out=run" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_half_as_large_and_rounds_alone(golden, tmp_path, dtype):
    out = tmp_path / "out"
    packs(f"bundle={golden}", f"out={out}", f"dtype={dtype}")
    assert list(problems(Headers(out))) == []
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for stage in Bundle(golden).index["stages"]:
        before, after = (load_file(Bundle(root).weights(stage)) for root in (golden, out))
        for name, tensor in before.items():
            assert torch.equal(after[name], tensor.to(kind) if tensor.dim() > 1 else tensor)
    sizes = [sum(path.stat().st_size for path in root.rglob("*.safetensors")) for root in (golden, out)]
    assert sizes[1] < 0.6 * sizes[0]
    assert (frames(out) - frames(golden)).abs().mean() < 3


def test_numbers_too_large_for_fp16_are_told(bundle, tmp_path, rehash):
    path = bundle / "upsample" / "model.safetensors"
    weights = load_arrays(path)
    weights["unet.conv_in.weight"] = weights["unet.conv_in.weight"] + np.float32(1e5)
    save_file(weights, path)
    rehash(bundle, "upsample")
    shutil.rmtree(bundle / "upsample_temporal")  # which was trained on another now, but comes later
    with pytest.raises(UserError, match=r"was trained on another upsample"):
        packs(f"bundle={bundle}", f"out={tmp_path / 'out'}", "dtype=fp16")
    index = json.loads((bundle / "model_index.json").read_text())
    del index["stages"]["upsample_temporal"]
    (bundle / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"unet.conv_in.weight has numbers of up to 100000, too large for fp16; use bf16"
    ):
        packs(f"bundle={bundle}", f"out={tmp_path / 'out'}", "dtype=fp16")
    assert not (tmp_path / "out").exists()


def test_a_stage_of_another_bundle_on_the_same_image_network_takes_its_place(golden, bundle, tmp_path, rehash):
    retrain(bundle, "keyframes", rehash)
    packs(f"bundle={golden}", f"stages.keyframes={bundle}", f"out={tmp_path / 'out'}")
    out = Bundle(tmp_path / "out")
    assert out.sha("keyframes") == Bundle(bundle).sha("keyframes") != Bundle(golden).sha("keyframes")
    assert out.sha("interpolate") == Bundle(golden).sha("interpolate")
    assert list(problems(Headers(out.root))) == []


def test_a_stage_in_half_precision_takes_the_place_of_what_it_was_rounded_from(golden, bundle, tmp_path, rehash):
    packs(f"bundle={golden}", f"out={tmp_path / 'half'}", "dtype=bf16")
    packs(f"bundle={golden}", f"stages.image={tmp_path / 'half'}", f"out={tmp_path / 'out'}")
    assert list(problems(Headers(tmp_path / "out"))) == []
    retrain(bundle, "keyframes", rehash)
    packs(f"bundle={tmp_path / 'half'}", f"stages.keyframes={bundle}", f"out={tmp_path / 'other'}")


def test_a_stage_on_another_image_network_is_refused(golden, bundle, tmp_path, rehash):
    retrain(bundle, "image", rehash)
    for words in ([f"bundle={golden}", f"stages.image={bundle}"], [f"bundle={bundle}", f"stages.image={golden}"]):
        out = tmp_path / words[0][-8:].replace("/", "_")
        if words[0].endswith(str(bundle)):  # puts right what was wrong with it
            packs(*words, f"out={out}")
            continue
        with pytest.raises(
            UserError, match=r"stage keyframes of .* was trained on another image than that of .*take both"
        ):
            packs(*words, f"out={out}")
        assert not out.exists()


def test_a_bundle_that_is_out_of_date_itself_is_refused(bundle, tmp_path, rehash):
    retrain(bundle, "autoencoder", rehash)
    with pytest.raises(UserError, match=r"another autoencoder .*run `drivesim train`"):
        packs(f"bundle={bundle}", f"out={tmp_path / 'out'}")


def test_a_stage_of_other_sizes_is_refused_but_for_the_upsampler(golden, bundle, tmp_path, change):
    change(bundle / "model_index.json", lambda index: index["data"].update(key_fps=2.0))
    with pytest.raises(UserError, match=r"stage keyframes of .* with data.key_fps 2.0, .* with 1.875"):
        packs(f"bundle={golden}", f"stages.keyframes={bundle}", f"out={tmp_path / 'out'}")
    words = [f"stages.{stage}={bundle}" for stage in ("upsample", "upsample_temporal")]
    packs(f"bundle={golden}", *words, f"out={tmp_path / 'out'}")


def test_where_no_record_says_whether_a_stage_fits_it_is_told(golden, bundle, tmp_path, change, capsys):
    change(bundle / "model_index.json", lambda index: index["stages"]["keyframes"].pop("built_on"))
    packs(f"bundle={golden}", f"stages.keyframes={bundle}", f"out={tmp_path / 'out'}")
    assert "keyframes: it is not recorded what it was trained on" in capsys.readouterr().err
    packs(f"bundle={bundle}", f"out={tmp_path / 'own'}")
    assert "not recorded" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dtype=int8"], "dtype=int8, expected one of fp16, bf16"),
        (["stages.keyframe=."], "has no stage 'keyframe'; it has autoencoder, image"),
        (["stages.keyframes=."], r"has no model_index\.json"),
        (["metrics=nowhere.json"], "metrics=nowhere.json is not readable"),
        (["bundle=nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_told_and_nothing_is_made(golden, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        packs(f"bundle={golden}", f"out={tmp_path / 'out'}", *words)
    assert list(tmp_path.iterdir()) == []


def test_what_was_trained_is_never_replaced(golden, bundle, packed):
    with pytest.raises(UserError, match="holds other files"):
        packs(f"bundle={golden}", f"out={bundle}", "overwrite=true")
    with pytest.raises(UserError, match="add overwrite=true"):
        packs(f"bundle={golden}", f"out={packed}")
    packs(f"bundle={packed}", f"out={packed}", "overwrite=true", "licence=mit")
    assert Bundle(packed).require().index["licence"] == "mit"


def test_a_damaged_stage_is_not_packed(bundle, tmp_path):
    path = bundle / "decoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"decoder/model\.safetensors is damaged"):
        packs(f"bundle={bundle}", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_weights_for_which_there_is_no_room_are_told(golden, tmp_path):
    limited = (
        "import resource, signal, sys; from pathlib import Path; from drivesim.bundles.copy import copy_weights\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))\n"
        "copy_weights(Path(sys.argv[1]), Path(sys.argv[2]), 'bf16')"
    )
    words = [str(golden / "image" / "model.safetensors"), str(tmp_path / "model.safetensors")]
    done = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True, cwd=ROOT)
    assert re.search(r"UserError: .*model\.safetensors could not be written .*too large", done.stderr), done.stderr
    assert list(tmp_path.glob("*.safetensors")) == []


def test_training_into_a_packed_bundle_makes_it_one_of_training_again(packed):
    root = Bundle(packed)
    weights = load_file(root.weights("upsample_temporal"))
    common = {key: value for key, value in root.index.items() if key not in ("format", "stages")}
    root.save("upsample_temporal", root.config("upsample_temporal"), weights, {"steps": 1}, common)
    assert not (packed / "CHECKSUMS").exists()
    assert list(problems(Headers(packed))) == []
