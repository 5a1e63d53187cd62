"""drivesim: a video latent diffusion model of driving scenes, trained from scratch (Blattmann et al. 2023)."""

__version__ = "0.1.0"
