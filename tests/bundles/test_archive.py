"""Bundles as single files: what goes in comes out, and nothing gets out of the folder."""

import io
import os
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from drivesim.bundle import Bundle
from drivesim.bundles import archive, info, pack, unpack, verify
from drivesim.errors import UserError
from drivesim.generation.pipeline import DrivingPipeline


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_a_bundle_comes_out_as_it_went_in(golden, packed_once, tmp_path, capsys, suffix):
    file = tmp_path / f"bundle{suffix}"
    pack.main([f"bundle={golden}", f"out={file}", "licence=CC0-1.0"])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    unpack.main([f"bundle={file}", f"out={tmp_path / 'out'}"])
    assert contents(tmp_path / "out") == contents(packed_once)
    verify.main([f"bundle={file}"])
    info.main([f"bundle={file}"])
    printed = capsys.readouterr().out
    assert f"{file} is whole: 7 stages" in printed
    assert "keyframes" in printed


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_the_same_folder_is_the_same_bytes(tmp_path, suffix):
    files = []
    for when in (1, 2_000_000_000):
        folder = tmp_path / str(when)
        folder.mkdir()
        (folder / "b").write_bytes(b"2")
        (folder / "a").write_bytes(b"1")
        os.utime(folder / "a", (when, when))
        archive.write_archive(folder, tmp_path / f"{when}{suffix}")
        files.append((tmp_path / f"{when}{suffix}").read_bytes())
    assert files[0] == files[1]


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as file:
        for member in members:
            member.size = 4 if member.isreg() else 0
            file.addfile(member, io.BytesIO(b"data") if member.isreg() else None)
    return path


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


OUT = ["../evil", "/tmp/evil", "a/../../evil", "a//b", "a\\..\\evil", "C:evil", "..", "a/."]


@pytest.mark.parametrize("name", OUT)
def test_a_path_out_of_a_tar_is_refused_and_nothing_is_written(tmp_path, name):
    path = tar_of(tmp_path / "x.tar", tar_member("good"), tar_member(name))
    refuses(path, "a path out of its folder", tmp_path)


@pytest.mark.parametrize("name", OUT)
def test_a_path_out_of_a_zip_is_refused_and_nothing_is_written(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("good", "data")
        file.writestr(zipfile.ZipInfo(name), "data")
    refuses(tmp_path / "x.zip", "a path out of its folder", tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    refuses(tar_of(tmp_path / "x.tar", tar_member("a", kind, "/etc/passwd")), "no plain file", tmp_path)


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        link = zipfile.ZipInfo("a")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    refuses(tmp_path / "x.zip", "no plain file", tmp_path)


def test_pickles_and_names_given_twice_are_refused(tmp_path):
    refuses(tar_of(tmp_path / "x.tar", tar_member("image/model.PT")), "a pickle", tmp_path)
    refuses(tar_of(tmp_path / "x.tar", tar_member("a"), tar_member("A")), "'A' twice", tmp_path)


def test_more_than_there_is_room_for_is_refused(tmp_path, monkeypatch):
    path = tar_of(tmp_path / "x.tar", tar_member("a"))
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3))
    refuses(path, "holds 0 MiB, there are 0 free", tmp_path)


def refuses(path: Path, words: str, tmp_path: Path) -> None:
    """Unpacking tells `words` in one line, and leaves nothing behind anywhere."""
    before = {each.name for each in tmp_path.iterdir()}
    with pytest.raises(UserError, match=words) as caught:
        unpack.main([f"bundle={path}", f"out={tmp_path / 'out'}"])
    assert "\n" not in str(caught.value)
    assert {each.name for each in tmp_path.iterdir()} == before
    assert not Path("/tmp/evil").exists()


@pytest.fixture(scope="module")
def archives(golden, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    for suffix in archive.ARCHIVES:
        pack.main([f"bundle={golden}", f"out={folder / f'x{suffix}'}"])
    return folder


@pytest.mark.parametrize("suffix", archive.ARCHIVES)
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_archive_is_a_line_and_leaves_nothing(archives, tmp_path, suffix, seed):
    data = bytearray((archives / f"x{suffix}").read_bytes())
    rng = np.random.default_rng(seed)
    if seed % 2:
        data = data[: rng.integers(1, len(data) - 2000)]
    else:
        for at in rng.integers(0, len(data), 2000):
            data[at] ^= 0xFF
    (tmp_path / f"x{suffix}").write_bytes(data)
    refuses(tmp_path / f"x{suffix}", r"x\.(tar|zip)", tmp_path)


def test_a_bundle_that_is_an_archive_is_told_to_be_unpacked(archives):
    with pytest.raises(UserError, match=r"x\.tar is an archive; unpack it first: `drivesim bundle unpack bundle="):
        DrivingPipeline.from_pretrained(archives / "x.tar")


def test_what_is_no_bundle_is_not_unpacked(tmp_path):
    refuses(tar_of(tmp_path / "x.tar", tar_member("a")), r"no model_index\.json", tmp_path)
    (tmp_path / "x.txt").write_text("words")
    refuses(tmp_path / "x.txt", r"no file that ends in \.tar or \.zip", tmp_path)


def test_what_stands_in_the_place_stays_unless_it_was_packed_and_may_go(archives, golden, packed, tmp_path):
    with pytest.raises(UserError, match="add overwrite=true"):
        unpack.main([f"bundle={archives / 'x.tar'}", f"out={packed}"])
    unpack.main([f"bundle={archives / 'x.tar'}", f"out={packed}", "overwrite=true"])
    assert "licence" not in Bundle(packed).index
    with pytest.raises(UserError, match="holds other files"):
        unpack.main([f"bundle={archives / 'x.tar'}", f"out={golden}", "overwrite=true"])
