"""Rollouts that are killed again and again, and whether what comes out is what an unbroken one makes.

    python -m benchmarks.kill_generate kills=50 generate="bundle=runs/demo/bundle seconds=30"

Each kill is `kill -9`, at a random moment: while it computes, while it starts, or while the last files are written.
After each the partial video has to play, as many frames as its checkpoint says, and the same command is given again.
When one comes to its end before the kills are used up, its files are compared, and another is begun.

Precision and threads are those that the unbroken run measured: another precision makes another video, killed or not.
"""

import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import av
from tqdm import tqdm

from benchmarks import start
from drivesim.config import option, parse
from drivesim.errors import UserError
from drivesim.generation.checkpoint import Checkpoint, checkpoint_path
from drivesim.generation.generate import BESIDE, beside
from drivesim.generation.labels import LAYOUT_SUFFIX
from drivesim.generation.writer import partial_path
from drivesim.machine import PRECISION

ROOT = Path(__file__).parents[1]
KINDS = {"computing": 0.8, "starting": 0.1, "ending": 0.1}  # what is killed, and how often
COMPUTING_S, ENDING_S = 3.0, 0.05  # the longest until then: seconds of video, seconds after the record is there


@dataclass
class KillConfig:
    """Kill `drivesim generate` at random moments; exits with code 2 if a byte differs."""

    generate: str = option(help="words of the command, without out")
    kills: int = option(50, "how often")
    seed: int = option(0, "decides what is killed, and when")
    out: str | None = option(None, "folder to work in; a temporary one without it")


@dataclass
class Report:
    """sha256: of the unbroken video. wrong: what differed, or was left over, for each video that became whole."""

    sha256: str = ""
    kills: Counter = field(default_factory=Counter)
    wrong: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        wrong = [f"\n  video {number}: {name}" for number, names in enumerate(self.wrong) for name in names]
        told = f"{self.kills.total()} kills ({kinds}), {len(self.wrong)} videos, SHA-256 {self.sha256}"
        return f"{told}, {len(wrong)} differences{''.join(wrong)}"


def main(argv: Sequence[str]) -> None:
    config = parse(KillConfig, argv, "python -m benchmarks.kill_generate")
    with tempfile.TemporaryDirectory() as temporary:
        report = run(config, Path(config.out or temporary))
    print(report)
    if any(report.wrong):
        raise SystemExit(2)


def run(config: KillConfig, folder: Path) -> Report:
    """Kill and compare as asked for. raises UserError if the command fails by itself"""
    rng = random.Random(config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    whole, killed = folder / "whole.mp4", folder / "killed.mp4"
    command = Command(shlex.split(config.generate))
    begun = time.monotonic()
    command.finish(whole)
    second_s = (time.monotonic() - begun) / command.settle(whole)
    report = Report(hashlib.sha256(whole.read_bytes()).hexdigest())
    with tqdm(total=config.kills, desc="kills") as bar:
        while report.kills.total() < config.kills:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            longest = {"computing": COMPUTING_S * second_s, "starting": second_s, "ending": ENDING_S}[kind]
            if command.kill(killed, kind, rng.uniform(0, longest)):
                report.kills[kind] += 1
                bar.update()
            check_plays(killed)
            if killed.exists() and not checkpoint_path(killed).exists():
                report.wrong.append(differences(whole, killed))
                remove(killed)
    command.finish(killed)
    report.wrong.append(differences(whole, killed) + [path.name for path in folder.glob("*.partial*")])
    return report


@dataclass
class Command:
    """`drivesim generate` with these words."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def settle(self, whole: Path) -> float:
        """Compute from now on as the video `whole` was computed; returns how long it is, seconds."""
        made = json.loads(beside(whole, ".json").read_text())
        self.environment[PRECISION] = made["machine"]["precision"]
        self.environment["OMP_NUM_THREADS"] = str(made["machine"]["threads"])
        return made["frames"] / made["fps"]

    def begin(self, out: Path, told: IO[bytes]) -> subprocess.Popen:
        """Begin, or go on; what it says on stderr goes to `told`."""
        words = [sys.executable, "-m", "drivesim", "generate", *self.words, f"out={out.absolute()}"]
        return subprocess.Popen(words, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL, stderr=told)

    def finish(self, out: Path) -> None:
        """raises UserError if it fails"""
        with tempfile.TemporaryFile() as told:
            if code := self.begin(out, told).wait():
                raise UserError(f"a run that nobody killed ended with code {code}: {last_line(told)}")

    def kill(self, out: Path, kind: str, seconds: float) -> bool:
        """Kill it so many seconds after `kind` began; False if it ended before."""
        moments: dict[str, Callable[[str], bool]] = {
            "starting": lambda told: True,
            "computing": lambda told: "generate:" in told,  # its progress
            "ending": lambda told: beside(out, ".json").exists(),
        }
        with tempfile.TemporaryFile() as told:
            process = self.begin(out, told)
            while process.poll() is None and not moments[kind](os.pread(told.fileno(), 1 << 16, 0).decode()):
                time.sleep(0.01)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            if process.wait() not in (0, -signal.SIGKILL):
                raise UserError(f"it does not go on: {last_line(told)}")
            return process.returncode != 0


def last_line(told: IO[bytes]) -> str:
    told.seek(0)
    return (told.read().decode().split("\n")[:-1] or ["nothing was said"])[-1]


def check_plays(out: Path) -> None:
    """raises UserError unless the partial video plays, up to its checkpoint or further"""
    if (found := Checkpoint.read(out)) is None or not partial_path(out).exists():
        return
    frames = 0
    with av.open(str(partial_path(out))) as video:
        for packet in video.demux(video=0):
            with suppress(av.error.InvalidDataError):  # the end of what was being written
                frames += len(packet.decode())
    if frames < found.written.frames:
        raise UserError(f"{frames} frames of the partial video play, its checkpoint says {found.written.frames}")


def remove(out: Path) -> None:
    for path in (out, partial_path(out), *(beside(out, suffix) for suffix in BESIDE)):
        path.unlink(missing_ok=True)


def differences(whole: Path, other: Path) -> list[str]:
    """Which of the files that were made are not alike, but for the seconds that computing took and their names."""

    def record(path: Path) -> dict:
        made = json.loads(beside(path, ".json").read_text())
        evaluations = {name: cost["evaluations"] for name, cost in made.pop("costs").items()}
        return made | {"options": made["options"] | {"out": ""}, "evaluations": evaluations}

    alike = {
        "video": whole.read_bytes() == other.read_bytes(),
        "contact sheet": beside(whole, ".png").read_bytes() == beside(other, ".png").read_bytes(),
        "labels": beside(whole, LAYOUT_SUFFIX).read_bytes() == beside(other, LAYOUT_SUFFIX).read_bytes(),
        "record": record(whole) == record(other),
    }
    return [name for name, same in alike.items() if not same]


if __name__ == "__main__":
    start(main, "benchmarks.kill_generate")
