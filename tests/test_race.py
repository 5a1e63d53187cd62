"""What makes the race a fair one, and that it can be killed. No time is asserted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import time_to_quality as command
from benchmarks.measure import Setting
from benchmarks.peers import MATCH, PEERS, Ports
from benchmarks.race.denoisers import NAMES, PeerDenoiser, entries, parameters
from benchmarks.race.field import Field
from benchmarks.race.judge import DISTANCES, Judge, held_out_drives
from benchmarks.race.run import Record, Run, in_turns
from benchmarks.race.verdict import at_equal_distance, first_reached, verdict
from drivesim import cli
from drivesim.clip import Layout
from drivesim.config import parse
from drivesim.diffusion.tasks import FLAGS
from drivesim.errors import UserError
from drivesim.models.denoiser import DenoiserConfig

TINY = DenoiserConfig(
    channels=4, block_out_channels=[32, 128], layers_per_block=[1, 1], attention=[False, True], token_dim=32
)
NETWORK = ["block_out_channels=[32,128]", "token_dim=32", "head_dim=32", "groups=16"]
WORDS = ["experiment=town_tiny", "config.data.height=64", "config.data.width=128"]
WORDS += [f"config.denoiser.{word}" for word in NETWORK]


@pytest.fixture(scope="module")
def store(make_store, tmp_path_factory):
    clips = [("train", 60, 30), ("train", 6, 1.875), ("val", 7, 1.875), ("val", 4, 1.875), ("val", 3, 1.875)]
    return make_store(tmp_path_factory.mktemp("race") / "store", clips)


@pytest.fixture(scope="module")
def bundle(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("race") / "run"
    steps = "config.stages.autoencoder.max_steps=2"
    cli.main(["train", "stage=autoencoder", *WORDS, f"data={store.root}", f"out={out}", steps])
    return out / "bundle"


@pytest.fixture(scope="module")
def options(store, bundle):
    return parse(command.TimeToQuality, [*WORDS, f"bundle={bundle}", f"data={store.root}"], "race")


@pytest.fixture(scope="module")
def field(store, bundle, options):
    return Field(str(bundle), str(store.root), options.config, held_out=4, seed=0)


@pytest.fixture(scope="module")
def networks(field):
    experiment = field.experiment
    context = experiment.denoiser.channels + FLAGS
    return {entry.name: entry for entry in entries(NAMES, experiment.denoiser, experiment.temporal, 3, context)}


def keyframe_run(field, entry, rate=1e-3) -> Run:
    module = field.keyframes(field.told(entry.build()), rate, freeze=entry.name in ("drivesim", "animatediff"))
    return Run(module, field.windows, Setting())


def peer(name: str, carried: bool = False) -> PeerDenoiser:
    architecture = next(peer for peer in PEERS if peer.name == name)
    ports = Ports(4, TINY.planes + 2 + 4 + FLAGS, 32, 3)
    torch.manual_seed(0)
    return PeerDenoiser(TINY, architecture, ports, (32, 32, 64, 64), carried)


def test_the_video_networks_have_our_number_of_parameters(field, networks):
    sizes = {name: parameters(keyframe_run(field, entry).module.denoiser) for name, entry in networks.items()}
    assert set(sizes) == set(NAMES)
    tokens = parameters(networks["drivesim"].build().tokens)
    for size in sizes.values():
        assert abs((size - tokens) / (sizes["drivesim"] - tokens) - 1) <= MATCH


def test_a_contender_starts_from_the_same_weights_every_time(networks):
    for entry in networks.values():
        first, second = (entry.build().state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_held_out_windows_times_and_noise_are_the_same_for_all(field, networks):
    """Networks that all answer nought have the same loss."""
    losses = set()
    for entry in networks.values():
        run = keyframe_run(field, entry)
        run.module.denoiser.forward = lambda x, *rest: torch.zeros_like(x)
        losses.add(run.loss())
    assert len(losses) == 1


def test_animatediff_starts_as_the_image_network_it_was_trained_as():
    denoiser = peer("animatediff").eval()
    x, timestep = torch.randn(2, 3, 4, 8, 16), torch.tensor([10, 900])
    layout = Layout.unknown(2, 3, slots=2).driven(torch.arange(3.0), 8.0)
    planes, tokens = denoiser.condition(layout, 8, 16)
    with torch.no_grad():
        before = denoiser(x, timestep, planes, tokens)
        denoiser.inflate(4 + FLAGS)
        known = denoiser.encode_context(torch.randn(2, 3, 4 + FLAGS, 8, 16))
        after = denoiser(x, timestep, planes, tokens, known)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_a_frozen_peer_trains_temporal_layers_and_the_input_alone():
    denoiser = peer("animatediff").inflate(4 + FLAGS, freeze=True)
    trained = {name for name, p in denoiser.named_parameters() if p.requires_grad}
    assert {name for name in trained if "motion_modules" not in name} == {
        "network.conv_in.weight",
        "network.conv_in.bias",
    }
    assert all("motion_modules" not in name or p.requires_grad for name, p in denoiser.named_parameters())


def test_peers_get_known_frames_as_their_authors_have_it():
    latents = torch.randn(2, 3, 4, 8, 16)
    mask = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    layout = Layout.unknown(2, 3).driven(torch.arange(3.0), 8.0)
    repeated = peer("svd").carry(latents, mask, layout)
    assert torch.equal(repeated[0], latents[0, [0, 1, 1]])
    alone = peer("modelscope").carry(latents, mask, layout)
    assert torch.equal(alone[0, :2], latents[0, :2])
    assert not alone[0, 2].any()
    assert not repeated[1].any()
    assert not alone[1].any()


def test_a_peer_that_carries_gets_what_ours_gets(field, networks):
    experiment = field.experiment
    context = experiment.denoiser.channels + FLAGS
    carried = entries(["svd"], experiment.denoiser, experiment.temporal, 3, context, carried=True)[0]
    layout = Layout.unknown(1, 3, slots=6).driven(torch.arange(3.0), 8.0)
    latents, mask = torch.randn(1, 3, 4, 8, 16), torch.tensor([[1.0, 0, 0]])
    ours, svd = (
        keyframe_run(field, entry).module.denoiser.carry(latents, mask, layout)
        for entry in (networks["drivesim"], carried)
    )
    assert torch.equal(ours, svd)
    assert svd[:, 1:].any()


def test_a_peer_is_told_how_far_the_car_has_come_since_the_window_began():
    layout = Layout.unknown(1, 3).driven(torch.tensor([5.0, 6.0, 7.0]), 10.0)
    moved = peer("svd").condition(layout, 8, 16)[0][0, :, -2:, 0, 0]
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0], [1, 0], [2, 0]]))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(field, networks, tmp_path, name):
    whole, first, second = (keyframe_run(field, networks[name]) for _ in range(3))
    for _ in range(2):
        whole.step()
    first.step()
    first.save(tmp_path / "run.safetensors")
    second.load(tmp_path / "run.safetensors")
    second.step()
    assert second.record.steps == 2
    for key in whole.trained:
        assert torch.equal(whole.trained[key], second.trained[key])
        assert torch.equal(whole.average[key], second.average[key])


def test_averaged_weights_are_there_inside_and_gone_outside(field, networks):
    run = keyframe_run(field, networks["drivesim"])
    run.step()
    name, weight = next((name, p) for name, p in run.trained.items() if not torch.equal(p, run.average[name]))
    trained = weight.detach().clone()
    with run.averaged():
        assert torch.equal(weight, run.average[name])
    assert torch.equal(weight, trained)


def test_contenders_take_turns_and_go_on_where_they_were(tmp_path):
    order = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name, self.record = name, Record()

        def turn(self, seconds: float) -> None:
            order.append(self.name)
            self.record.losses += [(0.0, 0.0)] * (2 if not self.record.losses else 1)

        def save(self, path) -> None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(str(len(self.record.losses)))

        def load(self, path) -> None:
            self.record.losses = [(0.0, 0.0)] * int(path.read_text())

    progress = in_turns({"a": Fake("a"), "b": Fake("b")}, tmp_path, "video", 2, 1.0, lambda name, run: None)
    assert [next(progress)[1] for _ in range(4)] == [0, 1, 2, 3]  # and killed
    rest = in_turns({"a": Fake("a"), "b": Fake("b")}, tmp_path, "video", 2, 1.0, lambda name, run: None)
    assert [done for _, done in rest] == [3, 4]
    assert order == ["a", "b", "a", "b"]


def test_held_out_drives_do_not_overlap_and_come_first_windows_first(store, options):
    drives = held_out_drives(store, "val", 10, options.config)
    assert len(drives) == 4  # of clips of 7, 4 and 3 keyframes: 2, 1 and 1 windows of 3
    assert all(drive.frames.shape == (3, 64, 128, 3) for drive in drives)
    assert not np.array_equal(drives[0].frames, drives[1].frames)
    assert len(held_out_drives(store, "val", 2, options.config)) == 2
    with pytest.raises(UserError, match="1 held-out windows"):
        held_out_drives(store, "val", 1, options.config)


def test_true_drives_are_at_no_distance_from_themselves_and_noise_is(store, field, options):
    drives = held_out_drives(store, "val", 4, options.config)
    judge = Judge(drives, field.autoencoder, options.config, options.config.sampler)
    assert all(value == pytest.approx(0, abs=1e-6) for value in judge.distances([d.frames for d in drives]).values())
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 128, 3), np.uint8)
    assert all(value > 1e-3 for value in judge.distances(list(noise)).values())
    assert judge.seconds == pytest.approx(4 * 2 / 1.875)


def test_the_time_to_reach_a_value_is_the_first_at_which_it_was_measured():
    points = [(0.0, 5.0), (10.0, 3.0), (20.0, 4.0), (30.0, 1.0)]
    assert first_reached(points, 3.0) == 10.0
    assert first_reached(points, 2.0) == 30.0
    assert first_reached(points, 0.5) is None


def test_the_verdict_compares_with_the_best_peer_at_its_end():
    def record(*losses: float) -> Record:
        at = [(10.0 * i, loss) for i, loss in enumerate(losses)]
        return Record(losses=at, distances=[(s, dict.fromkeys(DISTANCES, v)) for s, v in at])

    records = {"drivesim": record(5, 2, 1), "svd": record(5, 4, 3), "animatediff": record(5, 4, 2)}
    found = verdict(records, {})
    assert found["loss"]["best_peer"] == "animatediff"
    assert found["loss"]["share_of_time"] == 0.5
    assert found["fd_transnetv2"]["ours_reached_after"] == 10.0
    assert verdict({**records, "drivesim": record(5, 4, 4)}, {})["loss"]["share_of_time"] is None


def test_speed_is_compared_where_the_distance_is_that_of_the_best_peer():
    def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"speed": speed, "fd": distance} for speed, distance in pairs]

    speeds = {"drivesim": rows((8, 5), (4, 2), (1, 1)), "svd": rows((3, 4), (1, 2)), "animatediff": rows((9, 3))}
    found = at_equal_distance(speeds, "fd")
    assert found == {"distance": 2, "speed": {"drivesim": 4, "svd": 1, "animatediff": None}, "ratio": 4.0}


def test_the_command_races_reports_and_goes_on(store, bundle, tmp_path, capsys):
    words = [*WORDS, f"bundle={bundle}", f"data={store.root}", f"out={tmp_path / 'race'}", "contenders=[drivesim,svd]"]
    words += ["minutes=0.004", "image_minutes=0.002", "turn_seconds=0.1", "rates=[1e-3,2e-3]", "rate_seconds=0.1"]
    words += ["windows=2", "held_out=4", "speed_steps=[1]", "threads=1", "config.sampler.keyframe_steps=1"]
    command.main(words)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("drivesim", "svd", "fd_transnetv2: the best peer, svd"))
    results = json.loads((tmp_path / "race" / "results.json").read_text())
    assert set(results["verdict"]) == {"loss", *DISTANCES}
    assert len(results["contenders"]["svd"]["rates_tried"]) == 2
    assert len(results["contenders"]["svd"]["record"]["losses"]) == 3
    for name in ("curves.png", "samples/drivesim.png", "samples/svd.png"):
        assert (tmp_path / "race" / name).stat().st_size > 1000
    before = load_file(tmp_path / "race" / "svd" / "video.safetensors")
    command.main(words)
    after = load_file(tmp_path / "race" / "svd" / "video.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match="other options"):
        command.main([*words, "seed=1"])


@pytest.mark.parametrize(
    "word", ["minutes=0", "contenders=[svd]", "frozen=[sora]", "context=none", "rates=[]", "attention=all"]
)
def test_a_wrong_option_is_told_in_one_line(word, store, bundle, tmp_path):
    with pytest.raises(UserError, match=word.split("=")[0] if "sora" not in word else "sora"):
        command.main([f"bundle={bundle}", f"data={store.root}", f"out={tmp_path}", *WORDS, word])


def test_a_store_of_other_latents_is_told_before_anything_is_trained(store, bundle, options):
    other = replace(options.config, denoiser=replace(options.config.denoiser, channels=5))
    with pytest.raises(UserError, match="set them alike"):
        Field(str(bundle), str(store.root), other, 4, 0)
