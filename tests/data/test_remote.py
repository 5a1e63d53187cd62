"""Stores under URLs: over HTTP with byte ranges, in fsspec's memory, as file://; and what goes wrong far away."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import SEEK_CUR, SEEK_END, BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from drivesim.data.cache import FrameCache
from drivesim.data.clip_file import ClipFile
from drivesim.data.remote import Part, open_file, place
from drivesim.data.store import ClipStore, is_store
from drivesim.data.video import count_frames, iterate, read_window
from drivesim.data.windows import VideoPatches, WindowDataset, WindowSpec
from drivesim.errors import UserError
from drivesim.generation.layout_file import read_layout
from drivesim.generation.start import read_start


class Ranges(SimpleHTTPRequestHandler):
    """Serves the bytes of a file that are asked for, as object stores do."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked or not path.is_file():
            return super().do_GET()
        start, stop = int(asked[1]), min(int(asked[2]) + 1, path.stat().st_size)
        if start >= stop:
            return self.send_error(416)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(path.read_bytes()[start:stop])

    def log_message(self, *args) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        pass  # a reader that has seen enough hangs up


class WholeFiles(SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges."""

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """serve(folder, handler=Ranges) gives the URL of a folder."""
    servers = []

    def start(folder: Path, handler: type[SimpleHTTPRequestHandler] = Ranges) -> str:
        servers.append(Server(("127.0.0.1", 0), partial(handler, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, args=[0.02], daemon=True).start()  # shuts down fast
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def in_memory() -> Iterator[Callable[[Path], str]]:
    """in_memory(folder) gives the URL of a copy in memory."""
    memory = fsspec.filesystem("memory")

    def copy(folder: Path) -> str:
        memory.put(str(folder), "/stores/one", recursive=True)
        return "memory://stores/one"

    yield copy
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture(params=["http", "memory", "file"])
def url(request, small_store) -> str:
    if request.param == "http":
        return request.getfixturevalue("serve")(small_store.root)
    if request.param == "memory":
        return request.getfixturevalue("in_memory")(small_store.root)
    return f"file://{small_store.root}"


def test_a_remote_store_reads_as_the_local_one(small_store, url):
    store = ClipStore(url)
    assert store.clips("val") == small_store.clips("val")
    assert store.table("frames").equals(small_store.table("frames"))
    assert torch.equal(store.layout("c1").boxes, small_store.layout("c1").boxes)
    for clip in store.clips():
        there, here = store.video(clip), small_store.video(clip)
        assert count_frames(there) == count_frames(here) == store.index.loc[clip, "frames"]
        np.testing.assert_array_equal(list(iterate(there)), list(iterate(here)))
        np.testing.assert_array_equal(read_window(there, 1, 3), read_window(here, 1, 3))


def test_clips_under_a_url_steer_and_start_a_video(small_store, url):
    assert is_store(url)
    assert torch.equal(read_layout(f"{url}:c0").layout.boxes, read_layout(f"{small_store.root}:c0").layout.boxes)
    assert read_layout(f"{url}:c0:0.5").times_s[0] == -0.5
    here, there = (read_start(f"{root}:c0", 0.5, 0.1) for root in (small_store.root, url))
    assert [picture.tobytes() for picture in here] == [picture.tobytes() for picture in there]
    with pytest.raises(UserError, match=r"has no clip 'c9'; try c0"):
        read_start(f"{url}:c9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/store/store.json cannot be read"):
        read_start("http://127.0.0.1:9/store:c0")


def test_processes_that_read_ahead_may_use_a_connection_made_before_they_began(small_store, serve):
    specs = [WindowSpec(4, 30)]
    here, there = (
        WindowDataset(store, VideoPatches(store, 32, 64), "train", specs, 0, length=6)
        for store in (small_store, ClipStore(serve(small_store.root)))
    )
    there[0]
    loader = DataLoader(there, None, num_workers=2, timeout=60)
    assert all(torch.equal(x, here[i][0]) for i, (x, *_) in enumerate(loader))


def test_caches_of_a_remote_store_lie_in_the_users_cache_folder_by_its_contents(
    small_store, serve, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = ClipStore(serve(small_store.root))
    frames = FrameCache(store, 16, 32).build(1)
    assert frames.folder.is_relative_to(tmp_path / "cache" / "drivesim")
    assert len(list(frames.folder.glob("*.npy"))) == 5
    copy = shutil.copytree(small_store.root, tmp_path / "copy")
    assert ClipStore(serve(copy)).cache == store.cache  # wherever it is served from
    small_store.table("index").assign(sha256="0" * 64).to_parquet(copy / "index.parquet")
    assert ClipStore(serve(copy)).cache != store.cache
    assert small_store.cache == small_store.root / "cache"


def test_only_a_part_of_a_shard_is_fetched_for_a_clip(tmp_path, in_memory, monkeypatch):
    (tmp_path / "a.bin").write_bytes(bytes(10) + b"video" + bytes(10))
    file = ClipFile("v.mp4", f"{in_memory(tmp_path)}/a.bin", 10, 5).open()
    assert file.read() == b"video"
    assert file.seek(-2, SEEK_END) == 3
    assert (file.read(9), file.read(9)) == (b"eo", b"")
    file.seek(1)
    assert file.seek(1, SEEK_CUR) == file.tell() == 2
    assert file.read(1) == b"d"


def test_a_part_that_breaks_off_is_told():
    part = Part(BytesIO(b"0123456"), 4, 10, "v.mp4 in a.tar")
    assert part.read(2) == b"45"
    with pytest.raises(UserError, match=r"v.mp4 in a.tar: the file is cut off after 3 of 10 bytes"):
        part.read(9), part.read(9)


@pytest.fixture
def copy(small_store, tmp_path) -> Path:
    return shutil.copytree(small_store.root, tmp_path / "store")


def test_a_remote_shard_that_is_missing_or_cut_off_is_named(copy, serve):
    store = ClipStore(serve(copy))
    video = store.video("c1")
    path = copy / store.index.loc["c1", "shard"]
    path.write_bytes(path.read_bytes()[: video.offset + video.bytes // 2])
    for read in (lambda: list(iterate(video)), lambda: read_window(video, 30, 10)):
        with pytest.raises(UserError, match=r"c1.mp4 in http.*train-00000.tar: the file is cut off"):
            read()
    path.unlink()
    for read in (lambda: iterate(video), lambda: read_window(video, 0, 1), video.open().read):
        with pytest.raises(UserError, match=r"train-00000.tar.* (is missing|cannot be read)"):
            read()


def test_a_server_without_ranges_is_told(copy, serve):
    store = ClipStore(serve(copy, WholeFiles))
    with pytest.raises(UserError, match=r"c1.mp4 in http.* cannot be read \(The HTTP server doesn't .* range requests"):
        read_window(store.video("c1"), 0, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://127.0.0.1:9/store", r"http://127.0.0.1:9/store/store.json cannot be read \(Cannot connect to host"),
        ("memory://nothing/here", "memory://nothing/here/store.json is missing"),
        (
            "nonsense://bucket/store",
            r"nonsense://bucket/store/store.json cannot be read \(Protocol not known",
        ),
    ],
)
def test_a_place_that_is_no_store_or_out_of_reach_is_one_line(name, message):
    with pytest.raises(UserError, match=message):
        ClipStore(name)


def test_a_remote_table_that_is_missing_is_named(copy, serve):
    (copy / "boxes.parquet").unlink()
    store = ClipStore(serve(copy))
    with pytest.raises(UserError, match=r"http.*boxes.parquet"):
        store.layout("c0")


def test_words_are_paths_unless_they_have_a_scheme():
    assert place("a/b:c") == Path("a/b:c")
    assert place("file:///a/b") == Path("/a/b")
    assert place("s3://bucket/store/") == "s3://bucket/store"
    with pytest.raises(UserError, match=r"nowhere\.tar is missing"):
        open_file(Path("nowhere.tar"))
