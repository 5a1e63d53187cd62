"""Every condition by itself: what it draws and says, that it reaches the answer, and that left out it does not."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from drivesim.clip import CLASSES, NO_BOX, Layout
from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError
from drivesim.models.conditioning import (
    PLANES,
    POSITIONS,
    LayoutTokens,
    drop,
    feature_count,
    label_features,
    plane_count,
    rasterise,
    renumbered,
)
from drivesim.models.conditions import CODE, CONDITIONS, USUAL, check_known, chosen, closeness, codes, without
from drivesim.models.denoiser import Denoiser, DenoiserConfig

ALL = list(CONDITIONS)
CAR = CLASSES.index("car")


def frames(count: int = 2, seed: int = 0) -> Layout:
    """[1, count] frames of two boxes of which all is known; another seed, another value of every condition."""
    rng = torch.Generator().manual_seed(seed)
    corners = torch.rand(1, count, 3, 2, 2, generator=rng).sort(-2).values.flatten(-2)
    layout = replace(
        Layout.unknown(1, count, slots=3),
        boxes=corners,
        classes=torch.tensor([[[CAR, 3, NO_BOX]]]).expand(1, count, 3).clone(),
        tracks=torch.tensor([[[7 + seed, 11 + seed, NO_BOX]]]).expand(1, count, 3).clone(),
        known=torch.ones(1, count).bool(),
        weather=torch.full((1, count), seed % len(WEATHERS)),
        solids=torch.rand(1, count, 3, 5, generator=rng) * 10 + 2,
    )
    labels = {
        name: torch.rand(1, count, generator=rng) for name in ("night", "crowdedness", "speed", "turn", "steering")
    }
    return replace(layout, **labels)


def network(conditions: list[str], tokens: bool = True) -> Denoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(
        channels=4, planes=plane_count(conditions) + POSITIONS, block_out_channels=[16, 16], layers_per_block=[1, 1],
        attention=[False, tokens], token_dim=16 if tokens else 0, head_dim=8, groups=8, conditions=conditions,
    )  # fmt: skip
    return config.build().eval()


@torch.no_grad()
def answer(model: Denoiser, layout: Layout) -> torch.Tensor:
    x = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return model(x, torch.tensor([500]), *model.condition(layout, 8, 8))


def changed(layout: Layout, name: str, other: Layout) -> Layout:
    """`layout` with one condition as `other` tells it."""
    fields = {"boxes": ("boxes",), "solids": ("solids",), "tracks": ("tracks",)}.get(name, (name,))
    return replace(layout, **{field: getattr(other, field) for field in fields})


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_a_condition_reaches_the_answer_and_one_that_is_left_out_does_not(name, tokens):
    model, one = network(ALL, tokens), frames()
    other = changed(one, name, frames(seed=1))
    assert not torch.equal(answer(model, one), answer(model, other))
    assert not torch.equal(answer(model, one), answer(model, without(one, [name])))
    assert torch.equal(answer(model, without(one, [name])), answer(model, without(other, [name])))


@pytest.mark.parametrize("name", [name for name in ALL if name != "boxes"])
def test_a_model_that_is_not_told_a_condition_does_not_look_at_it(name):
    model, one = network([other for other in ALL if other != name]), frames()
    assert torch.equal(answer(model, one), answer(model, changed(one, name, frames(seed=1))))


def test_forgetting_one_condition_leaves_the_others_as_they_are():
    one = frames()
    for name in ALL:
        left = {other: CONDITIONS[other].told(without(one, [name])).all() for other in ALL}
        hidden = {other for other in ALL if name in (other, CONDITIONS[other].needs)}
        assert {other for other in ALL if not left[other]} == hidden
    nothing, unknown = without(one, ALL), Layout.unknown(1, 2, slots=3)
    assert torch.equal(rasterise(nothing, 3, 4, ALL), rasterise(unknown, 3, 4, ALL))
    tokens = LayoutTokens(8, ALL)
    assert_close(tokens(nothing), tokens(unknown))


def test_the_usual_conditions_are_what_they_were_and_new_planes_come_after_them():
    one = frames()
    assert (plane_count(), PLANES, feature_count()) == (8, 8, 6)
    assert torch.equal(rasterise(one, 4, 6), rasterise(one, 4, 6, ALL)[..., :PLANES, :, :])
    assert torch.equal(rasterise(one, 4, 6, USUAL[::-1]), rasterise(one, 4, 6))  # the order of names means nothing
    assert LayoutTokens(8).state_dict().keys() == {
        "classes.weight", "box.0.weight", "box.0.bias", "box.2.weight", "box.2.bias", "labels.weight", "labels.bias",
    }  # fmt: skip


def test_features_of_the_mean_picture_are_those_of_the_conditions_that_change_it():
    one = replace(frames(), night=torch.tensor([[0.25, 1.0]]), crowdedness=torch.tensor([[5.0, math.nan]]))
    told = label_features(rasterise(one, 1, 1, ALL), ALL)
    assert_close(told[0, 0], torch.tensor([1, -0.5, 0.25, 1, 0.5, 1, 1, 0, 0, 0, 0]))
    assert_close(told[0, 1], torch.tensor([1.0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0]))
    assert torch.equal(label_features(rasterise(one, 1, 1)), told[..., :6])


def test_weather_is_a_one_among_zeros():
    for number in range(len(WEATHERS)):
        planes = rasterise(frames(seed=number), 2, 2, ["weather"])
        assert planes[0, 0, :, 1, 1].tolist() == [float(k == number) for k in range(len(WEATHERS))]
    assert rasterise(Layout.unknown(1, 2), 2, 2, ["weather"]).abs().sum() == 0


def test_planes_of_space_are_those_of_the_nearest_box_in_each_cell():
    boxes = torch.tensor([[[0.0, 0, 1, 1], [0.5, 0, 1, 1], [0, 0.5, 0.5, 1]]])
    solids = torch.tensor([[[20.0, 4, 2, 1, 0.0], [10, 4, 2, 1, math.pi / 2], [2, 1, 1, 1, math.nan]]])
    one = replace(
        Layout.unknown(1, slots=3), boxes=boxes, classes=torch.zeros(1, 3).long(), solids=solids,
        known=torch.tensor([True]),
    )  # fmt: skip
    close, sine, cosine = rasterise(one, 2, 2, ["boxes", "solids"])[0, 4:]
    assert_close(close, torch.tensor([[0.5, 1], [0.5, 1]]))  # of the third the yaw is not known
    assert_close(sine, torch.tensor([[0.0, 1], [0, 1]]))
    assert_close(cosine, torch.tensor([[1.0, 0], [1, 0]]), atol=1e-6, rtol=0)
    assert_close(closeness(torch.tensor([1.0, 5, 100, math.nan])), torch.tensor([2, 2, 0.1, 0]))


def test_tracks_have_codes_of_their_own_and_no_track_has_none():
    found = codes(torch.arange(-1, 2000))
    assert found[0].abs().sum() == 0
    assert set(found[1:].flatten().tolist()) == {-1.0, 1.0}
    assert len({tuple(code) for code in found[1:].tolist()}) == 2000
    # As independent fair coins: means of bits and products of bits of neighbours lie around 0.
    spread = 5 / 2000**0.5
    assert found[1:].mean(0).abs().max() < spread
    assert (found[1:-1] * found[2:]).mean(0).abs().max() < spread


def test_renumbered_tracks_stay_apart_and_the_same_over_a_clip():
    numbers = torch.arange(5000).view(1, 2, 2500)
    layout = replace(
        Layout.unknown(1, 2, slots=2500), tracks=torch.where(numbers % 7 == 0, NO_BOX, numbers), classes=numbers % 5
    )
    other = renumbered(layout, torch.tensor([[2**31 - 5]]), torch.tensor([[2**30 + 3]])).tracks
    assert torch.equal(other == NO_BOX, layout.tracks == NO_BOX)
    assert other[layout.tracks != NO_BOX].unique().numel() == (layout.tracks != NO_BOX).sum()
    assert (other >= NO_BOX).all()


def test_training_gives_a_track_another_code_each_time_but_one_over_its_clip():
    one = frames(4)
    batch = Layout.cat([one, one])
    seen = [drop(batch, {"tracks": 0.0}, torch.Generator().manual_seed(seed)).tracks for seed in range(20)]
    for tracks in seen:
        assert (tracks == tracks[:, :1]).all()
        assert (tracks[..., 2] == NO_BOX).all()
    told = codes(torch.stack(seen)[:, :, 0, :2])  # [20, clips, boxes, CODE]
    assert len({tuple(code) for code in told.view(-1, CODE).tolist()}) == 20 * 2 * 2


def test_tokens_differ_by_track_alone_where_tracks_are_told():
    one = frames()
    other = changed(one, "tracks", frames(seed=1))
    told, untold = LayoutTokens(8, ALL), LayoutTokens(8)
    assert torch.equal(untold(one), untold(other))
    differs = (told(one) != told(other)).any(-1)
    assert differs.tolist() == [[[True, True, False, False]] * 2]


def test_every_condition_is_dropped_by_itself_at_its_rate():
    rates = {name: 0.05 + 0.1 * number for number, name in enumerate(ALL)}
    batch = Layout.cat([frames(3)] * 4000)
    dropped = drop(batch, rates, torch.Generator().manual_seed(0))
    gone = {name: ~CONDITIONS[name].told(replace(dropped, known=dropped.known | (name != "boxes"))) for name in ALL}
    columns = torch.stack([gone[name] for name in ALL]).float()
    assert (columns == columns[..., :1]).all()  # alike in all frames of a clip
    expected = torch.tensor([rates[name] for name in ALL])
    sigma = (expected * (1 - expected) / 4000).sqrt()
    assert ((columns[..., 0].mean(1) - expected).abs() < 4.5 * sigma).all()
    assert columns[..., 0].corrcoef().sub(torch.eye(len(ALL))).abs().max() < 4.5 / 4000**0.5


def shown(layout: Layout, name: str) -> torch.Tensor:
    """Latents [B, T, 4, 8, 8] of a world in which a condition decides what a frame looks like."""
    if name == "weather":
        return (layout.weather - 2.0)[..., None, None, None].expand(-1, -1, 4, 8, 8)
    far = 2 * (layout.solids[..., 0, 0] / 10).log()[..., None, None, None]
    return far * rasterise(layout, 8, 8)[:, :, :1].expand(-1, -1, 4, -1, -1)


@pytest.mark.parametrize("name", ["weather", "solids"])
def test_what_a_condition_decides_is_learned_and_missed_where_it_is_left_out(name):
    """Of pure noise nothing can be told but by the conditions: a minute's worth of steps, in seconds."""
    model = network(["boxes", name], tokens=False).train()
    worlds = Layout.cat([frames(1, seed=seed) for seed in range(64)])
    worlds.classes[..., 1:] = NO_BOX
    worlds.boxes[..., :2], worlds.boxes[..., 2:] = worlds.boxes[..., :2] / 2, 0.5 + worlds.boxes[..., 2:] / 2
    worlds.solids[..., 0] = 5 + 20 * torch.rand(64, 1, 3, generator=torch.Generator().manual_seed(0))
    x, optimizer = shown(worlds, name), torch.optim.Adam(model.parameters(), 3e-3)

    def error(layout: Layout, target: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(target.shape, generator=generator)
        told = model.condition(layout, 8, 8)
        return (model(noise, torch.full((len(noise),), 999), *told) - target).square().mean()

    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        picked = torch.randint(48, (16,), generator=generator)  # the other worlds are held out
        optimizer.zero_grad()
        error(drop(worlds[picked], {"boxes": 0.0, name: 0.1}, generator), x[picked], generator).backward()
        optimizer.step()
    model.eval()
    held_out, target = worlds[48:], x[48:]
    with torch.no_grad():
        told, untold = (
            float(error(layout, target, torch.Generator().manual_seed(1)))
            for layout in (held_out, without(held_out, [name]))
        )
    assert told < 0.25 * untold


def test_a_model_may_be_told_nothing():
    model = network([])
    assert torch.equal(answer(model, frames()), answer(model, frames(seed=1)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["boxes", "wheather"], "unknown condition 'wheather'; known: boxes, night, crowdedness, weather"),
        (["night", "night"], "give each once"),
        (["night", "solids"], "condition solids says more of boxes; add boxes"),
    ],
)
def test_conditions_that_cannot_be_are_told(names, message):
    with pytest.raises(ValueError, match=message):
        chosen(names)


def test_what_a_model_was_not_trained_on_is_named_with_what_it_was():
    with pytest.raises(UserError, match="guidance: this model is not told rain; it is told boxes, night, crowdedness"):
        check_known("guidance", ["night", "rain"], USUAL)
