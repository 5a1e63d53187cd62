"""`drivesim data cache`: what training reads of a clip store, made ahead of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drivesim.config import option, parse
from drivesim.data.store import ClipStore
from drivesim.errors import UserError


@dataclass
class CacheConfig:
    """Decode the frames of a clip store to the size a bundle works at, and encode them by its autoencoder.

    `drivesim train` does the same when it needs it, and uses what it finds. The same command again goes on where it
    was stopped. What was made of clips that are no longer there, or by another autoencoder, is removed.
    """

    store: str = option(help="folder of the store, made by `drivesim prepare`")
    bundle: str | None = option(None, "folder of a bundle with an autoencoder; without it frames only")
    height: int | None = option(None, "of the frames, pixels; by default as in the bundle")
    width: int | None = option(None, "likewise")


def main(argv: Sequence[str]) -> None:
    """Run the command. raises UserError for a mistake in `argv`, or a bundle without autoencoder"""
    config = parse(CacheConfig, argv, "drivesim data cache")
    # Here, since it takes seconds, and the other verbs need none of it.
    from drivesim.bundle import Bundle
    from drivesim.training.experiment import ExperimentConfig
    from drivesim.training.stages import Workspace

    store = ClipStore(config.store)
    bundle = Bundle(Path(config.bundle or ""))
    experiment = ExperimentConfig()
    size = _size(config, bundle.require().data if config.bundle else {})
    experiment.data.height, experiment.data.width = size["height"], size["width"]
    work = Workspace(experiment, store, bundle, seed=0)
    folders = [work.latents.folder, work.frames.folder] if config.bundle else [work.frames.folder]
    for folder in folders:
        print(f"{folder}: {len(store.clips())} clips, {_bytes(folder) / 1e6:.1f} MB")


def _size(config: CacheConfig, data: dict[str, float]) -> dict[str, int]:
    """Height and width of the frames. raises UserError where neither options nor bundle say"""
    size = {"height": config.height or data.get("height"), "width": config.width or data.get("width")}
    if missing := [f"{name}=..." for name, pixels in size.items() if pixels is None]:
        raise UserError(f"drivesim data cache: without bundle=... it needs {' and '.join(missing)}")
    if wrong := [f"{name}={pixels}" for name, pixels in size.items() if pixels is not None and pixels < 1]:
        raise UserError(f"drivesim data cache: found {wrong[0]}, expected 1 or more pixels")
    return {name: int(pixels) for name, pixels in size.items() if pixels is not None}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
