"""What the tasks make of a batch, against examples by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drivesim.clip import Layout
from drivesim.data.windows import Batch
from drivesim.diffusion.loss import velocity_loss
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import Frames, Interpolate, Known, Predict, Problem, context_planes, distance
from drivesim.errors import UserError
from drivesim.models.denoiser import DenoiserConfig
from drivesim.models.inflation import TemporalConfig

CONFIG = DenoiserConfig(
    channels=4, block_out_channels=[16, 16], layers_per_block=[1, 1], attention=[False, False], token_dim=0, groups=8
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Still:
    """A denoiser that knows nothing but how to carry: the last known frame as it is, whatever the layout says."""

    carries = True

    def carry(self, latents, mask, layout):
        filled, last = [], torch.zeros_like(latents[:, 0])
        for t in range(latents.shape[1]):
            last = torch.where(mask[:, t].bool()[:, None, None, None], latents[:, t], last)
            filled.append(last)
        return torch.stack(filled, 1)


class Same:
    """An autoencoder whose latents are its pixels."""

    def encode(self, x):
        return x

    decode = encode


def drive(clips: int, frames: int, metres: float = 1.0) -> Layout:
    """A layout that drives `metres` from frame to frame."""
    return Layout.unknown(clips, frames).driven(torch.arange(frames).expand(clips, -1).float(), metres)


def test_context_is_the_carried_latents_the_mask_the_flag_and_the_distance_driven():
    latents = torch.randn(2, 3, 4, 2, 2)
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    planes = context_planes(Still(), latents, Known(mask, torch.tensor([0.0, 1.0])), drive(2, 3, metres=5.0))
    assert planes.shape == (2, 3, 7, 2, 2)
    assert_close(planes[:, :, :4], Still().carry(latents, mask, None))
    assert_close(planes[:, :, 4], mask[..., None, None].expand(2, 3, 2, 2))
    assert_close(planes[:, :, 5, 0, 0], torch.tensor([[0.0] * 3, [1.0] * 3]))
    assert_close(planes[:, :, 6, 1, 1], torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 0.5]]))  # 10 m are 1


def test_the_distance_is_that_to_the_nearest_known_frame_on_either_side():
    travel = torch.tensor([[0.0, 3, 4, 10], [0, 3, 4, 10]])
    mask = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]])
    assert_close(distance(mask, travel), torch.tensor([[0.0, 3, 4, 0], [0, 0, 0, 0]]))


def test_prediction_knows_the_first_frames_and_interpolation_both_ends():
    assert Predict(frames=4).known(torch.tensor([0, 1, 2])).mask.tolist() == [[0] * 4, [1, 0, 0, 0], [1, 1, 0, 0]]
    known = Interpolate(factor=4).known(torch.tensor([0, 1]))
    assert known.mask.tolist() == [[1, 0, 0, 0, 1]] * 2
    assert known.flag.tolist() == [0, 1]
    assert Interpolate(factor=2).frames == 3


def test_numbers_of_known_frames_come_as_often_as_p_s_says():
    task, count = Predict(frames=3, probabilities=[0.1, 0.6, 0.3]), 20000
    numbers = task.draw(count, torch.zeros(count), generator()).mask.sum(1).long()
    share = numbers.bincount(minlength=3) / count
    expected = torch.tensor([0.1, 0.6, 0.3])
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()


def batch(size: int, frames: int, level: int = 0) -> Batch:
    return Batch(torch.randn(size, frames, 4, 8, 8), drive(size, frames), torch.full((size,), level))


def test_a_posed_problem_weighs_unknown_frames_only_and_keeps_its_target_clean():
    denoiser, windows = CONFIG.build().inflate(7).carry_by(Same()), batch(8, 3)
    problem = Predict(frames=3).pose(windows, denoiser, generator())
    assert problem.x is windows.x
    mask = problem.context[:, :, 4, 0, 0]
    assert_close(problem.weight, 1 - mask)
    # the newest known frame is told with a little noise, since in a rollout it is the model's own
    told, real = problem.context[:, 0, :4], windows.x[:, 0]
    difference = (told - real)[mask[:, 0] > 0].std()
    assert 0 < difference < 0.15
    ends = Interpolate().pose(batch(2, 5, level=1), denoiser, generator())
    assert ends.weight.tolist() == [[0, 1, 1, 1, 0]] * 2
    assert (ends.context[:, :, 5] == 1).all()


def test_frames_by_themselves_know_nothing():
    problem = Frames().pose(batch(2, 1), CONFIG.build(), generator())
    assert problem.context is None
    assert problem.weight.tolist() == [[1], [1]]


class Spy(torch.nn.Module):
    """Predicts what it is told to."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.prior = None
        self.latent_std = torch.ones(answer.shape[2])  # preconditioning then leaves the answer as it is

    def encode_context(self, context: torch.Tensor) -> None:
        """Knows nothing, so that the answer is all there is."""

    def forward(self, x, *conditions):
        return self.answer


def test_the_loss_ignores_known_frames_and_is_the_mean_error_of_the_others():
    x, answer = torch.randn(3, 4, 2, 5, 5), torch.randn(3, 4, 2, 5, 5)
    mask = Predict(frames=4).known(torch.tensor([0, 1, 2])).mask
    context = context_planes(Still(), x, Known(mask, torch.zeros(3)), drive(3, 4))
    problem = Problem(x, torch.zeros(3, 4, 0, 5, 5), None, context, 1 - mask)
    diffusion = Diffusion(ScheduleConfig())
    loss = velocity_loss(Spy(answer), problem, diffusion, generator())
    changed = torch.where(mask[..., None, None, None].bool(), torch.full_like(answer, 1e3), answer)
    assert torch.equal(velocity_loss(Spy(changed), problem, diffusion, generator()), loss)

    again = generator()
    timestep = diffusion.sample_timesteps(3, again)
    noise = torch.randn(x.shape, generator=again)
    target = diffusion.velocity(x, noise, timestep)
    windows = [F.mse_loss(a[~m], b[~m]) for a, b, m in zip(answer, target, mask.bool(), strict=True)]
    assert_close(loss, torch.stack(windows).mean())  # every window counts alike, however many frames it knows


def test_a_window_known_throughout_costs_nothing():
    x = torch.randn(1, 2, 3, 4, 4)
    problem = Problem(x, torch.zeros(1, 2, 0, 4, 4), None, None, torch.zeros(1, 2))
    assert velocity_loss(Spy(x), problem, Diffusion(ScheduleConfig()), generator()) == 0


def test_weighting_by_latents_is_the_squared_error_of_the_latents():
    from drivesim.diffusion.schedule import Diffusion, ScheduleConfig

    x = torch.randn(3, 2, 4, 2, 2, generator=generator())
    problem = Problem(x, torch.zeros(3, 2, 1, 2, 2), None, None, torch.ones(3, 2))
    seen = {}

    class Zero:
        latent_std, prior = torch.ones(4), None

        def __call__(self, z, timestep, *rest):
            seen.update(z=z, timestep=timestep)
            return torch.zeros_like(z)

    diffusion = Diffusion(ScheduleConfig(weighting="latents"))
    loss = velocity_loss(Zero(), problem, diffusion, generator())
    alpha, _ = diffusion.coefficients(seen["timestep"], x)
    guess = alpha * seen["z"]  # latents that a velocity of 0 stands for
    torch.testing.assert_close(loss, (guess - x).square().mean(), atol=1e-5, rtol=1e-5)


def test_interpolation_of_several_keys_knows_every_fourth_frame():
    task = Interpolate(keys=3)
    assert task.frames == 9
    assert task.known(torch.tensor([1])).mask.tolist() == [[1, 0, 0, 0, 1, 0, 0, 0, 1]]
    problem = task.pose(batch(2, 9, level=1), CONFIG.build().inflate(7).carry_by(Same()), generator())
    assert problem.weight.tolist() == [[0, 1, 1, 1, 0, 1, 1, 1, 0]] * 2


def test_interpolation_forgets_its_keyframes_as_often_as_it_is_told_to():
    count = 20000
    masks = Interpolate(drop_context=0.2).draw(count, torch.ones(count).long(), generator()).mask
    forgotten = masks.sum(1) == 0
    assert abs(forgotten.float().mean() - 0.2) < 4 * (0.2 * 0.8 / count) ** 0.5
    assert masks[~forgotten].unique(dim=0).tolist() == [[1, 0, 0, 0, 1]]


SCHEDULE = ScheduleConfig("linear", zero_snr=False, beta_start=1e-4, beta_end=2e-2)


@pytest.mark.parametrize(("task", "frames"), [
    (Predict(frames=3, probabilities=[0.0, 0.5, 0.5], context_noise=0.0, context_augmentation=250), 3),
    (Interpolate(context_augmentation=250), 5),
])  # fmt: skip
def test_conditioning_augmentation_noises_known_frames_by_the_forward_process_and_tells_how_far(task, frames):
    assert task.context_channels == 4
    denoiser, windows = CONFIG.build().inflate(8).carry_by(Same()), batch(400, frames)
    diffusion = Diffusion(SCHEDULE)
    problem = task.pose(windows, denoiser, generator(), diffusion)
    assert problem.x is windows.x
    seen, mask, told = problem.context[:, 0, :4], problem.context[:, :, 4, 0, 0], problem.context[:, :, 7, 0, 0]
    timestep = (told[:, 0] * 1000).round().long()
    assert (timestep.min() < 5, timestep.max() > 245, timestep.max() <= 250) == (True, True, True)
    assert abs(timestep.float().mean() - 125) < 4 * 250 / (12 * 400) ** 0.5
    alpha, sigma = diffusion.coefficients(timestep, seen)
    noise = (seen - alpha * windows.x[:, 0]) / sigma
    assert abs(noise.std() - 1) < 4 / (2 * noise.numel()) ** 0.5
    assert (told == told[:, :1] * mask).all()  # of a frame that is not known there is no noise to tell


def test_a_task_that_is_augmented_needs_the_forward_process():
    with pytest.raises(ValueError, match="forward process"):
        Interpolate(context_augmentation=9).pose(batch(2, 5), CONFIG.build().inflate(8).carry_by(Same()), generator())


def test_without_carrying_the_context_is_that_of_the_paper():
    denoiser, x = CONFIG.build().inflate(7, TemporalConfig(carry=False)), torch.randn(2, 3, 4, 8, 8)
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    planes = context_planes(denoiser, x, Known(mask, torch.zeros(2)), drive(2, 3))
    assert torch.equal(planes[:, :, :4], x * mask[..., None, None, None])
    assert torch.equal(planes[:, :, 4], mask[..., None, None].expand(2, 3, 8, 8))
    assert not planes[:, :, 5:].any()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Predict(frames=2), "task.frames=2; expected 3 or more, 2 of which may be known"),
        (Predict(frames=4, probabilities=[0.2] * 5), "expected 5 or more, 4 of which may be known"),
        (Predict(probabilities=[0.0, 0.0, 0.0]), "expected shares of 0, 1, 2 known frames"),
        (Predict(context_augmentation=1000), "context_augmentation=1000, expected a timestep, 0 to 999"),
        (Predict(context_noise=-0.1), "context_noise=-0.1, expected 0 or more"),
        (Interpolate(keys=1), "task.keys=1, expected 2 or more"),
        (Interpolate(factor=1), "task.factor=1, expected 2 or more"),
        (Interpolate(drop_context=1.0), "drop_context=1, expected 0 or more and less than 1"),
    ],
)
def test_a_task_that_makes_no_sense_is_told(task, said):
    with pytest.raises(UserError, match=said):
        task.check("task")
    Predict().check("task")
    Interpolate().check("task")
