"""Random numbers by sample: how a batch is cut does not matter, and they are as uniform and normal as they say."""

import pytest
import torch
from scipy import stats

from drivesim.diffusion.draws import Streams, choice, rand, randn, spread, stream

DRAWS = [
    lambda g: rand((len(g), 3), g),
    lambda g: randn((len(g), 4, 5), g),
    lambda g: choice([0.2, 0.3, 0.5], len(g), g),
    lambda g: spread(len(g), g),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_batch_meets_what_its_parts_meet_on_whatever_process(draw):
    whole = draw(Streams(7, range(8)))
    for ranks in (2, 4):
        parts = [draw(Streams(7, range(rank, 8, ranks))) for rank in range(ranks)]
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)
    assert torch.equal(torch.cat([draw(Streams(7, range(3))), draw(Streams(7, range(3, 8)))]), whole)
    assert not torch.equal(draw(Streams(8, range(8))), whole)


def test_a_second_draw_of_a_sample_is_another():
    streams = Streams(0, [5])
    assert not torch.equal(randn((1, 4), streams), randn((1, 4), streams))


def test_numbers_of_neighbouring_samples_are_independent_normal_and_uniform():
    normal = randn((2000, 2), Streams(3, range(2000)))
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([normal[:-1, 0], normal[1:, 0]]))[0, 1]) < 0.08  # 3.6 standard errors
    assert stats.kstest(rand((2000,), Streams(3, range(2000))).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("of", [lambda n: Streams(1, range(n)), lambda n: stream(1)])
def test_choices_come_up_in_proportion(of):
    counts = torch.bincount(choice([1.0, 0.0, 5.0, 4.0], 4000, of(4000)), minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]].numpy(), [400, 2000, 1600]).pvalue > 1e-3


@pytest.mark.parametrize("first", [0, 1000, 2**31 - 64])
def test_a_batch_is_spread_more_evenly_than_chance(first):
    def gap(values: torch.Tensor) -> float:
        """Largest stretch of 0..1 without a value."""
        return float(torch.cat([torch.zeros(1), values.sort().values, torch.ones(1)]).diff().max())

    placed = spread(32, Streams(0, range(first, first + 32)))
    assert gap(placed) < 2.7 / 32  # the golden ratio's bound; independent draws leave 4 / 32 on average
    assert 0 <= placed.min() <= placed.max() < 1


def test_one_generator_serves_a_batch_too_and_a_wrong_number_of_them_is_told():
    assert rand((4, 2), stream(0)).shape == (4, 2)
    assert spread(4, stream(0)).mul(4).floor().tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="3 generators for a batch of 4"):
        rand((4,), Streams(0, range(3)))
