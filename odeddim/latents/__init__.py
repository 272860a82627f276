"""Latents: the latent file and its provenance, interpolation, arithmetic, groups."""
