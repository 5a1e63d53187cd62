"""Preparations that are killed again and again, and whether what comes out is what an unbroken one makes.

    python -m benchmarks.kill_prepare kills=100 clips=200

Each kill is `kill -9`, at a random moment: of the command itself, of one of its worker processes, or of the command
while it gathers the tables. After each, the same command is given again. When one comes to its end before the kills
are used up, its store is compared, and another is begun.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import start
from data_prep.source import Frame, RawClip
from data_prep.writer import write_clip
from drivesim.config import option, parse
from drivesim.errors import UserError

CLIPS_A_FILE = 4
FPS, HEIGHT, WIDTH = 15, 32, 64
ROOT = Path(__file__).parents[1]
KINDS = {"command": 0.5, "worker": 0.3, "tables": 0.2}  # what is killed, and how often


@dataclass
class KillConfig:
    """Kill `drivesim prepare` at random moments; exits with code 2 if a byte is lost."""

    kills: int = option(100, "how often")
    clips: int = option(200, "of the store, one second each")
    workers: int = option(2, "processes of the preparation")
    seed: int = option(0, "decides what is killed, and when")
    out: str | None = option(None, "folder to work in; a temporary one without it")


@dataclass
class Report:
    """What happened. wrong: files that are missing, left over or differ, for each store that became whole."""

    kills: Counter = field(default_factory=Counter)
    wrong: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(self.kills.items()))
        wrong = [f"\n  store {number}: {name}" for number, names in enumerate(self.wrong) for name in names]
        told = f"{self.kills.total()} kills ({kinds}), {len(self.wrong)} stores"
        return f"{told}, {len(wrong)} files lost, left over or unlike{''.join(wrong)}"


def main(argv: Sequence[str]) -> None:
    config = parse(KillConfig, argv, "python -m benchmarks.kill_prepare")
    with tempfile.TemporaryDirectory() as temporary:
        report = run(config, Path(config.out or temporary))
    print(report)
    if any(report.wrong):
        raise SystemExit(2)


def run(config: KillConfig, folder: Path) -> Report:
    """Kill and compare as asked for; `folder` is filled with the input and the stores."""
    rng = random.Random(config.seed)
    files = make_input(folder / "input", config.clips)
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    finish(begin(folder, whole, config.workers))
    seconds = time.monotonic() - started
    report = Report()
    with tqdm(total=config.kills, desc="kills") as bar:
        while report.kills.total() < config.kills:
            process = begin(folder, killed, config.workers)
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            if kill(process, kind, killed, files, rng.uniform(0, seconds / 8)):
                report.kills[kind] += 1
                bar.update()
            if kind == "worker" and rng.random() < 0.5:  # the command goes on without it, and is to come to its end
                process.wait()
            process.kill()
            process.wait()
            if process.returncode == 0:
                report.wrong.append(differences(whole, killed))
                shutil.rmtree(killed)
    finish(begin(folder, killed, config.workers))
    report.wrong.append(differences(whole, killed))
    return report


def make_input(folder: Path, clips: int) -> int:
    """Small videos of `clips` seconds in all, a file that is cut off and one that is no video; returns how many."""
    count = max(1, clips // CLIPS_A_FILE)
    for number in range(count):
        name = f"drive{number:03d}x"
        write_clip(folder, RawClip(name, name, FPS, "", "", False, pictures(number, CLIPS_A_FILE * FPS)), "train")
    whole = (folder / "clips" / "drive000x.mp4").read_bytes()
    (folder / "clips" / "cut_off.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "clips" / "text.mp4").write_text("no video")
    return count + 2


def pictures(seed: int, count: int) -> Iterator[Frame]:
    """Coarse noise that drifts."""
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    for shift in range(count):
        yield Frame(np.ascontiguousarray(np.roll(noise.repeat(8, 0).repeat(8, 1), shift, 1)))


def begin(folder: Path, out: Path, workers: int) -> subprocess.Popen:
    words = [
        "source=videos",
        f"root={folder / 'input' / 'clips'}",
        f"out={out}",
        f"workers={workers}",
        f"videos.fps={FPS}",
    ]
    words += [f"videos.height={HEIGHT}", f"videos.width={WIDTH}", "videos.clip_seconds=1", "videos.min_seconds=0.5"]
    command = [sys.executable, "-c", "import sys; from data_prep.prepare import main; main(sys.argv[1:])", *words]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet)


def finish(process: subprocess.Popen) -> None:
    """raises UserError if it fails"""
    if process.wait() != 0:
        raise UserError(f"a preparation that nobody killed ended with code {process.returncode}")


def kill(process: subprocess.Popen, kind: str, out: Path, files: int, seconds: float) -> bool:
    """Kill it `seconds` after its work began; False if it ended before."""
    moments: dict[str, Callable[[], bool]] = {
        "command": lambda: (lock := out / ".lock").exists() and lock.read_text().strip() == str(process.pid),
        "worker": lambda: bool(workers_of(process)),
        "tables": lambda: len(list(out.glob("parts/*.unit.json"))) == files,
    }
    while process.poll() is None and not moments[kind]():
        time.sleep(0.01)
    time.sleep(seconds / 20 if kind == "tables" else seconds)  # that takes a moment only
    victims = workers_of(process) if kind == "worker" else [process.pid]
    if process.poll() is not None or not victims:
        return False
    os.kill(victims[-1], signal.SIGKILL)
    return True


def workers_of(process: subprocess.Popen) -> list[int]:
    """Ids of its worker processes; Linux only."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def differences(whole: Path, other: Path) -> list[str]:
    """Names of files that are not in both, or of which a byte differs."""

    def files(root: Path) -> dict[str, bytes]:
        paths = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

    one, two = files(whole), files(other)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


if __name__ == "__main__":
    start(main, "benchmarks.kill_prepare")
