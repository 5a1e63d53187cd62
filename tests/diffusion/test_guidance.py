"""Guidance against its formulas, in one call of the network or in several."""

from dataclasses import dataclass

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor
from torch.testing import assert_close

from drivesim.diffusion.guidance import Interval, Term, cat, guided

Z, TIMESTEP = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.full((2,), 500)


class Linear:
    """A network whose answer is z plus what it is told, and which counts its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, z: Tensor, timestep: Tensor, told: Tensor) -> Tensor:
        assert len(z) == len(timestep) == len(told)
        self.batches.append(len(z))
        return z + told


def told(*values: float) -> Tensor:
    """Conditions [2, 3, 4] that add up: (context, layout, text)."""
    return torch.full((2, 3, 4), float(sum(values)))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_one_term_is_classifier_free_guidance(scale, batched):
    answer = guided(Linear(), told(5), [Term(scale, told(0))], batched=batched)(Z, TIMESTEP)
    assert_close(answer, (Z + 0) + scale * ((Z + 5) - (Z + 0)))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("scales", [(2.0, 3.0, 1.5), (1.0, 3.0, 1.0), (0.0, 1.0, 2.0), (1.0, 1.0, 1.0)])
def test_every_condition_has_a_scale_of_its_own(scales, batched):
    worth = (5.0, 7.0, -2.0)  # of context, layout, text
    terms = [Term(s, told(*worth[:i], *worth[i + 1 :])) for i, s in enumerate(scales)]
    answer = guided(Linear(), told(*worth), terms, batched=batched)(Z, TIMESTEP)
    # a linear network's conditions are independent: each counts as often as its scale says, whatever the others are
    assert_close(answer, Z + sum(s * w for s, w in zip(scales, worth, strict=True)), atol=1e-5, rtol=1e-5)


def test_a_scale_of_one_asks_nothing_more():
    network = Linear()
    guided(network, told(5), [Term(1.0, told(0)), Term(1.0, told(1))])(Z, TIMESTEP)
    assert network.batches == [2]


@pytest.mark.parametrize(("batched", "batches"), [(True, [6]), (False, [2, 2, 2])])
def test_all_terms_are_asked_in_one_call_or_one_after_the_other(batched, batches):
    network = Linear()
    guided(network, told(5), [Term(2.0, told(0)), Term(3.0, told(1))], batched=batched)(Z, TIMESTEP)
    assert network.batches == batches


@pytest.mark.parametrize(("timestep", "applies"), [(0, False), (249, False), (250, True), (749, True), (750, False)])
def test_guidance_applies_within_its_interval_and_costs_nothing_outside(timestep, applies):
    network = Linear()
    denoise = guided(network, told(5), [Term(2.0, told(0))], Interval(0.25, 0.75))
    assert_close(denoise(Z, torch.full((2,), timestep)), Z + (10 if applies else 5))
    assert network.batches == [4 if applies else 2]


def test_the_whole_interval_holds_every_timestep():
    assert all(Interval().holds(torch.tensor([t])) and Interval(0, 1).holds(torch.tensor([t])) for t in (0, 500, 999))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescaled_guidance_is_that_of_diffusers(share):
    network = lambda z, timestep, told: z * told  # noqa: E731
    with_all, without = told(5), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    answer = guided(network, with_all, [Term(3.0, without)], rescale=share)(Z, TIMESTEP)
    plain = guided(network, with_all, [Term(3.0, without)])(Z, TIMESTEP)
    assert_close(answer, rescale_noise_cfg(plain, Z * 5, share))
    if share == 1:
        assert_close(answer.std((1, 2)), (Z * 5).std((1, 2)))


@dataclass(frozen=True)
class Told:
    planes: Tensor
    features: dict[tuple[int, int], Tensor]
    tokens: Tensor | None = None


def test_conditions_of_any_structure_are_batched():
    one = Told(torch.zeros(2, 3), {(4, 4): torch.zeros(6, 1)})
    other = Told(torch.ones(2, 3), {(4, 4): torch.ones(6, 1)})
    both = cat([one, other])
    assert both.planes.tolist() == [[0] * 3] * 2 + [[1] * 3] * 2
    assert both.features[4, 4].flatten().tolist() == [0] * 6 + [1] * 6
    assert both.tokens is None


def test_a_condition_left_out_by_none_is_told():
    one, other = Told(torch.zeros(2, 3), {}), Told(torch.zeros(2, 3), {}, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="unknown value"):
        cat([other, one])
