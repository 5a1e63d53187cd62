"""Weights shared out over processes (fully sharded data parallelism, torch's `fully_shard`) and put together again.

Every block of the image network, every temporal layer and every small network beside them is a unit: its weights are
gathered when it runs and let go afterwards, its gradients are shared out as its weights are, and the optimizer and the
averaged weights see shares alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from drivesim.models.denoiser import Denoiser

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Sharded(ModelParallelStrategy):
    """All processes share out the weights, and a checkpoint is one file of whole tensors, as under any other strategy:
    what was begun on eight GPUs goes on on one."""

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As every optimizer's: weights by their place among those that it trains; Lightning counts frozen ones too."""
        assert self.model is not None
        state = get_optimizer_state_dict(self.model, getattr(optimizer, "_optimizer", optimizer), options=WHOLE)
        places = {name: place for place, name in enumerate(self._trained)}
        return _renamed(state, places) if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        assert self.model is not None
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=WHOLE)
        names = dict(enumerate(self._trained))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=_renamed(state, names), options=WHOLE)
        return checkpoint

    @property
    def _trained(self) -> list[str]:
        assert self.model is not None
        return [name for name, weight in self.model.named_parameters() if weight.requires_grad]


def _renamed(state: dict[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other keys for its weights."""
    groups = [{**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[key]: value for key, value in state["state"].items()}, "param_groups": groups}


def shard(denoiser: Denoiser, mesh: DeviceMesh) -> None:
    """Share out the weights of a denoiser, in place."""
    denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # shares are cut from flat memory
    for unit in units(denoiser):
        fully_shard(unit, mesh=mesh)
    fully_shard(denoiser, mesh=mesh, reshard_after_forward=True)  # or sampling would leave the rest of it whole
    for method in ("condition", "encode_context"):  # these run weights too
        register_fsdp_forward_method(denoiser, method)


def units(denoiser: Denoiser) -> list[nn.Module]:
    """What is gathered at once: residual blocks and transformers of the image network, temporal layers, and the
    networks beside them."""
    blocks = (["resnets"], ["attentions"])
    found = [block for name, block in denoiser.unet.named_modules() if name.split(".")[-2:-1] in blocks]
    beside: list[nn.Module | None] = [denoiser.tokens]
    if denoiser.temporal is not None:
        beside += [*denoiser.temporal.layers.values(), denoiser.temporal.context]
    return found + [unit for unit in beside if unit is not None]


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the shares of all processes, which must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, shared out as `other` is."""
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
