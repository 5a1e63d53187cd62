"""The paper's ablations: what each of them changes, equal budgets, the arithmetic of ratios, and the command itself."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ablations import __main__ as command
from benchmarks.ablations.judge import MAKERS, Judge
from benchmarks.ablations.rows import COMPARISONS, MADE, RUNS, VIDEO, Comparison
from benchmarks.ablations.schedule import experiment_of, jobs, shared, shares, trained
from benchmarks.ablations.verdict import STAND_INS, Line, Ratio, agreement, over_seeds, ratio_of_distances, table
from drivesim.bundle import BUILT_ON, STAGES, Bundle
from drivesim.config import CONF
from drivesim.errors import UserError
from drivesim.training import train
from drivesim.training.failures import flat
from eval.distances import frechet
from eval.measure import FeatureTable

PAPER = {"temporal.head", "temporal.carry", "sampler.upsample_temperature"}
# What each choice in conf/ablation may change of the experiment.
CHANGED = {
    "none": set(),
    "paper": PAPER,
    "pixels": PAPER | {"autoencoder.kind", "autoencoder.factor", "autoencoder.channels", "denoiser.channels"},
    "end_to_end": PAPER | {"stages.image.max_steps", "stages.keyframes.train_image", "stages.interpolate.train_image"},
    "attention_only": PAPER | {"temporal.convolution"},
    "context_guidance": PAPER | {"sampler.context_guidance"},
    "image_discriminator": PAPER | {"stages.decoder.image_adversarial"},
}


def options_of(experiment: str, ablation: str) -> dict:
    return flat(asdict(experiment_of([f"experiment={experiment}"], ablation)), "")


@pytest.mark.parametrize("name", CHANGED)
def test_an_ablation_changes_what_it_names_and_nothing_else(name):
    base, found = options_of("town", "none"), options_of("town", name)
    assert {key.lstrip(".") for key in base if base[key] != found[key]} == CHANGED[name]


def test_every_ablation_is_tested_and_known_to_the_command():
    assert {path.stem for path in (CONF / "ablation").glob("*.yaml")} == set(CHANGED)
    assert {run.name for run in RUNS} | {made.sampler for made in MADE if made.sampler} == set(CHANGED)
    assert {name for comparison in COMPARISONS for name in (comparison.over, comparison.under)} == {
        made.name for made in MADE
    }
    assert {made.how for made in MADE} == set(MAKERS)


def test_an_unknown_ablation_is_told_with_those_there_are():
    with pytest.raises(UserError, match="unknown ablation 'sound'; available: attention_only, context_guidance"):
        experiment_of([], "sound")


@pytest.mark.parametrize("experiment", ["town", "town_tiny", "rds_512x1024"])
def test_every_video_model_gets_the_same_time(experiment):
    """What a run trains itself and what it takes from the first run is the same time for all, stage by stage where
    nothing is freed."""
    words = [f"experiment={experiment}"]
    base = experiment_of(words, "none").stages
    whole = sum(getattr(base, stage).share for stage in VIDEO)
    for run in RUNS:
        own = shares(run, experiment_of(words, run.name))
        taken = sum(getattr(base, stage).share for stage in VIDEO if stage in shared(run))
        assert sum(own.get(stage, 0) for stage in VIDEO) + taken == pytest.approx(whole)
    freed = shares(RUNS[2], experiment_of(words, "end_to_end"))
    assert freed["image"] == 0
    assert freed["keyframes"] / freed["interpolate"] == pytest.approx(base.keyframes.share / base.interpolate.share)


def test_the_budget_is_what_all_stages_take_together():
    todo = jobs(["experiment=town"], minutes=30)
    assert sum(job.seconds for job in todo) == pytest.approx(30 * 60)
    assert all(job.seconds > 0 for job in todo if trained(job.stage, experiment_of([], job.run.name)))
    assert {job.seconds for job in jobs(["experiment=town_tiny"], minutes=None)} == {None}
    assert [job.stage for job in todo[: len(STAGES)]] == list(STAGES)  # the first run, which the others take from


def test_a_run_takes_no_stage_that_is_built_on_its_own():
    for run in RUNS:
        assert not {*shared(run)} & {*run.trains}
        assert not any({*BUILT_ON.get(stage, ())} & {*run.trains} for stage in shared(run))


def rows(shift: float, groups: int = 8, seed: int = 0) -> FeatureTable:
    drawn = np.random.default_rng(seed).normal(shift, 1, (3 * groups, 4))
    return FeatureTable(list(drawn), [str(i // 3) for i in range(3 * groups)], [0.0] * (3 * groups))


def test_a_ratio_is_that_of_the_two_distances():
    near, far, real = rows(1, seed=1), rows(3, seed=2), rows(0, seed=3)
    found = ratio_of_distances(frechet, near, far, real)
    assert found.value == pytest.approx(frechet(near.matrix, real.matrix) / frechet(far.matrix, real.matrix))
    back = ratio_of_distances(frechet, far, near, real)
    assert found.value * back.value == pytest.approx(1)
    assert found.error / found.value == pytest.approx(back.error / back.value)
    assert found.value + 2 * found.error < 1


def test_a_set_is_as_far_as_itself_for_sure():
    found = ratio_of_distances(frechet, rows(1), rows(1), rows(0, seed=3))
    assert found == Ratio(pytest.approx(1), pytest.approx(0))
    assert agreement(found, 0.5) == "open"


def test_a_standard_error_is_that_of_other_draws_of_videos():
    """Over 60 draws of the videos, the ratio spreads by about as much as its standard errors say."""
    found = [
        ratio_of_distances(frechet, rows(1, 16, 3 * i), rows(2, 16, 3 * i + 1), rows(0, 16, 3 * i + 2))
        for i in range(60)
    ]
    spread = np.std([math.log(ratio.value) for ratio in found], ddof=1)
    told = np.mean([ratio.error / ratio.value for ratio in found])
    assert 0.6 < told / spread < 1.6


def test_three_videos_tell_no_standard_error():
    found = ratio_of_distances(frechet, rows(1, 3), rows(2, 3), rows(0, 3, 5))
    assert math.isnan(found.error)
    assert agreement(found, 0.5) == "open"


def test_several_trainings_are_averaged_and_their_spread_is_told():
    found = over_seeds([Ratio(0.5, 0.05), Ratio(2.0, 0.2)])
    assert found.value == pytest.approx(1.0)
    between = math.log(4) / math.sqrt(2) / math.sqrt(2)  # standard deviation of two logarithms, over the root of 2
    assert found.error == pytest.approx(math.hypot(0.1, between))
    assert over_seeds([Ratio(0.5, 0.05)]) == Ratio(pytest.approx(0.5), pytest.approx(0.05))


def test_agreement_needs_two_standard_errors():
    assert agreement(Ratio(0.8, 0.05), 0.46) == "yes"
    assert agreement(Ratio(0.8, 0.15), 0.46) == "open"
    assert agreement(Ratio(1.5, 0.1), 0.46) == "no"
    assert agreement(Ratio(1.5, 0.1), 1.2) == "yes"
    assert agreement(Ratio(1.5, 0.1), None) == "-"


def test_the_table_has_ours_the_papers_and_why():
    comparison = Comparison("a", "b", (1.0, 4.0), None, "since")
    lines = [Line(comparison, name, Ratio(0.5, 0.1), (0.5,), comparison.paper(STAND_INS[name])) for name in STAND_INS]
    first, *rest = table(lines).splitlines()[1:]
    assert first.split() == ["a", "/", "b", "fd_transnetv2", "0.500", "±", "0.100", "0.25", "yes", "since"]
    assert rest[-1].split() == ["fd_efficientnet_lite0", "0.500", "±", "0.100", "-", "-"]


def test_the_papers_ratios_are_those_of_its_figures():
    found = {c.name: tuple(round(value, 2) for kind in ("fvd", "fid") if (value := c.paper(kind))) for c in COMPARISONS}
    assert found["ours / pixels"] == (0.84, 0.81)
    assert found["ours / end_to_end"] == (0.46, 0.68)
    assert found["ours / attention_only"] == (0.76, 0.97)
    assert found["context_guidance / ours"] == (0.95, 1.12)
    assert found["ours / alpha_one"] == (1.03,)
    assert found["decoder_tuned / decoder_untuned"] == (0.08, 1.2)
    assert found["upsampler_temporal / upsampler_image"] == (0.27, 1.01)


@pytest.fixture(scope="module")
def words(make_store, tmp_path_factory) -> list[str]:
    clips = [("train", 44, 30), ("train", 6, 1.875), *[("val", 44, 30)] * 4]
    folder = tmp_path_factory.mktemp("ablations")
    store = make_store(folder / "store", clips)
    words = ["experiment=town_tiny", f"data={store.root}", f"out={folder / 'out'}", "clips=4", "frames=5"]
    words += ["decoder_frames=4", "upsampler_frames=2", "window=2", "show=1"]
    words += [f"config.stages.{stage}.max_steps=2" for stage in STAGES if stage != "image"]
    steps = ("keyframe", "interpolate", "image", "upsample")
    return words + [f"config.sampler.{name}_steps=1" for name in steps]


@pytest.mark.timeout(900)
def test_every_ablation_is_trained_judged_and_goes_on_after_a_kill(words, capsys, monkeypatch):
    out = Path(words[2].removeprefix("out="))
    environment = os.environ | {"PYTHONPATH": str(CONF.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.ablations", *words], env=environment,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    pixels = Bundle(out / "seed0" / "pixels" / "bundle")
    while process.poll() is None and not pixels.has("image"):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {stage: pixels.sha(stage) for stage in ("autoencoder", "image")}
    started = []
    inner = train.main
    monkeypatch.setattr(train, "main", lambda line: (started.append(line), inner(line)))
    command.main(words)
    printed = capsys.readouterr().out
    assert {stage: pixels.sha(stage) for stage in kept} == kept
    assert 0 < len(started) < len(jobs(words[:1], None)) - len(STAGES)  # nothing of the first run again
    results = json.loads((out / "results.json").read_text())
    assert len(results["ratios"]) == len(COMPARISONS) * len(STAND_INS)
    assert all(math.isfinite(row["ours"]) and row["ours"] > 0 for row in results["ratios"])
    assert set(results["sets"]["seed0"]) == {made.name for made in MADE}
    assert results["training"]["seed0"]["end_to_end"]["image"]["steps"] == 0
    assert results["training"]["seed0"]["pixels"]["autoencoder"]["steps"] == 0
    assert all(comparison.name in printed for comparison in COMPARISONS)
    assert (out / "ratios.png").stat().st_size > 1000
    assert "ours / end_to_end" in (out / "report.html").read_text()
    trained_before = len(started)
    command.main(words)  # all is there: nothing is trained or made again
    assert len(started) == trained_before
    assert json.loads((out / "results.json").read_text())["ratios"] == results["ratios"]
    with pytest.raises(UserError, match="other options"):
        command.main([*words, "seed=1"])


@pytest.mark.parametrize("word", ["budget_minutes=0", "seeds=0", "window=1", "decoder_frames=3", "real=x"])
def test_a_wrong_option_is_told_in_one_line(word, tmp_path):
    with pytest.raises(UserError, match=word.split("=")[0]):
        command.main([f"out={tmp_path}", word])


def test_too_few_held_out_clips_are_told(make_store, tmp_path):
    store = make_store(tmp_path / "store", [("val", 44, 30)] * 3)
    frames = {"drive": 30, "decoder": 45, "upsampler": 15}
    judge = Judge([], store, "val", tmp_path, clips=10, frames=frames, window=15, seed=0)
    with pytest.raises(UserError, match=r"3 held-out clips of 1\.0 s at 30 frames a second, 4 are needed"):
        judge.held_out(30.0, "drive")
    with pytest.raises(UserError, match="no val clip"):
        judge.held_out(30.0, "decoder")
