"""The memory of generation does not depend on the length of the video."""

import gc
import subprocess
import sys

import pytest
import torch

from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import FLAGS, Interpolate, Predict
from drivesim.diffusion.upsample import Upsample
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig
from drivesim.generation.writer import VideoWriter
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.conditioning import PLANES, POSITIONS
from drivesim.models.denoiser import DenoiserConfig

# In a process of its own, since malloc's threshold cannot be given back. Small blocks that stay come between large ones
# that go, as latents that wait for their turn do between the activations of the upsampler.
CHURN = """
import sys
import numpy as np
from drivesim.machine import return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "set":
    return_freed_memory()
before, kept = resident(), []
for _ in range(3):
    large = []
    for _ in range(8):
        large.append(np.ones(12 << 20, np.uint8))
        kept.append(np.ones(100_000, np.uint8))
    del large
print((resident() - before) >> 20)
"""


def tiny_pipeline() -> DrivingPipeline:
    def network(channels: int, planes: int, context: int | None = None):
        config = DenoiserConfig(channels, planes, [16, 16], [1, 1], [False, False], token_dim=0, groups=8)
        model = config.build()
        return (model if context is None else model.inflate(context)).eval().requires_grad_(False)

    upsample = Upsample(factor=2, patch=4)
    return DrivingPipeline(
        autoencoder=AutoencoderConfig("patch", 4, 8, 16, 1).build().eval().requires_grad_(False),
        image=network(4, PLANES + POSITIONS), keyframes=network(4, PLANES + POSITIONS, 4 + FLAGS),
        interpolator=network(4, PLANES + POSITIONS, 4 + FLAGS),
        upsampler=network(upsample.channels, upsample.planes, 0),
        schedule=ScheduleConfig(), predict=Predict(frames=3), interpolate=Interpolate(), upsample=upsample,
        low_height=32, low_width=64, key_fps=1.875, slots=3,
        config=SamplerConfig(image_steps=1, keyframe_steps=1, interpolate_steps=1, upsample_steps=1),
    )  # fmt: skip


def run_python(code: str, *words: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout


def live_bytes() -> int:
    """Bytes of all tensors that Python still reaches."""
    found = (o for o in gc.get_objects() if isinstance(o, torch.Tensor))
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in found)}.values())


def test_a_long_video_holds_no_more_tensors_than_a_short_one(tmp_path):
    pipeline, most = tiny_pipeline(), []
    for seconds in (2, 6):
        held = []
        with VideoWriter(tmp_path / f"{seconds}.mp4", pipeline.fps, pipeline.height, pipeline.width) as writer:
            for i, frame in enumerate(pipeline(start=None, layout=None, seconds=seconds, seed=0)):
                writer.write(frame)
                if i % 20 == 19:
                    held.append(live_bytes())
        most.append(max(held))
    kept = 120 * frame.nbytes  # what a reference to each further frame would cost
    assert most[1] - most[0] < kept / 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets glibc's malloc")
def test_memory_of_large_blocks_goes_back_to_the_system():
    assert int(run_python(CHURN, "set")) < 24
    assert int(run_python(CHURN, "unset")) > 60  # else nothing needs to be set any more
