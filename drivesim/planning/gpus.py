"""The GPUs that a plan knows, and what of them a training step can count on."""

from dataclasses import dataclass

from drivesim.errors import UserError

KEPT_FREE = 0.1  # share of the memory for cuDNN's workspaces, what a step holds for a moment, and fragmentation


@dataclass(frozen=True)
class Gpu:
    """tflops: dense bfloat16 with fp32 accumulation, 10¹² a second, as the vendor states it (sparsity not counted);
    memory_gib: what is left to programs of the memory that it is sold with."""

    tflops: float
    memory_gib: float

    @property
    def usable_bytes(self) -> float:
        return self.memory_gib * 2**30 * (1 - KEPT_FREE)


# NVIDIA's data sheets: A100 (2021), H100 SXM5 (2023, 1,979 with sparsity), L40S (2023, 733 with sparsity), and the Ada
# GPU architecture white paper for the RTX 4090 (appendix A: 165.2 with fp32 accumulation).
GPUS = {
    "a100_40gb": Gpu(312.0, 39.4),
    "a100_80gb": Gpu(312.0, 79.1),
    "h100": Gpu(989.4, 79.1),
    "l40s": Gpu(362.0, 44.4),
    "rtx4090": Gpu(165.2, 23.5),
}


def find_gpu(name: str) -> Gpu:
    """raises UserError for a GPU that is not in the table"""
    if name not in GPUS:
        raise UserError(f"unknown gpu {name!r}; one of {', '.join(GPUS)}")
    return GPUS[name]
