"""Preconditioning by the best linear guess (after Karras et al. 2022, section 5, for velocity and structured latents).

Latents that are principal components differ tenfold in spread. For a channel of standard deviation s, the best linear
guess of the latents from noisy z = alpha·x + sigma·eps is mu = alpha·s²/n²·z with n² = alpha²·s² + sigma², and what it
leaves open has standard deviation sigma·s/n. The network sees z/n and predicts that rest at unit size, so it never
spends capacity on what is known in closed form. Where every s is 1 this is the plain velocity prediction of the paper.
A network that predicts epsilon does so as it is, epsilon being of unit size whatever s; it only sees z/n.
A denoiser with a prior (models/prior.py) is also told what the rest would be if the prior's guess, from the whole
picture, were the truth. It might predict what the prior leaves open instead, but hardly anything is left then that a
network of minutes finds: it learned to say nothing.
"""

import torch
from torch import Tensor

from drivesim.diffusion.schedule import Diffusion
from drivesim.models.denoiser import Context, Denoiser

HINT_LIMIT = 3.0  # in standard deviations; nearly without noise what is told wrong is wrong by any number of them


def predict_velocity(
    denoiser: Denoiser,
    diffusion: Diffusion,
    z: Tensor,
    timestep: Tensor,
    planes: Tensor,
    tokens: Tensor | None = None,
    context: Context | None = None,
    level: Tensor | None = None,
) -> Tensor:
    """Velocity [B, T, C, h, w] of noisy latents z at timesteps [B]; the rest as in `Denoiser.forward`."""
    alpha, sigma = diffusion.coefficients(timestep, z)
    spread = denoiser.latent_std.to(z)[:, None, None]
    norm = (alpha**2 * spread**2 + sigma**2).sqrt()
    epsilon = diffusion.config.prediction == "epsilon"
    # Were the latents x, the network's right answer would be (centre - x) / left.
    centre, left = (z / alpha, sigma / alpha) if epsilon else (alpha * spread**2 / norm**2 * z, sigma * spread / norm)
    if denoiser.prior is not None:
        told = denoiser.prior.posterior(z, planes, alpha, sigma)
        planes = torch.cat([planes, ((centre - told) / left).clamp(-HINT_LIMIT, HINT_LIMIT).to(planes)], 2)
    hint = None
    if context is not None and denoiser.carries:  # the right answer if the unknown frames were the carried ones
        hint = ((centre - context.held) / left).clamp(-HINT_LIMIT, HINT_LIMIT)
        hint = hint * context.given.to(z)[:, None, None, None, None]
    answer = denoiser(z / norm, timestep, planes, tokens, context, hint, level).float()
    if epsilon:
        return diffusion.velocity_of(answer, z, timestep)
    return (alpha * z - centre + left * answer) / sigma
