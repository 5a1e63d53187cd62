"""What makes the benchmark a fair one. No time is asserted."""

import json
import math
import statistics
import time

import pytest
import torch

from benchmarks import autoencoder, big_index, throughput
from benchmarks import denoiser as command
from benchmarks import profile as profiler
from benchmarks.measure import (
    Setting,
    Workload,
    best_setting,
    in_turns,
    matmul_peak,
    median_ratio,
    operations,
    peak_mib,
    saved_mib,
    within,
)
from benchmarks.memory import memory
from benchmarks.networks import Contender, Inputs, contenders
from benchmarks.peers import MATCH, PEERS, Architecture, Ports, attention_like, candidates, heads
from data_prep.inspect.verify import damage
from data_prep.town.source import TownConfig
from drivesim.data.store import ClipStore
from drivesim.diffusion.schedule import ScheduleConfig
from drivesim.diffusion.tasks import FLAGS, Interpolate, Predict
from drivesim.diffusion.upsample import Upsample
from drivesim.errors import UserError
from drivesim.generation.pipeline import DrivingPipeline
from drivesim.generation.samplers import SamplerConfig
from drivesim.models import temporal
from drivesim.models.autoencoder import AutoencoderConfig
from drivesim.models.denoiser import DenoiserConfig
from drivesim.models.temporal import TemporalAttention, TemporalConv

TINY = DenoiserConfig(
    channels=4, block_out_channels=[32, 128], layers_per_block=[1, 1], attention=[False, True], token_dim=32
)


@pytest.fixture(scope="module")
def networks():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return contenders(TINY, Inputs.random(1, 2, 4, 8, 16, seed=0))


def test_peers_have_our_number_of_parameters(networks):
    ours, *peers = networks
    for peer in peers:
        assert abs(peer.parameters / ours.parameters - 1) <= MATCH


def test_the_temporal_weights_of_every_network_hold_no_weight_of_its_image_network(networks):
    """By the names that diffusers and we give them; nothing temporal is left out either."""
    image = ("conv_in", "conv_out", "conv_norm_out", "resnets", "spatial", "samplers", "time_embedding")
    for network in networks:
        trained = [name for name, p in network.module.named_parameters() if network.temporal(name)]
        assert trained
        if network.name == "drivesim":
            assert {name.split(".")[0] for name in trained} == {"temporal"}
        else:
            kinds = ("temporal", "time_mixer", "time_pos_embed", "motion_modules", "temp_", "transformer_in")
            assert all(any(kind in name for kind in kinds) for name in trained)
            assert not any(name.startswith(image[:3]) or "spatial_res" in name for name in trained)
            assert not any("attentions" in n and ".transformer_blocks" in n and "temp_" not in n for n in trained)
        rest = [name for name, _ in network.module.named_parameters() if not network.temporal(name)]
        assert not any(kind in name for kind in ("motion", "time_mixer", "temp", "transformer_in") for name in rest)


@pytest.mark.parametrize("index", range(4))
def test_a_temporal_step_moves_temporal_weights_and_no_other(networks, index):
    network = networks[index]
    before = {name: p.detach().clone() for name, p in network.module.named_parameters()}
    workload = Workload(network, "temporal")
    for group in workload.optimizer.param_groups:
        group["lr"] = 0.1
    workload.step(Setting())()
    moved = {name for name, p in network.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(network.temporal(name) for name in moved)


@pytest.mark.parametrize("index", range(4))
def test_every_network_answers_in_the_shape_of_its_latents_under_every_setting(networks, index):
    network = networks[index]
    workload = Workload(network, "denoise")
    plain = network.denoise()
    assert plain.shape == (1, 2, 4, 8, 16)
    for setting in (Setting(channels_last=True), Setting(plain=True)):
        workload.step(setting)()
        assert torch.allclose(network.denoise(), plain, atol=1e-3)


def test_operations_of_a_product_are_counted():
    a, b = torch.randn(8, 16, requires_grad=True), torch.randn(16, 4, requires_grad=True)
    assert operations(lambda: (a @ b).sum().backward()) * 1e9 == 3 * 2 * 8 * 16 * 4  # forward, and backward to both


MIB = 2**18  # fp32 numbers


def test_what_a_product_saves_and_holds_is_measured():
    a, weight = torch.randn(MIB // 512, 512), torch.randn(512, 512, requires_grad=True)  # 1 MiB each

    def step() -> None:
        hidden = a @ weight  # 1 MiB, kept by tanh as its output
        hidden.tanh().sum().backward()
        weight.grad = None

    assert saved_mib(step, [weight]) == pytest.approx(2, abs=0.01)  # a, and the output of tanh
    assert 3 <= peak_mib(step) <= 5  # hidden, the output, its gradient and that of hidden; not a, which was there


def test_checkpointing_saves_memory_where_a_network_has_it():
    inputs = Inputs.random(1, 2, 4, 8, 16, seed=0)
    x, tokens = torch.randn(1, 2, 12, 8, 16), torch.randn(1, 2, 3, 32)

    def small(architecture: Architecture) -> Contender:
        module = architecture.build(Ports(4, 8, 32, 2), (32, 32, 32, 32))

        def call() -> torch.Tensor:
            return architecture.call(module, x, inputs.timestep, tokens)

        able = architecture.name != "modelscope"
        checkpoint = module.enable_gradient_checkpointing if able else None
        return Contender(architecture.name, (32,) * 4, module, call, call, architecture.is_temporal, checkpoint)

    settings = {("all", architecture.name): Setting() for architecture in PEERS[1:]}
    rows = {row.network: row for row in memory([small(architecture) for architecture in PEERS[1:]], settings)}
    assert rows["modelscope"].checkpointed_peak is None
    able = rows["animatediff"]
    assert able.checkpointed_saved < able.saved <= able.peak
    assert able.checkpointed_times > 0


def test_a_step_that_takes_too_long_is_stopped_and_left_out():
    def slow() -> None:
        while True:
            time.sleep(0.01)

    class Load:
        def step(self, setting: Setting):
            return slow if setting.compiled else (lambda: None)

    assert within(5, lambda: None)
    assert not within(0.05, slow)
    assert not best_setting(Load(), [False], compile_seconds=0.05).compiled


def test_peers_have_attention_where_ours_has_it_or_as_published():
    assert attention_like([False, True, True]) == (False, True, True, False)
    ports = Ports(4, 8, 32, 2, attention_like([False, True]))
    for architecture in PEERS:
        module = architecture.build(ports, (32, 32, 64, 64))
        with_attention = [hasattr(block, "attentions") and len(block.attentions) > 0 for block in module.down_blocks]
        assert with_attention == [False, True, False, False]
        assert [hasattr(block, "attentions") for block in module.up_blocks] == [False, False, True, False]


def test_steps_run_in_turns():
    seen: list[str] = []
    seconds = in_turns([lambda: seen.append("a"), lambda: seen.append("b")], rounds=3)
    assert seen == ["a", "b"] * 4  # the first turn warms up
    assert [len(taken) for taken in seconds] == [3, 3]


def test_a_ratio_is_the_median_of_paired_ratios_and_blind_to_a_slow_moment():
    calm = [1.0, 1.0, 1.0, 1.0, 1.0]
    busy = [1.0, 5.0, 1.0, 1.0, 1.0]
    assert median_ratio([0.5 * slow for slow in busy], busy) == 0.5
    assert median_ratio([0.5 * s for s in calm], busy) == statistics.median([0.5, 0.1, 0.5, 0.5, 0.5])


def test_head_counts_divide_the_widths_and_keep_the_published_size():
    assert heads((320, 640, 1280, 1280)) == (5, 10, 20, 20)
    assert all(w % n == 0 for w in range(8, 400, 8) for n in heads((w,)))


def test_candidate_widths_hold_the_published_ratio():
    assert (40, 80, 160, 160) in candidates(160, 8)
    assert all(w % 32 == 0 for widths in candidates(160, 32) for w in widths)
    assert all(list(widths) == sorted(widths) for widths in candidates(160, 32))


def test_latents_that_the_peers_cannot_halve_three_times_are_refused():
    with pytest.raises(UserError, match="12x16"):
        contenders(TINY, Inputs.random(1, 2, 4, 12, 16, seed=0))


def test_the_matmul_peak_is_a_positive_speed():
    assert matmul_peak(False, size=64, repeats=2) > 0


def test_the_command_reports_every_network_and_our_ratio(tmp_path, capsys):
    out = tmp_path / "report.json"
    small = ["channels=4", "block_out_channels=[32,128]", "layers_per_block=[1,1]", "attention=[false,true]"]
    clip = ["batch=1", "frames=[2,4]", "height=8", "width=16"]
    short = ["rounds=1", "dtype=fp32", "modes=[denoise]", "threads=1", f"out={out}"]
    command.main([*clip, *short, *(f"config.denoiser.{word}" for word in small)])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("drivesim", "svd", "animatediff", "modelscope"))
    report = json.loads(out.read_text())
    assert [clip["shape"][1] for clip in report["clips"]] == [2, 4]
    assert all(clip["ratio_to_fastest_peer"]["denoise"] > 0 for clip in report["clips"])


@pytest.mark.parametrize(
    "word", ["modes=[sleep]", "dtype=int8", "rounds=0", "frames=[0]", "attention=all", "config.denoiser.token_dim=0"]
)
def test_a_wrong_option_is_told_in_one_line(word):
    with pytest.raises(UserError, match=word.split("=")[0].split(".")[-1]):
        command.main([word])


def test_only_the_frames_after_the_warm_up_are_timed():
    drawn = []
    frames = (drawn.append(i) or torch.zeros(1) for i in range(100))
    assert throughput.per_frame(frames, 3, 5, "test") >= 0
    assert len(drawn) == 8


def test_every_stage_of_a_cascade_gets_a_cost():
    def tiny(channels: int, planes: int, context: int | None = None):
        config = DenoiserConfig(channels, planes, [16, 16], [1, 1], [False, False], token_dim=0, groups=8)
        model = config.build()
        return model if context is None else model.inflate(context)

    pipeline = DrivingPipeline(
        autoencoder=AutoencoderConfig("patch", 4, 8, 16, 1).build().requires_grad_(False),
        image=tiny(4, 12), keyframes=tiny(4, 12, 4 + FLAGS), interpolator=tiny(4, 12, 4 + FLAGS),
        upsampler=tiny(48, 25, 0),
        schedule=ScheduleConfig(), predict=Predict(frames=3), interpolate=Interpolate(),
        upsample=Upsample(factor=2, patch=4), low_height=32, low_width=64, key_fps=1.875, slots=3,
        config=SamplerConfig(image_steps=1, keyframe_steps=1, interpolate_steps=1, upsample_steps=1),
    )  # fmt: skip
    costs = throughput.stages(pipeline, seed=0)
    assert list(costs) == ["keyframes", "interpolation, coarse", "interpolation, fine", "decoder"]
    assert all(seconds > 0 for seconds in costs.values())


def test_every_part_of_the_town_gets_a_cost_and_the_whole_costs_more_than_its_parts():
    costs = throughput.town(TownConfig(routes=1, sparse_routes=1, seconds=0.2, height=64, width=128))
    assert list(costs) == ["building", "rendering", "encoding", "prepare"]
    assert 0 < sum(list(costs.values())[:3]) < costs["prepare"]


def test_the_large_store_is_whole_but_for_its_videos_and_gives_windows(tmp_path):
    options = big_index.IndexBenchmark(clips=45, windows=3, where="cars > 5")
    big_index.write_store(tmp_path, options)
    assert all("is missing" in line for line in damage(ClipStore(tmp_path)))
    index = ClipStore(tmp_path).index
    assert big_index.query(tmp_path, options)["found"] == (index["crowdedness"] > 5).sum() > 0
    assert min(big_index.balanced(tmp_path, options).values()) > 0
    assert big_index.peak_mib() > 10


def test_a_store_that_is_not_there_is_told_before_anything_is_measured(tmp_path):
    with pytest.raises(UserError, match="no clip store"):
        throughput.main([f"store={tmp_path}"])


def test_video_that_is_rebuilt_without_error_is_judged_so_and_what_flickers_is_found():
    real = torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    real = torch.nn.functional.interpolate(real, (64, 128), mode="bicubic").clamp(-0.8, 0.8).expand(8, -1, -1, -1)
    flashing = real + 0.1 * torch.tensor([1.0, -1.0]).repeat(4)[:, None, None, None]
    perfect, wrong = autoencoder.judge([real], [real]), autoencoder.judge([real], [flashing])
    assert (perfect["psnr"], perfect["stlpips"], perfect["change"]) == (60, 0, float("inf"))
    assert wrong["psnr"] == pytest.approx(10 * math.log10(4 / 0.1**2), abs=0.1)
    assert wrong["change"] == pytest.approx(10 * math.log10(4 / 0.2**2), abs=0.1)
    assert wrong["flicker_dis"] > perfect["flicker_dis"] + 0.05


def test_psnr_along_the_training_is_the_mean_of_each_sixth(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,psnr\n" + "".join(f"{i},{float(i)}\n{i},\n" for i in range(12)))
    assert list(autoencoder.along(tmp_path / "metrics.csv")) == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]


def profiled_words(out) -> list[str]:
    small = ["channels=4", "block_out_channels=[32,64]", "layers_per_block=[1,1]", "attention=[false,true]"]
    return [
        *("frames=[2]", "sizes=[8x16]", "dtype=fp32", "threads=1", f"out={out}"),
        *(f"config.denoiser.{word}" for word in small),
    ]


def test_the_time_of_a_step_is_shared_out_among_all_kinds_of_layers(tmp_path, capsys):
    profiler.main(profiled_words(tmp_path / "profile"))
    found = json.loads((tmp_path / "profile.json").read_text())["ms"]["2 x 8x16"]
    kinds = {*profiler.KINDS.values(), profiler.OPTIMIZER}
    assert kinds <= set(found)
    assert all(found[kind] > 0 for kind in kinds)
    assert found[profiler.REST] < 0.3 * sum(found.values())  # nearly all of it, backward passes too, has an owner
    assert all(kind in capsys.readouterr().out for kind in ["step"])
    assert (tmp_path / "profile.png").stat().st_size > 1000


def test_backward_operations_belong_to_the_layer_whose_forward_pass_they_are_of():
    conv, attention = TemporalConv(64), TemporalAttention(64)
    run, z = temporal.Run(frames=4, features={}), torch.randn(4, 64, 8, 8)

    def share(train_conv: bool) -> float:
        conv.requires_grad_(train_conv)

        def step() -> None:
            attention(conv(z, run), run).square().mean().backward()

        found = profiler.by_kind(step)
        return found["temporal convolution"] / sum(found.values())

    assert share(train_conv=True) > 1.3 * share(train_conv=False)


@pytest.mark.parametrize("word", ["sizes=[8]", "sizes=[6x16]", "mode=sleep", "frames=[]"])
def test_a_wrong_option_of_the_profile_is_told_in_one_line(word):
    with pytest.raises(UserError, match=word.split("=")[0]):
        profiler.main([word])
