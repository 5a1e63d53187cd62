"""What the tasks make of a batch, against examples by hand."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drivesim.clip import Layout
from drivesim.data.windows import Batch
from drivesim.diffusion.loss import velocity_loss
from drivesim.diffusion.schedule import Diffusion, ScheduleConfig
from drivesim.diffusion.tasks import Frames, Interpolate, Known, Predict, Problem, context_planes, distance
from drivesim.models.denoiser import DenoiserConfig

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
