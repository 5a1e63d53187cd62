"""`drivesim prepare` from the outside: whole stores, killed and resumed ones, refusals."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Timer

import pytest

from data_prep import prepare
from data_prep.prepare import main
from data_prep.shards import members
from data_prep.source import Unit
from data_prep.splits import split_routes
from data_prep.units import do_unit, record_path
from data_prep.videos import VideosConfig, VideosSource
from drivesim.data.store import ClipStore
from drivesim.data.video import iterate
from drivesim.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = ["videos.height=32", "videos.width=64", "videos.fps=15", "videos.clip_seconds=2", "videos.min_seconds=0.5"]
TABLES = ("index.parquet", "frames.parquet", "boxes.parquet", "store.json")


def words(root, out, *more):
    return ["source=videos", f"root={root}", f"out={out}", "workers=1", *SMALL, *more]


@pytest.fixture
def films(tmp_path, make_video, make_scene):
    """Two drives in three files, of which one has a cut, and one file that is none."""
    root = tmp_path / "films"
    make_video(root / "day_1.mp4", make_scene(1, 40) + make_scene(2, 20))
    make_video(root / "day_2.mp4", make_scene(3, 30))
    make_video(root / "rain.mp4", make_scene(4, 34))
    (root / "text.mp4").write_text("no video")
    return root


def made(films, tmp_path):
    """A store of `films`."""
    main(words(films, tmp_path / "made"))
    return tmp_path / "made"


def test_a_store_of_a_version_that_had_fewer_options_is_gone_on_with_unless_the_new_ones_say_otherwise(
    films, tmp_path, capsys
):
    out = made(films, tmp_path)
    record = json.loads((out / "prepare.json").read_text())
    del record["config"]["videos"]["gap_seconds"]
    (out / "prepare.json").write_text(json.dumps(record))
    main(words(films, out))
    assert "whole already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"was prepared with videos.gap_seconds=1.0 \(now 2.0\)"):
        main(words(films, out, "videos.gap_seconds=2"))


def test_a_folder_of_videos_becomes_a_store(films, tmp_path, capsys):
    out = tmp_path / "store"
    main(words(films, out))
    store = ClipStore(out)
    assert dict(store.index["frames"]) == {
        "day_1_0000": 30,
        "day_1_0001": 10,
        "day_1_0002": 20,
        "day_2_0000": 30,
        "rain_0000": 30,
    }
    assert store.index.groupby("route")["split"].nunique().max() == 1
    assert set(store.index["split"]) == {"train", "val"}
    dropped = {piece["unit"]: piece["reason"] for piece in json.loads((out / "dropped.json").read_text())}
    assert set(dropped) == {"rain_0001", "text"}
    said = capsys.readouterr().out
    assert "5 clips, 120 frames, 8.0 s" in said
    assert "text.mp4 is not a readable video" in said
    assert "next: drivesim train" in said
    assert not (out / ".lock").exists()

    main(words(films, out))  # again: nothing to do
    assert "whole already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"prepared with videos.fps=15.0 \(now 10.0\).*overwrite=true"):
        main(words(films, out, "videos.fps=10"))
    (films / "more.mp4").touch()
    with pytest.raises(UserError, match="begun with other inputs"):
        main(words(films, out))


def test_killed_and_run_again_gives_the_bytes_of_an_unbroken_run(films, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", "import sys; from data_prep.prepare import main; main(sys.argv[1:])"]
    process = subprocess.Popen(
        [*command, *words(films, killed)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first = killed / "parts" / "day_1_0000.index.parquet"
    deadline = time.monotonic() + 120
    while not first.exists():
        assert process.poll() is None, "the preparation ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "store.json").exists()
    made = first.stat().st_mtime_ns
    half = killed / "clips" / ".rain_0000.1.partial.mp4"
    half.write_bytes(b"half")

    main(words(films, killed))
    main(words(films, whole))
    assert first.stat().st_mtime_ns == made  # kept, not made again
    assert not half.exists()
    for name in (*TABLES, *(path.relative_to(whole) for path in whole.glob("shards/*"))):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def same(one, other):
    """Every file of the two stores, but for records and times."""
    names = {path.relative_to(root) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    for name in sorted(names):
        if (name.suffix == ".json" and name.parts[0] == "parts") or name.name in (".workers", "prepare.json"):
            continue
        if name.name.endswith(".index.parquet"):  # tells of what its clip was made
            continue
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_lossless_store_holds_what_the_recording_shows(films, tmp_path):
    main(words(films, tmp_path / "store", "lossless=true"))
    recorded = islice(iterate(films / "day_2.mp4", 15.0, (32, 64)), 30)
    stored = iterate(ClipStore(tmp_path / "store").video("day_2_0000"))
    assert all((one == other).all() for one, other in zip(recorded, stored, strict=True))


def test_a_repaired_file_is_taken_in_when_asked_for(films, tmp_path, make_video, make_scene, capsys):
    out = tmp_path / "store"
    main(words(films, out))
    made = out / "parts" / "day_2_0000.index.parquet"
    kept = made.stat().st_mtime_ns
    make_video(films / "text.mp4", make_scene(7, 20))
    main(words(films, out))
    assert "its input has changed since: text.mp4; retry_dropped=true" in capsys.readouterr().out
    assert "text_0000" not in ClipStore(out).clips()
    main(words(films, out, "retry_dropped=true"))
    assert "text_0000" in ClipStore(out).clips()
    assert made.stat().st_mtime_ns == kept  # nothing of it was dropped
    main(words(films, tmp_path / "whole"))
    same(out, tmp_path / "whole")
    main(words(films, out, "retry_dropped=true"))  # what is too short is dropped again
    same(out, tmp_path / "whole")


def test_a_file_that_changes_before_the_end_is_done_again(films, tmp_path, make_video, make_scene):
    out = tmp_path / "store"
    main(words(films, out))
    (out / "store.json").unlink()
    make_video(films / "day_1.mp4", make_scene(8, 20))  # one clip where there were three
    main(words(films, out))
    assert [clip for clip in ClipStore(out).clips() if clip.startswith("day_1")] == ["day_1_0000"]
    main(words(films, tmp_path / "whole"))
    same(out, tmp_path / "whole")


def test_a_clip_of_a_file_that_has_changed_is_made_again(films, tmp_path, make_video, make_scene):
    source = VideosSource(VideosConfig(32, 64, 15.0, 2.0, 0.5), films)
    unit = source.units()[1]
    counter = multiprocessing.Value("Q", 0)
    do_unit(source, replace(unit, split="train", stamp="1"), tmp_path, counter)
    before = (tmp_path / "clips" / "day_2_0000.mp4").read_bytes()
    record_path(unit, tmp_path).unlink()  # as if killed before the unit was done
    make_video(films / "day_2.mp4", make_scene(9, 30))
    do_unit(source, replace(unit, split="train", stamp="2"), tmp_path, counter)
    assert (tmp_path / "clips" / "day_2_0000.mp4").read_bytes() != before


class Killed(BaseException):
    """Stands for kill -9 at the very step."""


def test_killed_while_a_store_is_removed_what_is_left_of_it_claims_nothing(tmp_path, monkeypatch):
    parts = [f"parts/{clip}.{table}.parquet" for clip in "ab" for table in ("index", "frames", "boxes", "maps")]
    names = ["store.json", "prepare.json", "index.parquet", "parts/u.unit.json", "clips/a.mp4", "clips/b.mp4", *parts]
    real = Path.unlink
    for steps in range(6):
        out = tmp_path / str(steps)
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).touch()
        left = iter(range(steps))

        def unlink(path, missing_ok=False, left=left):
            if next(left, None) is None:
                raise Killed
            real(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
        with suppress(Killed):
            prepare._clear(out)
        monkeypatch.undo()
        for clip in (path.name[0] for path in out.glob("parts/*.index.parquet")):
            assert all((out / name).exists() for name in (*parts, f"clips/{clip}.mp4") if f"/{clip}." in name)
        assert not (out / "parts" / "u.unit.json").exists() or len(list(out.glob("parts/*.index.parquet"))) == 2
        assert (out / "store.json").exists() == (steps == 0)
        assert (out / "prepare.json").exists()  # so the folder is still known as a store, and may be cleared again


def test_killed_before_the_plan_is_there_it_begins_again(films, tmp_path):
    out = tmp_path / "store"
    out.mkdir()
    (out / ".prepare.4711.partial.json").write_text("{")
    (out / ".lock").write_text("4711\n")
    main(words(films, out))
    assert sorted(path.name for path in out.glob(".*")) == []


def test_a_worker_of_an_earlier_preparation_is_waited_for(films, tmp_path, capfd):
    out = tmp_path / "store"
    (out / "parts").mkdir(parents=True)
    shutil.copy(made(films, tmp_path) / "prepare.json", out)
    with open(out / "parts" / ".workers", "w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        Timer(0.5, lambda: fcntl.flock(held, fcntl.LOCK_UN)).start()
        main(words(films, out))
    assert "waiting for the processes of an earlier preparation" in capfd.readouterr().err
    assert (out / "store.json").exists()


def test_a_lock_that_is_removed_while_another_process_opens_it_does_not_let_both_in(tmp_path, monkeypatch):
    real, opened = fcntl.flock, []

    def flock(file, kind):
        if not opened:
            opened.append(file)
            (tmp_path / ".lock").unlink()  # its holder ends just now
        real(file, kind)

    monkeypatch.setattr(prepare.fcntl, "flock", flock)
    with prepare.locked(tmp_path):
        monkeypatch.undo()
        with pytest.raises(UserError, match=f"process {os.getpid()}"), prepare.locked(tmp_path):
            pass


def test_a_store_begun_by_another_version_is_refused(films, tmp_path):
    out = tmp_path / "store"
    shutil.copytree(made(films, tmp_path), out)
    plan = json.loads((out / "prepare.json").read_text())
    plan["config"]["schema"] = 1
    (out / "prepare.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"prepared with schema=1 \(now 2\)"):
        main(words(films, out))


def test_overwrite_begins_anew(films, tmp_path):
    out = tmp_path / "store"
    main(words(films, out))
    main(words(films, out, "overwrite=true", "videos.clip_seconds=1"))
    assert ClipStore(out).index["frames"].max() == 15
    assert sum(len(list(members(path))) for path in (out / "shards").iterdir()) == len(ClipStore(out).index)
    assert not (out / "clips").exists()


def test_two_at_once_are_refused_and_a_dead_lock_is_not(films, tmp_path):
    out = tmp_path / "store"
    out.mkdir()
    with open(out / ".lock", "w") as held:
        held.write("4711\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another preparation \(process 4711\)"):
            main(words(films, out))
    main(words(films, out))  # the file is still there, its holder is not
    assert (out / "store.json").exists()


def test_nothing_prepared_is_an_error_with_the_reasons(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"nothing was prepared from 1 inputs .*text.mp4 is not a readable video"):
        main(words(tmp_path / "films", tmp_path / "store"))
    assert not (tmp_path / "store" / "store.json").exists()


def test_a_finished_unit_is_not_opened_again(films, tmp_path):
    source = VideosSource(VideosConfig(32, 64, 15.0, 2.0, 0.5), films)
    unit = replace(source.units()[2], split="train")
    counter = multiprocessing.Value("Q", 0)
    first = do_unit(source, unit, tmp_path / "store", counter)
    (films / unit.path).unlink()
    assert do_unit(source, unit, tmp_path / "store", counter) == first
    assert first.clips == ["rain_0000"]
    assert counter.value == 34  # the 4 frames of the refused piece were work too


def test_files_of_others_are_not_touched(films, tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.txt").write_text("precious")
    for more in ([], ["overwrite=true"]):
        with pytest.raises(UserError, match="no store of `drivesim prepare`; choose an empty folder"):
            main(words(films, out, *more))
    assert [path.name for path in out.iterdir()] == ["chapter1.txt"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["source=lidar"], "source=lidar is unknown; expected one of town, videos"),
        (["workers=-1"], "workers is -1"),
        (["shard_mb=0"], "shard_mb is 0"),
        (["val_share=0.6", "test_share=0.5"], "less than 1 together"),
        (["videos.fsp=3"], "unknown key 'videos.fsp'; did you mean videos.fps"),
        (["root=nowhere"], "root=nowhere is not a folder"),
        (["runner=spark"], "runner=spark is unknown; expected one of processes, ray"),
        (["address=auto"], "address=auto is that of a Ray cluster; add runner=ray"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(films, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        main(words(films, tmp_path / "store", *more))
    assert not (tmp_path / "store").exists()


def test_the_store_may_not_lie_in_its_own_source(films):
    with pytest.raises(UserError, match="lie in one another"):
        main(words(films, films / "store"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere, so no folder is read-only for it")
def test_a_read_only_folder_is_told(films, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        main(words(films, tmp_path / "locked" / "store"))


def routes(names, group=""):
    return [Unit(name, name, group) for name in names]


def test_splits_depend_on_names_and_seed_only():
    units = routes([f"town_{i:04d}" for i in range(40)])
    splits = split_routes(units, 0.15, 0.1, seed=0)
    assert splits == split_routes(units[::-1], 0.15, 0.1, seed=0)
    assert splits != split_routes(units, 0.15, 0.1, seed=1)
    counts = [list(splits.values()).count(name) for name in ("train", "val", "test")]
    assert counts == [30, 6, 4]


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (3, 1)])
def test_two_routes_are_enough_for_a_validation_split(count, held_out):
    splits = split_routes(routes("abc"[:count], "videos"), 0.15, 0.0, seed=0)
    assert list(splits.values()).count("val") == held_out


def test_full_rate_and_sparse_town_routes_are_held_out_separately():
    names = [f"town_{i:04d}" for i in range(3)] + [f"town_s{i:04d}" for i in range(90)]
    for seed in range(5):
        splits = split_routes(routes(names), 0.15, 0.0, seed)
        held_out = [name for name, split in splits.items() if split == "val"]
        assert sum("_s" not in name for name in held_out) == 1
        assert sum("_s" in name for name in held_out) == 14


def test_no_validation_is_possible_when_asked_for():
    assert set(split_routes(routes("abc", "videos"), 0.0, 0.0, seed=0).values()) == {"train"}
