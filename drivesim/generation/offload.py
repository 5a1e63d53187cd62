"""Networks that are too large for the memory of a device wait elsewhere, by accelerate: `offload=cpu` or `disk`."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from drivesim.errors import UserError
from drivesim.machine import probe


@contextmanager
def in_use(*loads: Callable[[], nn.Module], offload: str = "none") -> Iterator[list[Any]]:
    """Networks, loaded one after the other, for as long as the block lasts; then they are let go.

    offload  none: weights stay on the device; cpu, disk: they wait in main memory, on disk, and come to the device
             layer by layer. With disk at most one network is in memory as a whole, while it is loaded
    """
    folder = tempfile.mkdtemp(prefix="drivesim_offload_") if offload == "disk" else None
    try:
        yield [_placed(load(), offload, f"{folder}/{i}") for i, load in enumerate(loads)]
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _placed(network: nn.Module, offload: str, folder: str) -> nn.Module:
    from accelerate import cpu_offload, disk_offload  # a second that driving video need not wait

    network, device = network.requires_grad_(False).eval(), torch.device(probe().device)
    if offload == "none" or (offload == "cpu" and device.type == "cpu"):
        return network.to(device)
    if offload == "cpu":
        return cpu_offload(network, device)
    return disk_offload(network, folder, device)


def device_memory() -> int:
    """Bytes of memory of the device that networks run on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def telling_what_fits(what: str, *advice: str) -> Iterator[None]:
    """Out of memory inside the block becomes one line that names what would help.

    raises  UserError
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError, a CPU's has no class
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)
        if not full:
            raise
        raise UserError(f"out of memory {what}; try {', '.join(advice)}") from error
