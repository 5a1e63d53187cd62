"""`make demo`: the whole chain as the commands a user would type, each printed before it runs.

Interrupted, it goes on.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import start
from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.errors import UserError
from drivesim.machine import describe


@dataclass
class DemoConfig:
    """Data, training of every stage, a generated video, a report."""

    out: str = option("runs/demo", "folder of the demo")
    data: str = option("", "folder of your own videos; empty: the procedural town")
    budget_minutes: float | None = option(
        None, "training time of all stages together; without it what fits this machine into half an hour, at most 14"
    )
    clips: int = option(10, "held-out clips the report judges by")
    seconds: float = option(4.0, "length of the generated video")
    seed: int = option(0, "seed of data, training and generation")


HALF_HOUR, SETUP, MOST, LEAST = 29.0, 3.0, 14.0, 5.0  # minutes
WINDOW_SECONDS = 3.87  # 29 frames at 7.5 a second
JUDGING = 2.8  # video and report take about this many times as long as the data, on whatever machine


def main(argv: Sequence[str]) -> None:
    config = parse(DemoConfig, argv, "demo")
    out = Path(config.out)
    started = time.time()
    print(f"demo: {describe()}", flush=True)
    (own_videos if config.data else town)(config, out, started)
    print(
        f"\ndemo: done in {(time.time() - started) / 60:.1f} min\n  report  {out / 'report' / 'report.html'}\n"
        f"  video   {out / 'drive.mp4'}\n  model   {out / 'bundle'}"
    )


def town(config: DemoConfig, out: Path, started: float) -> None:
    """Train on some towns, judge on two that were never seen: one to continue, one as the real-versus-real floor."""
    run("prepare", "source=town", f"out={out / 'data'}", f"town.seed={config.seed}", "town.routes=16")
    unseen = [f"town.routes={config.clips}", "town.seconds=4", "town.fps=7.5", "town.sparse_routes=0", "val_share=0"]
    run("prepare", "source=town", f"out={out / 'test'}", f"town.seed={config.seed + 1000}", *unseen)
    run("prepare", "source=town", f"out={out / 'floor'}", f"town.seed={config.seed + 2000}", *unseen)
    train(config, out, (time.time() - started) / 60)
    clip = ClipStore(out / "test").clips()[0]
    generate(config, out, f"{out / 'test'}:{clip}", f"{out / 'test'}:{clip}")
    evaluate(config, out, out / "test", f"floor={out / 'floor'}")


def own_videos(config: DemoConfig, out: Path, started: float) -> None:
    """The same on a folder of videos. There are no boxes in it, so nothing is steered by boxes."""
    print("demo: your videos have no boxes, so box conditioning falls away; everything else is the same", flush=True)
    store = prepare_videos(config, out)
    train(config, out, (time.time() - started) / 60)
    generate(config, out, f"{store.root}:{long_clips(store, 'val')[0]}", "none")
    evaluate(config, out, out / "data", "split=val")


def prepare_videos(config: DemoConfig, out: Path) -> ClipStore:
    """Hold out as many of the user's routes as it takes to have two clips to continue; raises UserError if none do."""
    words = ["source=videos", f"root={config.data}", f"out={out / 'data'}", f"seed={config.seed}"]
    for share in (None, 0.25, 0.4, 0.5, 0.6):  # None: what an earlier, interrupted demo made
        if share is not None:
            run("prepare", *words, f"val_share={share}", "overwrite=true")
        if (out / "data" / "store.json").exists():
            store = ClipStore(out / "data")
            if len(long_clips(store, "val")) >= 2 and long_clips(store, "train"):
                return store
    raise UserError(
        f"{config.data}: the demo needs two routes to hold out and one to train on with clips of {WINDOW_SECONDS} s "
        "between cuts; give more or longer videos"
    )


def long_clips(store: ClipStore, split: str) -> list[str]:
    """Clips of a split that hold a window of keyframes, the longest first."""
    rows = store.index[store.index["split"] == split]
    seconds = (rows["frames"] / rows["fps"]).sort_values(ascending=False)
    return list(seconds.index[seconds >= WINDOW_SECONDS])


def train(config: DemoConfig, out: Path, prepared: float) -> None:
    """All stages; `prepared` minutes went into the data, which tells how fast this machine is."""
    left = HALF_HOUR - SETUP - prepared * (1 + JUDGING)
    budget = config.budget_minutes or round(min(max(left, LEAST), MOST), 1)
    run(
        "train",
        "experiment=town",
        f"data={out / 'data'}",
        f"out={out}",
        f"budget_minutes={budget:g}",
        f"seed={config.seed}",
    )


def generate(config: DemoConfig, out: Path, start: str, layout: str) -> None:
    if (out / "drive.mp4").exists():
        return
    run(
        "generate",
        f"bundle={out / 'bundle'}",
        f"start={start}",
        "start_time=0",
        f"layout={layout}",
        f"seconds={config.seconds:g}",
        f"out={out / 'drive.mp4'}",
        f"seed={config.seed}",
        "overwrite=true",  # one that was begun by a bundle that was trained further since
    )


def evaluate(config: DemoConfig, out: Path, real: Path, *extra: str) -> None:
    if (out / "report" / "report.html").exists():
        return
    run(
        "evaluate",
        f"bundle={out / 'bundle'}",
        f"data={out / 'data'}",
        f"real={real}",
        f"out={out / 'report'}",
        f"clips={config.clips}",
        "clip_frames=29",
        "max_windows=1",
        "finder_seconds=25",
        f"video={out / 'drive.mp4'}",
        *extra,
    )


def run(command: str, *words: str) -> None:
    """Run a drivesim command in a process of its own; stop the demo where it stops."""
    print("\n$ drivesim " + " ".join([command, *words]), flush=True)
    code = subprocess.run([sys.executable, "-m", "drivesim", command, *words]).returncode
    if code:
        print(f"demo: stopped; run the same command again to go on from here (exit code {code})", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    start(main, "demo")
