"""The whole command on small drives: the numbers order as they should, and the page stands on its own."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from drivesim.errors import UserError
from eval.evaluate import evaluate, main, parse_sets
from eval.features import load_torchscript
from eval.measure import Networks, Options
from eval.report import Cell, Clips, Figure, Report, Section, Table
from eval.videos import open_set

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def blur(clip: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in clip])


def freeze(clip: np.ndarray) -> np.ndarray:
    return np.repeat(clip[:1], len(clip), 0)


class I3d(torch.nn.Module):
    """The call signature of the FVD network."""

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        return x.mean((2, 3, 4))


def videos_in(root: Path, make_folder, frames: int = 8) -> dict[str, Path]:
    return {
        "real": make_folder(root / "real", range(3), frames=frames),
        "floor": make_folder(root / "floor", range(10, 13), frames=frames),
        "blurred": make_folder(root / "blurred", range(3), change=blur, frames=frames),
        "frozen": make_folder(root / "frozen", range(3), change=freeze, frames=frames),
    }


@pytest.fixture
def sets(tmp_path, make_folder) -> dict[str, Path]:
    return videos_in(tmp_path, make_folder)


def words(sets: dict[str, Path], out: Path) -> list[str]:
    return [
        f"real={sets['real']}", f"floor={sets['floor']}", f"fake=blurred:{sets['blurred']},frozen:{sets['frozen']}",
        f"out={out}", "clip_frames=8", "frames_a_window=2", "show=1", "crops=false",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory, make_folder) -> Path:
    """The folder of one run of the command, looked at by several tests; it takes most of this file's seconds."""
    root = tmp_path_factory.mktemp("evaluate")
    main(words(videos_in(root, make_folder), root / "report"))
    return root / "report"


def values_in(report: Path) -> dict[str, dict[str, float]]:
    content = json.loads((report / "results.json").read_text())
    return {entry["name"]: {k: s["value"] for k, s in entry["metrics"].items()} for entry in content["sets"]}


def test_each_fault_shows_in_its_own_number(report):
    values = values_in(report)
    blurred, frozen, real = values["blurred"], values["frozen"], values["real"]
    assert blurred["kd_efficientnet_lite0"] > values["floor"]["kd_efficientnet_lite0"]
    assert blurred["stlpips"] > 0.1
    assert frozen["flow_speed_dis"] < 0.1 * real["flow_speed_dis"]
    assert frozen["flow_error_dis"] == pytest.approx(1, abs=0.05)
    assert blurred["flow_error_dis"] < 0.7
    assert not {"fid", "fvd"} & set(frozen)


def test_table_and_json_agree_and_every_number_has_its_n(report):
    rows = list(csv.DictReader((report / "results.csv").open()))
    expected = {(name, key): value for name, metrics in values_in(report).items() for key, value in metrics.items()}
    assert {(row["set"], row["metric"]): float(row["value"]) for row in rows} == expected
    assert all(int(row["n"]) > 0 for row in rows)
    assert not list(report.glob(".*partial*"))


def test_few_rows_are_warned_of_and_the_page_says_how_it_was_made(report):
    page = (report / "report.html").read_text()
    assert "Fewer rows than features (efficientnet_lite0 n = 6 of 1280" in page
    assert "drivesim evaluate real=" in page
    assert not re.search(r"https?://", page)


def test_the_python_function_gives_the_same_numbers_and_takes_more_sections(report, tmp_path):
    torch.jit.script(I3d()).save(str(tmp_path / "i3d.pt"))
    options = Options(8, frames_a_window=2, crops=False, progress=False)
    results = evaluate(
        open_set("real", report.parent / "real"), {"frozen": report.parent / "frozen"}, tmp_path, options,
        networks=Networks(i3d=load_torchscript(tmp_path / "i3d.pt", "fvd_i3d")),
        extra_sections=[Section("Training", ("Loss fell.",))], provenance={"bundle": "b1"},
    )  # fmt: skip
    floor, frozen = results[1], {key: s.value for key, s in results[2].metrics.items()}
    assert frozen.pop("fvd") >= 0
    assert frozen == values_in(report)["frozen"]
    assert (floor.metrics["fd_efficientnet_lite0"].n, floor.metrics["fd_efficientnet_lite0"].n_real) == (4, 2)
    page = (tmp_path / "report.html").read_text()
    assert "Loss fell." in page
    assert "<dd>b1</dd>" in page
    assert "two halves of the real videos" in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["clip_frames=40"], "lower clip_frames"),
        (["fvd_i3d=nowhere.pt"], "fvd_i3d=nowhere.pt does not exist"),
        (["split=everything"], "expected one of train, val, test"),
        (["clip_frames=1"], "at least 2"),
        (["layout_store=nowhere"], "no clip store"),
    ],
)
def test_mistakes_are_told_in_one_line(sets, tmp_path, more, message):
    with pytest.raises(UserError, match=message) as error:
        main([*words(sets, tmp_path / "report"), *more])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()


def test_an_earlier_report_is_kept_unless_told_otherwise(sets, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text("{}")
    with pytest.raises(UserError, match="overwrite=true"):
        main(words(sets, tmp_path / "report"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("folder", {"fake": "folder"}),
        ("ours:a,frozen:b/c", {"ours": "a", "frozen": "b/c"}),
        ("{ours: a, frozen: b}", {"ours": "a", "frozen": "b"}),
    ],
)
def test_sets_are_named_in_one_word(text, expected):
    assert parse_sets(text) == expected


@pytest.mark.parametrize("text", ["ours:a,b", "ours:a,ours:b", "real:a", "ours:,x:b"])
def test_badly_named_sets_are_refused(text):
    with pytest.raises(UserError, match="fake: "):
        parse_sets(text)


def page_of(write, drive, folder: Path) -> Path:
    clip = write(folder, "clip", drive(0)).read_bytes()
    table = Table(
        ["set", "fd ↓"], [[Cell("<ours>", "n 4"), Cell("1.0", best=True)], ["theirs", "2.0"]], hints=["", "x"]
    )
    sections = [Section("Extra & more", ("A paragraph.",), [table], [Clips("side by side", {"a": clip, "b": clip})],
                        [Figure("<b>figure</b>", "caption")])]  # fmt: skip
    Report("Title", "Lead.", sections, {"seed": "0"}).write(folder / "page.html")
    return folder / "page.html"


def test_a_page_carries_all_it_shows_and_escapes_text(write, drive, tmp_path):
    page = page_of(write, drive, tmp_path).read_text()
    assert not re.search(r"https?://|src=\"(?!data:)|@import|<link(?! rel=\"icon\" href=\"data:)", page)
    assert "&lt;ours&gt;" in page
    assert "<b>figure</b>" in page
    assert "Extra &amp; more" in page


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: that the clips play in a browser goes unseen")
def test_a_browser_can_play_every_clip(write, drive, tmp_path):
    page = page_of(write, drive, tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update",
             f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    dump = subprocess.run([str(CHROMIUM), *flags, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
                          capture_output=True, text=True, timeout=120, check=True).stdout  # fmt: skip
    assert '<body data-videos="2" data-loaded="2" data-failed="0">' in dump
