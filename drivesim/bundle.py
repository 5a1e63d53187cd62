"""A bundle: a folder a stage with config.json and safetensors, and a model_index.json over them. No pickle anywhere.

bundle/
  model_index.json        format, experiment data settings, for every stage the SHA-256 and size of its weight file and
                          the SHA-256 of those it was trained on
  autoencoder/            config.json, model.safetensors, training.json
  image/                  the same; of a pretrained backbone also its text_encoder/ and tokenizer/
  keyframes/              config.json, temporal.safetensors, training.json: temporal layers alone, which fit any image
                          network of the widths in config.json; model.safetensors where the image layers were trained
                          too, and in older bundles
  interpolate/  decoder/  upsample/  upsample_temporal/
  CHECKSUMS, README.md    of one that `drivesim bundle pack` made (bundles/); saving a stage into it removes CHECKSUMS
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from drivesim.bundles import checksums
from drivesim.bundles.checksums import sha256
from drivesim.bundles.safety import bad_names, no_pickles, outward_links, pickled, refuse
from drivesim.bundles.versions import FORMAT, READ, config_of_today, index_of_today
from drivesim.errors import UserError
from drivesim.files import atomic_path

WEIGHTS = ".safetensors"
MODEL, TEMPORAL = f"model{WEIGHTS}", f"temporal{WEIGHTS}"
ARCHIVES = (".tar", ".zip")
STAGES = ("autoencoder", "image", "keyframes", "interpolate", "decoder", "upsample", "upsample_temporal")
# For each stage those whose weights it was trained on; what they were in turn trained on is named too.
BUILT_ON = {
    "image": ("autoencoder",),
    "keyframes": ("autoencoder", "image"),
    "interpolate": ("autoencoder", "image"),
    "decoder": ("autoencoder",),
    "upsample_temporal": ("upsample",),
}
# What building a network from numbers and words that make no sense raises.
NO_NETWORK = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
T = TypeVar("T")


@dataclass
class Bundle:
    """Read and write the stages of a folder."""

    root: Path

    def __post_init__(self) -> None:
        self.root = Path(self.root)

    @property
    def index(self) -> dict[str, Any]:
        """model_index.json; empty for a new bundle. raises UserError if it is not readable."""
        path = self.root / "model_index.json"
        if not path.exists():
            return {}
        try:
            index = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not readable ({error}); train again or copy the bundle again") from error
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        if found not in READ:
            raise UserError(f"{path} has format {found}, this version reads {', '.join(map(str, READ))}")
        stages, data = index.get("stages", {}), index.get("data", {})
        whole = isinstance(stages, dict) and all(
            isinstance(s, dict)
            and isinstance(s.get("sha256"), str)
            and all(isinstance(s.get(k, {}), dict) for k in ("built_on", "folders"))
            for s in stages.values()
        )
        if not whole or not isinstance(data, dict):
            raise UserError(f"{path} is damaged ({'data' if whole else 'stages'}); copy the bundle again")
        if bad := next(bad_names(stages), None):
            raise UserError(f"{path} names {bad!r}, a path out of its folder; do not use this bundle")
        return index_of_today(index)

    @property
    def data(self) -> dict[str, float]:
        """Sizes and rates the stages were trained at: height, width, key_fps, slots. raises UserError if one is not
        there."""
        data = self.index.get("data", {})
        for name in ("height", "width", "key_fps", "slots"):
            if not isinstance(data.get(name), int | float) or not data[name] > 0:
                raise UserError(
                    f"{self.root / 'model_index.json'}: data.{name} is {data.get(name)}, expected a number "
                    "above 0; copy the bundle again"
                )
        return data

    def require(self, pickles: bool = False) -> "Bundle":
        """The bundle itself; weights are judged when they are loaded.

        pickles  they may lie there, since they will not be taken along
        raises   UserError if there is no bundle here, or one that holds what it may not, or files that are not those of
                 its CHECKSUMS
        """
        self.present()
        refuse([*outward_links(self.root), *(() if pickles else pickled(self.root))])
        others = checksums.mismatches(self.root, lambda path: path.suffix != WEIGHTS, self.digest)
        refuse([line for _, line in others])
        return self

    def present(self) -> None:
        """raises UserError if there is no bundle here"""
        if self.root.is_file() and self.root.suffix in ARCHIVES:
            raise UserError(
                f"{self.root} is an archive; unpack it first: `drivesim bundle unpack bundle={self.root} out=FOLDER`"
            )
        if not self.root.is_dir():
            raise UserError(f"bundle {self.root} is not a folder; train one with `drivesim train out=...`")
        if not self.index:
            raise UserError(f"{self.root} has no model_index.json; a bundle is the folder `drivesim train` fills")

    def has(self, stage: str) -> bool:
        return stage in self.index.get("stages", {})

    def weights(self, stage: str) -> Path:
        """The file of a stage's weights, or where it should be."""
        temporal = self.root / stage / TEMPORAL
        return temporal if temporal.exists() else self.root / stage / MODEL

    def save(
        self,
        stage: str,
        config: dict,
        tensors: dict[str, Tensor],
        record: dict,
        common: dict,
        folders: Sequence[Path] = (),
    ) -> None:
        """Write a stage whole: its folder under another name first, then renamed, then named in the index.

        folders  copied into it as they are but for pickles, and tied to the index by their hash
        """
        temporary = self.root / f".{stage}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        name = TEMPORAL if "sites" in config else MODEL
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary / name)
        for folder in folders:
            shutil.copytree(folder, temporary / folder.name, ignore=no_pickles)
        (temporary / "config.json").write_text(json.dumps(config, indent=2))
        (temporary / "training.json").write_text(json.dumps(record, indent=2))
        (self.root / checksums.NAME).unlink(missing_ok=True)  # of what was packed, which this no longer is
        shutil.rmtree(self.root / stage, ignore_errors=True)
        os.replace(temporary, self.root / stage)
        stages = self.index.get("stages", {})
        built_on = {name: stages[name]["sha256"] for name in BUILT_ON.get(stage, ()) if name in stages}
        path = self.weights(stage)
        entry: dict[str, Any] = {"sha256": sha256(path), "bytes": path.stat().st_size, "built_on": built_on}
        if folders:
            entry["folders"] = {folder.name: folder_sha256(self.root / stage / folder.name) for folder in folders}
        stages = {**stages, stage: entry}
        with atomic_path(self.root / "model_index.json") as path:
            path.write_text(json.dumps({"format": FORMAT, **common, "stages": stages}, indent=2))

    def record(self, stage: str) -> dict[str, Any]:
        """training.json of a stage: how it came about; empty where it is not readable, since nothing depends on it."""
        try:
            return json.loads((self.root / stage / "training.json").read_text())
        except (OSError, ValueError):
            return {}

    def stale(self, stage: str) -> str | None:
        """The stage that was trained again after `stage` was trained on it; None if there is none, or no record of it
        as in older bundles."""
        return outdated(self.index.get("stages", {}), stage)

    def config(self, stage: str) -> dict[str, Any]:
        """config.json of a stage. raises UserError if the stage is missing or unreadable."""
        if not self.has(stage):
            have = ", ".join(self.index.get("stages", {})) or "none"
            raise UserError(
                f"bundle {self.root} has no stage {stage!r} (it has: {have}); run `drivesim train stage={stage}`"
            )
        path = self.root / stage / "config.json"
        try:
            config = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not readable ({error}); copy or train the stage again") from error
        if not isinstance(config, dict):
            found = type(config).__name__
            raise UserError(f"{path} holds a {found}, expected an object; copy or train the stage again")
        return config_of_today(stage, config)

    def sampler(self, cls: type[T]) -> T:
        """The sampler settings, of dataclass `cls`, that the bundle was made for. raises UserError if unreadable"""
        try:
            return from_dict(cls, self.index.get("sampler", {}))
        except (UserError, AttributeError, TypeError) as error:
            raise UserError(f"{self.root / 'model_index.json'}: sampler: {error}; copy the bundle again") from error

    def value(self, stage: str, key: str, cls: type[T]) -> T:
        """A config dataclass of a stage. raises UserError if config.json has none, or one of another version."""
        values = self.config(stage).get(key)
        try:
            return from_dict(cls, values)
        except UserError as error:
            path = self.root / stage / "config.json"
            raise UserError(f"{path}: {key}: {error}; copy or train the stage again") from error

    def network(self, stage: str, cls: type[Any]) -> Any:
        """The network that a stage's config, of type `cls`, describes, with the stage's weights.

        raises  UserError if the config describes none, or the weights do not fit it
        """
        config = self.value(stage, "model", cls)
        with self.building(stage):
            module = config.build()
        self.load(stage, module)
        return module

    @contextmanager
    def building(self, stage: str) -> Iterator[None]:
        """Where a network is built from a stage's config. raises UserError if the config describes none"""
        try:
            with torch.random.fork_rng():  # loading draws nothing: what is trained next starts alike in any process
                yield
        except NO_NETWORK as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self.root / stage / 'config.json'} describes no network ({reason}); copy or train the stage again"
            ) from error

    def load(self, stage: str, module: nn.Module) -> None:
        """Load the weights of a stage into `module`, strictly.

        raises  UserError on any mismatch or damage, or if a stage that this one builds on was trained again since
        """
        if other := self.stale(stage):
            raise UserError(
                f"bundle {self.root}: stage {stage} was trained on an earlier {other} than the one that is there; "
                f"run `drivesim train`, which trains anew what is out of date, or `drivesim train stage={stage}`"
            )
        path = self.weights(stage)
        try:
            result = module.load_state_dict(self.read(stage), strict=False)
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{path} does not fit its config.json: {str(error).splitlines()[-1].strip()}") from error
        if wrong := [*result.missing_keys, *result.unexpected_keys]:
            raise UserError(
                f"{path} does not fit its config.json: {len(wrong)} weights missing or unknown, the first is {wrong[0]}"
            )

    def read(self, stage: str) -> dict[str, Tensor]:
        """The weights of a stage by name. raises UserError if they are missing, damaged or not those of the index"""
        self.check_weights(stage)
        return load_file(self.weights(stage))

    def check_weights(self, stage: str) -> None:
        """raises UserError unless the file of a stage's weights is the one that the index names"""
        path, entry = self.weights(stage), self.index["stages"][stage]
        again = "copy the bundle again or train the stage again"
        if not path.exists():
            raise UserError(f"{path} is missing; copy the bundle again or run `drivesim train stage={stage}`")
        if (found := path.stat().st_size) != entry.get("bytes", found):
            raise UserError(f"{path} is damaged: it has {found} bytes, expected {entry['bytes']}; {again}")
        if self.digest(path) != entry["sha256"]:
            raise UserError(
                f"{path} is damaged or was changed (its SHA-256 is not the one in model_index.json); {again}"
            )

    def digest(self, path: Path) -> str:
        """SHA-256 of a file."""
        return sha256(path)

    def has_folder(self, stage: str, name: str) -> bool:
        return name in self.index.get("stages", {}).get(stage, {}).get("folders", {})

    def folder(self, stage: str, name: str) -> Path:
        """A folder that a stage brought with it. raises UserError if it has none of this name, or it was changed"""
        self.config(stage)
        expected, path = self.index["stages"][stage].get("folders", {}).get(name), self.root / stage / name
        if expected is None:
            raise UserError(f"bundle {self.root}: stage {stage} has no {name}; it was not made from a pretrained one")
        if not path.is_dir() or folder_sha256(path, digest=self.digest) != expected:
            raise UserError(
                f"{path} is missing, damaged or was changed (its SHA-256 is not the one in model_index.json); "
                "copy the bundle again or train the stage again"
            )
        return path

    def sha(self, stage: str) -> str:
        """SHA-256 of a stage's weights. raises UserError if the stage is missing or unreadable"""
        self.config(stage)
        return self.index["stages"][stage]["sha256"]


def outdated(stages: dict[str, dict[str, Any]], stage: str) -> str | None:
    """`Bundle.stale` of the stages of an index: what `stage` was trained on is there as it was trained, or as it was
    packed, or else outdated."""
    built_on = stages.get(stage, {}).get("built_on", {})
    there = {name: (entry["sha256"], entry["trained"]) for name, entry in stages.items()}
    return next((name for name, sha in built_on.items() if sha not in there.get(name, (sha,))), None)


def folder_sha256(folder: Path, parts: Sequence[str] = (".",), digest: Callable[[Path], str] = sha256) -> str:
    """One hash of all files below a folder, or some folders in it: of their names and what is in them."""
    files = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    lines = (f"{path.relative_to(folder).as_posix()} {digest(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def from_dict(cls: type[T], values: Any) -> T:
    """Rebuild a config dataclass from its `asdict`; a config of an older version lacks fields, which keep defaults."""
    if not isinstance(values, dict):
        raise UserError(f"{values!r:.40} stands where the fields of {cls.__name__} should")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := set(values) - set(known):
        raise UserError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}; the bundle is of a newer version")
    return cls(
        **{
            name: from_dict(known[name].type, value) if is_dataclass(known[name].type) else value  # type: ignore
            for name, value in values.items()
        }
    )


def to_dict(config: Any) -> dict[str, Any]:
    return asdict(config)
