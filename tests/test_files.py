"""Folders that are whole or absent."""

import pytest

from drivesim.errors import UserError
from drivesim.files import atomic_folder, remove_leftovers


def write(folder, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text(text)
    (folder / "marker").write_text("")


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with atomic_folder(out, "marker") as folder:
        write(folder, "text")
        assert not out.exists()
    assert (out / "sub" / "file").read_text() == "text"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def fail_while_writing(out, failure: type[BaseException]) -> None:
    with atomic_folder(out, "marker", overwrite=True) as folder:
        write(folder, "new")
        raise failure


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_after_a_failure_everything_is_as_it_was(tmp_path, failure):
    out = tmp_path / "out"
    with atomic_folder(out, "marker") as folder:
        write(folder, "old")
    with pytest.raises(failure):
        fail_while_writing(out, failure)
    assert (out / "sub" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_goes_away(tmp_path):
    left = tmp_path / ".out.partial"
    left.mkdir()
    write(left, "half")
    with atomic_folder(tmp_path / "out", "marker") as folder:
        assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_processes_do_not_write_one_folder(tmp_path):
    with atomic_folder(tmp_path / "out", "marker") as folder:
        write(folder, "first")
        with pytest.raises(UserError, match="another process is writing"), atomic_folder(tmp_path / "out", "marker"):
            pass
        assert (folder / "sub" / "file").exists()
    assert (tmp_path / "out" / "sub" / "file").read_text() == "first"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"), atomic_folder(tmp_path / "out", "marker"):
        pass


def test_what_a_killed_process_left_beside_a_file_is_removed_and_nothing_else(tmp_path):
    mine = [".a [1].77.partial.mp4", ".a [1].123456.partial.mp4"]
    others = ["a [1].mp4", ".a [1].77.partial.png", ".b.77.partial.mp4", "a [1].partial.mp4", ".a 1.77.partial.mp4"]
    for name in (*mine, *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a [1].mp4")
    assert {path.name for path in tmp_path.iterdir()} == set(others)
