"""Paired measurements: the denoiser against its peers, and what each part of the toolkit costs."""
