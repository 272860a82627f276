"""Latents: kept in files (`store`), and combined (`interpolate`)."""
