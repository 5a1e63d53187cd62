"""A stage of the cascade as an iterator that can be stopped between two frames, and go on in another process."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from drivesim.clip import to_uint8
from drivesim.generation.costs import Cost, Meter

Kept = dict[str, Any]  # tensors and whole numbers, bounded whatever the length of the video
Step = Callable[[Kept], Sequence[Tensor]]
LENGTH = "length"


class Stage(Iterator[Tensor]):
    """Frames one by one, made some at a time.

    name    tells it from the others of a cascade
    step    given what is kept, empty at first: the frames that come next, of which there are none at the end. It keeps,
            in place, what it needs for those after them
    source  where its frames come from, if from another stage
    """

    def __init__(self, name: str, step: Step, source: Iterator[Tensor] | None = None) -> None:
        self.name, self.step, self.source = name, step, source
        self.kept: Kept = {}
        self.ready: deque[Tensor] = deque()  # made, and not asked for yet
        self.meter = Meter()
        self.spent = Cost()  # with what its source spent meanwhile

    def __next__(self) -> Tensor:
        if not self.ready:
            before = self.meter.read()
            # Contiguous, as what is stored and loaded again: a layout in memory may decide how sums are rounded.
            self.ready.extend(frame.contiguous() for frame in self.step(self.kept))
            self.kept.update({k: v.contiguous() for k, v in self.kept.items() if isinstance(v, Tensor)})
            self.spent += self.meter.read() - before
        if not self.ready:
            raise StopIteration
        return self.ready.popleft()

    def state(self) -> dict[str, Tensor]:
        """All that the frames to come depend on, and what those before took: copies, on the CPU."""
        state = {f"kept.{name}": torch.as_tensor(value).cpu().clone() for name, value in self.kept.items()}
        if self.ready:
            state["ready"] = torch.stack(list(self.ready)).cpu()
        return state | {"spent": self.spent.tensor()}

    def restore(self, state: dict[str, Tensor], device: str) -> None:
        """Go on where `state` was taken, on `device`."""
        kept = {key.removeprefix("kept."): value for key, value in state.items() if key.startswith("kept.")}
        self.kept = {name: value.to(device) if value.dim() else int(value) for name, value in kept.items()}
        self.ready = deque(state["ready"].to(device).unbind() if "ready" in state else ())
        self.spent = Cost.of(state["spent"])


def take(frames: Iterator[Tensor], count: int) -> Stage:
    """The first `count` of the frames, of which no more are asked for."""

    def one(kept: Kept) -> Sequence[Tensor]:
        kept["taken"] = kept.get("taken", 0) + 1
        return [next(frames)] if kept["taken"] <= count else ()

    return Stage(LENGTH, one, frames)


class Rollout(Iterator[Tensor]):
    """Frames uint8 [3, H, W] on the CPU, of the last of some stages that feed each other.

    meter  counts what their networks answer
    """

    def __init__(self, last: Stage, meter: Meter) -> None:
        self.last = last
        for stage in self.stages():
            stage.meter = meter

    def __next__(self) -> Tensor:
        return to_uint8(next(self.last)).cpu()

    def stages(self) -> list[Stage]:
        """In the order that a frame goes through them."""
        chain = [self.last]
        while isinstance(source := chain[0].source, Stage):
            chain.insert(0, source)
        return chain

    def state(self) -> dict[str, Tensor]:
        """Everything that the frames to come depend on beside the networks and what was asked for; bounded."""
        return {f"{stage.name}.{key}": value for stage in self.stages() for key, value in stage.state().items()}

    def restore(self, state: dict[str, Tensor], device: str) -> None:
        """Go on after the frame that `state` was taken after, by a rollout of the same networks, seed and so on."""
        for stage in self.stages():
            begin = f"{stage.name}."
            own = {key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)}
            stage.restore(own, device)

    def costs(self) -> dict[str, Cost]:
        """What each stage took by itself."""
        stages = self.stages()
        before = [Cost(), *(stage.spent for stage in stages)]
        own = {stage.name: stage.spent - less for stage, less in zip(stages, before, strict=False)}
        return {name: cost for name, cost in own.items() if name != LENGTH}
