"""Training of one contender in turns, that can be killed and gone on with between any two of them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.measure import Setting, Step, arrange, clock
from drivesim.data.windows import WindowDataset, collate
from drivesim.files import atomic_path
from drivesim.training.latent import LatentVideoDiffusion


@dataclass
class Record:
    """What was measured of a run. Seconds are those of training alone, by `measure.clock`.

    losses     (seconds, held-out loss) at equal spacing in time
    distances  (seconds, distances by name) at some times
    """

    seconds: float = 0.0
    steps: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)
    distances: list[tuple[float, dict[str, float]]] = field(default_factory=list)


class Run:
    """A contender at one stage: the library's Lightning module, driven step by step without a trainer, since four of
    them take turns in one process. Windows and noise of a step follow from its number; the learning rate warms up and
    stays, and what is judged are averaged weights, so that the run may be read off at any time.
    """

    def __init__(self, module: LatentVideoDiffusion, windows: WindowDataset, setting: Setting) -> None:
        self.module, self.windows, self.setting = module, windows, setting
        self.record = Record()
        self.use(setting)

    def use(self, setting: Setting) -> None:
        """Start to train under a setting."""
        self.setting = setting
        arrange(self.module.denoiser, setting.channels_last)
        optimizer = self.module.configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)  # something is trained
        self.optimizer = optimizer
        self.trained = {name: p for name, p in self.module.denoiser.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}

    def step(self) -> None:
        stage, record = self.module.stage, self.record
        torch.manual_seed(record.steps)  # of dropout, so that a resumed run drops what it would have dropped
        first = record.steps * stage.batch_size
        batch = collate([self.windows[i] for i in range(first, first + stage.batch_size)])
        for group in self.optimizer.param_groups:
            group["lr"] = stage.lr * min((record.steps + 1) / max(stage.warmup_steps, 1), 1.0)
        with self.setting.active():
            loss = self.module.training_step(batch, record.steps)
        with self.setting.attention():
            loss.backward()
        self.module.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(stage.ema_decay, (1 + record.steps) / (10 + record.steps))  # as AveragedWeights in training
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), 1 - decay)
        record.steps += 1

    def turn(self, seconds: float) -> None:
        """Train for so long, to the end of a step, and note the held-out loss."""
        if not self.record.losses:
            self.record.losses.append((0.0, self.loss()))
        self.module.train()
        start = clock()
        while clock() - start < seconds:
            self.step()
        self.record.seconds += clock() - start
        self.record.losses.append((self.record.seconds, self.loss()))

    def loss(self) -> float:
        """On the same held-out windows, times and noise for every contender."""
        with self.averaged(), self.setting.active():
            return self.module.validation_loss()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside it the network has its averaged weights and is in evaluation mode."""
        kept = {name: p.detach().clone() for name, p in self.trained.items()}
        self._put(self.average)
        self.module.eval()
        try:
            yield
        finally:
            self._put(kept)
            self.module.train()

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])

    def save(self, path: Path) -> None:
        state = {f"average/{name}": tensor for name, tensor in self.average.items()}
        for name, parameter in self.trained.items():
            state[f"weight/{name}"] = parameter.detach()
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"{key}/{name}"] = self.optimizer.state[parameter][key]
        with atomic_path(path) as temporary:
            tensors = {name: tensor.contiguous() for name, tensor in state.items()}
            save_file(tensors, temporary, {"record": json.dumps(asdict(self.record))})

    def load(self, path: Path) -> None:
        """Go on after `save`."""
        state = load_file(path)
        self.record = read_record(path)
        self._put({name: state[f"weight/{name}"] for name in self.trained})
        for name, parameter in self.trained.items():
            self.average[name].copy_(state[f"average/{name}"])
            moments = {
                key: torch.empty_like(parameter).copy_(state[f"{key}/{name}"]) for key in ("exp_avg", "exp_avg_sq")
            }
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.record.steps)), **moments}


class Trial:
    """Steps of a run under settings that are being tried; the run is of no use for training afterwards."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def step(self, setting: Setting) -> Step:
        self.run.use(setting)
        return self.run.step


def read_record(path: Path) -> Record:
    with safe_open(path, "pt") as file:
        found = json.loads(file.metadata()["record"])
    found["losses"] = [tuple(point) for point in found["losses"]]
    found["distances"] = [tuple(point) for point in found["distances"]]
    return Record(**found)


def in_turns(
    runs: Mapping[str, Run],
    folder: Path,
    stage: str,
    turns: int,
    seconds: float,
    after: Callable[[str, Run], None],
) -> Iterator[tuple[str, int]]:
    """Train every run for so many turns, A B C A B C ..., so that what slows the machine for a while slows all alike.
    After each turn `after(name, run)` may look at the run, which is then saved to FOLDER/name/STAGE.safetensors: a
    race that was killed goes on from there. Yields the name and how many turns of all runs are done, at first too."""
    paths = {name: folder / name / f"{stage}.safetensors" for name in runs}
    for name, run in runs.items():
        if paths[name].exists():
            run.load(paths[name])

    def done(name: str) -> int:
        return min(max(len(runs[name].record.losses) - 1, 0), turns)

    while True:
        name = min(runs, key=done)
        yield name, sum(done(each) for each in runs)
        if done(name) == turns:
            return
        runs[name].turn(seconds)
        after(name, runs[name])
        runs[name].save(paths[name])
