"""Whatever is wrong with a bundle is told in one line by `verify`, and in the same words by what loads it."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from drivesim.bundles import verify
from drivesim.bundles.headers import Headers
from drivesim.errors import UserError
from drivesim.generation.pipeline import DrivingPipeline

IMAGE = Path("image") / "model.safetensors"


def said(capsys, root) -> list[str]:
    """The lines of a verification that finds something; then it fails in one line, too."""
    with pytest.raises(UserError, match="not fit for use") as caught:
        verify.main([f"bundle={root}"])
    assert "\n" not in str(caught.value)
    return capsys.readouterr().out.splitlines()


def refused(root, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        DrivingPipeline.from_pretrained(root)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def flip(root: Path) -> None:
    data = bytearray((root / IMAGE).read_bytes())
    data[-1] ^= 1
    (root / IMAGE).write_bytes(data)


def cut(root: Path) -> None:
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:-4])


def lose(root: Path) -> None:
    (root / IMAGE).unlink()


def lose_config(root: Path) -> None:
    (root / "image" / "config.json").unlink()


def change_config(root: Path) -> None:
    path = root / "keyframes" / "config.json"
    path.write_text(path.read_text().replace('"context_noise": 0.', '"context_noise": 1.'))


def change_sampler(root: Path) -> None:
    path = root / "model_index.json"
    path.write_text(path.read_text().replace('"keyframe_steps": 16', '"keyframe_steps": 1'))


def link_out(root: Path) -> None:
    outside = shutil.copy(root / IMAGE, root.parent / "elsewhere.safetensors")
    (root / IMAGE).unlink()
    (root / IMAGE).symlink_to(outside)


def link_folder_out(root: Path) -> None:
    shutil.move(root / "image", root.parent / "image")
    (root / "image").symlink_to(os.path.relpath(root.parent / "image", root))


def add_pickle(root: Path) -> None:
    (root / "image" / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def add_checkpoint(root: Path) -> None:
    (root / "last.CKPT").write_bytes(pickle.dumps({}))


def name_path_out(root: Path) -> None:
    index = json.loads((root / "model_index.json").read_text())
    index["stages"]["../image"] = index["stages"].pop("image")
    (root / "model_index.json").write_text(json.dumps(index))


def name_folder_out(root: Path) -> None:
    index = json.loads((root / "model_index.json").read_text())
    index["stages"]["image"]["folders"] = {"/etc": "0" * 64}
    (root / "model_index.json").write_text(json.dumps(index))


def list_path_out(root: Path) -> None:
    path = root / "CHECKSUMS"
    path.write_text(f"{'0' * 64}  ../../secret\n" + path.read_text())


def garble_list(root: Path) -> None:
    (root / "CHECKSUMS").write_text("# sums\n")


DAMAGE = {
    flip: ["image/model.safetensors", "damaged or was changed"],
    cut: ["image/model.safetensors", "damaged"],
    lose: ["image/model.safetensors", "missing"],
    lose_config: ["image/config.json", "missing"],
    change_config: ["keyframes/config.json", "damaged or was changed", "CHECKSUMS"],
    change_sampler: ["model_index.json", "damaged or was changed", "CHECKSUMS"],
    link_out: ["image/model.safetensors", "is a link to", "outside the bundle"],
    link_folder_out: ["image", "is a link to ../image, outside the bundle"],
    add_pickle: ["image/pytorch_model.bin is a pickle"],
    add_checkpoint: ["last.CKPT is a pickle"],
    name_path_out: ["model_index.json names '../image', a path out of its folder"],
    name_folder_out: ["model_index.json names '/etc', a path out of its folder"],
    list_path_out: ["CHECKSUMS names '../../secret', a path out of its folder"],
    garble_list: ["CHECKSUMS: line 1 is no SHA-256 and name"],
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.items(), ids=[damage.__name__ for damage in DAMAGE])
def test_what_is_wrong_is_one_line_and_stops_what_loads_the_bundle(packed, capsys, damage, words):
    damage(packed)
    (line,) = said(capsys, packed)
    assert line.startswith(str(packed))
    assert all(word in line for word in words), line
    refused(packed, *[word for word in words if damage not in (flip, cut, lose) or "/" in word])


UNPACKED = (flip, cut, lose, lose_config, link_out, link_folder_out, add_pickle, name_path_out, name_folder_out)


@pytest.mark.parametrize("damage", UNPACKED, ids=lambda damage: damage.__name__)
def test_so_it_is_with_one_that_was_never_packed(bundle, capsys, damage):
    damage(bundle)
    assert said(capsys, bundle)[0].startswith(str(bundle))
    refused(bundle)


def test_a_whole_one_is_told_whole(golden, packed, capsys):
    verify.main([f"bundle={packed}"])
    assert re.search(r"packed is whole: 7 stages, \d\.\d MiB\n$", capsys.readouterr().out)
    verify.main([f"bundle={golden}"])
    assert "no CHECKSUMS" in capsys.readouterr().out


def test_links_within_a_bundle_are_none_of_its_faults(packed):
    (packed / IMAGE).rename(packed / "image" / "weights.safetensors")
    (packed / IMAGE).symlink_to("weights.safetensors")
    verify.main([f"bundle={packed}"])
    DrivingPipeline.from_pretrained(packed)


def test_the_model_card_may_be_written_on_and_other_files_are_named(packed, capsys):
    (packed / "README.md").write_text("# Better words\n")
    (packed / "sample.mp4").write_bytes(b"film")
    (packed / ".gitattributes").write_text("")
    verify.main([f"bundle={packed}"])
    assert "not in CHECKSUMS, so not looked into: sample.mp4\n" in capsys.readouterr().out
    DrivingPipeline.from_pretrained(packed)


def test_every_file_that_is_damaged_is_named_once(packed, capsys):
    flip(packed)
    change_config(packed)
    lines = said(capsys, packed)
    assert [re.search(r"(\w+/[\w.]+) is damaged", line)[1] for line in lines] == [
        "image/model.safetensors",
        "keyframes/config.json",
    ]


def test_a_pickle_under_the_name_of_weights_is_never_unpickled(bundle, capsys, rehash, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "trace"), "w")

    (bundle / IMAGE).write_bytes(pickle.dumps(Evil()))
    rehash(bundle, "image")
    lines = said(capsys, bundle)
    assert f"{bundle / IMAGE} is no safetensors file" in lines[0]
    refused(bundle, str(bundle / IMAGE))
    assert not (tmp_path / "trace").exists()


def test_weights_that_do_not_fit_their_config_are_told_without_being_read(bundle, capsys, change, rehash):
    change(bundle / "upsample" / "config.json", lambda config: config["model"].update(block_out_channels=[8, 16]))
    lines = said(capsys, bundle)
    assert lines[0].startswith(str(bundle / "upsample" / "model.safetensors"))
    assert "does not fit its config.json" in lines[0]
    refused(bundle, *lines[0].split(":")[:1])


def test_a_stage_on_another_than_it_was_trained_on_is_told(bundle, capsys, rehash):
    weights = load_file(bundle / IMAGE)
    save_file({name: np.asarray(array * 2) for name, array in weights.items()}, bundle / IMAGE)
    rehash(bundle, "image")
    lines = said(capsys, bundle)
    assert [re.search(r"stage (\w+) was trained on an earlier image", line)[1] for line in lines] == [
        "keyframes",
        "interpolate",
    ]
    refused(bundle, "keyframes was trained on an earlier image")


def test_a_stage_of_another_noise_schedule_is_told(bundle, capsys, change):
    change(bundle / "keyframes" / "config.json", lambda config: config["schedule"].update(beta="linear"))
    (line,) = said(capsys, bundle)
    assert "stage keyframes was trained with another noise schedule" in line
    refused(bundle, "another noise schedule")


def test_one_that_training_has_not_finished_is_told(bundle, capsys, change):
    change(bundle / "model_index.json", lambda index: index["stages"].pop("decoder"))
    (line,) = said(capsys, bundle)
    assert "no stage 'decoder'" in line
    refused(bundle, "no stage 'decoder'")


@pytest.mark.parametrize("words", [["nowhere"], ["."]])
def test_what_is_no_bundle_is_told(tmp_path, capsys, words):
    (line,) = said(capsys, tmp_path / words[0])
    assert "not a folder" in line or "no model_index.json" in line


@pytest.mark.parametrize("seed", range(12))
def test_whatever_stands_in_a_config_is_a_line_and_never_a_traceback(bundle, seed):
    rng = np.random.default_rng(seed)
    path = sorted(bundle.glob("*/config.json"))[seed % 7]
    config = json.loads(path.read_text())
    where = config
    while isinstance(where, dict) and where:
        key = list(where)[rng.integers(len(where))]
        if not isinstance(where[key], dict) or not where[key] or rng.random() < 0.2:
            where[key] = [None, -1, 0, "x", [], {}, 1e9, [[1]]][rng.integers(8)]
            break
        where = where[key]
    path.write_text(json.dumps(config))
    wrong = list(verify.problems(Headers(bundle)))
    if wrong:
        assert "\n" not in wrong[0]
        refused(bundle)
    else:
        DrivingPipeline.from_pretrained(bundle)
