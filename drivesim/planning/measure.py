"""What a training step computes and keeps, found by running it on tensors without memory (torch's meta device)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from drivesim.data.windows import Batch


@dataclass(frozen=True)
class Cost:
    """Of a training step of one process.

    flops    forward and backward, a multiplication and an addition counted as two
    kept     bytes that the forward pass keeps for the backward pass, without the weights, with their copies in bfloat16
    largest  of them those of the block that keeps most: what checkpointing computes again at one time
    """

    flops: int
    kept: int
    largest: int


# Autocast to bfloat16 as on a GPU: products in bfloat16, norms and errors in fp32 (PyTorch's "Autocast Op Reference").
DTYPES = {
    torch.bfloat16: [(F, "conv1d"), (F, "conv2d"), (F, "conv3d"), (F, "linear"), (torch, "matmul"), (torch, "einsum"),
                     (Tensor, "matmul"), (Tensor, "__matmul__"), (torch, "bmm"), (torch, "baddbmm")],
    torch.float32: [(F, "group_norm"), (F, "layer_norm"), (F, "softmax"), (F, "mse_loss"), (Tensor, "softmax")],
}  # fmt: skip


@contextmanager
def mixed_precision() -> Iterator[None]:
    """For the meta device, which torch's own autocast leaves alone; and attention as GPUs compute it."""
    on = [True]

    def cast(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if on[0]:
                args, kwargs = tree_map(lambda x: _cast(x, dtype), (args, kwargs))
            return function(*args, **kwargs)

        return called

    @contextmanager
    def autocast(device: str, dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
        before, on[0] = on[0], enabled
        yield
        on[0] = before

    with ExitStack() as stack:
        for dtype, functions in DTYPES.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, cast(getattr(owner, name), dtype)))
        stack.enter_context(patch.object(torch, "autocast", autocast))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", cast(_attention, torch.bfloat16)))
        yield


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Keeps its inputs and answer, where the meta device's would keep every product of q and k."""
    if bias is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    rows = [x.transpose(1, 2) for x in (q, k, v)]  # the kernel that takes a bias wants [B, L, heads, d] in memory
    bias = bias.expand(*q.shape[:-1], k.shape[-2])
    q, k, v = (x.contiguous().transpose(1, 2) for x in rows)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[0]


def training_step(module: pl.LightningModule, batch: Batch) -> Cost:
    """Run a step of a stage's module, on the meta device as its batch, forward and backward."""
    with _watched(module) as kept, _alone(module, kept), FlopCounterMode(display=False) as counter, mixed_precision():
        loss: Any = module.training_step(batch, 0)
        if isinstance(loss, Tensor):  # a module that does not take its own steps
            kept.backward(loss)
    return Cost(counter.get_total_flops(), kept.most, kept.largest)


def flops_of(function: Callable[[], Any]) -> int:
    """Of a call without gradient."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, mixed_precision():
        function()
    return counter.get_total_flops()


class _Step:
    """An optimizer that does nothing: there are no weights to change."""

    def __init__(self) -> None:
        self.optimizer = self

    def zero_grad(self) -> None: ...

    def step(self) -> None: ...


@contextmanager
def _alone(module: pl.LightningModule, kept: "_Kept") -> Iterator[None]:
    """Stand in for the trainer that a module talks to."""
    optimizers = [_Step(), _Step()] if getattr(module, "discriminator", None) is not None else _Step()
    stands: dict[str, Any] = dict(
        optimizers=lambda: optimizers, manual_backward=kept.backward, log=_ignore, log_dict=_ignore
    )
    with patch.multiple(module, **stands), patch.object(type(module), "global_step", 2**31):
        module.zero_grad()
        yield


def _ignore(*_: Any, **__: Any) -> None: ...


class _Kept:
    """Sums up what autograd keeps until it runs backward, each memory once, and finds the block that keeps most."""

    def __init__(self, weights: set[int]) -> None:
        self._weights, self._held, self.total, self.most, self.largest = weights, dict[int, Tensor](), 0, 0, 0

    def pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._weights and storage._cdata not in self._held:
            self._held[storage._cdata] = x  # so that its address serves no other tensor meanwhile
            self.total += storage.nbytes()
            self.most = max(self.most, self.total)
        return x

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self._held, self.total = {}, 0

    def watch(self, block: nn.Module) -> list[Any]:
        """Hooks that note what the block keeps, temporal layers that follow it included."""
        begun: list[int] = []

        def before(*_: Any) -> None:
            begun.append(self.total)

        def after(*_: Any) -> None:
            self.largest = max(self.largest, self.total - begun.pop())

        return [block.register_forward_pre_hook(before, prepend=True), block.register_forward_hook(after)]


@contextmanager
def _watched(module: nn.Module) -> Iterator[_Kept]:
    tensors = [*module.parameters(), *module.buffers()]
    kept = _Kept({tensor.untyped_storage()._cdata for tensor in tensors})
    blocks = [m for name, m in module.named_modules() if name.split(".")[-2:-1] in (["resnets"], ["attentions"])]
    handles = [handle for block in blocks for handle in kept.watch(block)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x):
            yield kept
    finally:
        for handle in handles:
            handle.remove()
