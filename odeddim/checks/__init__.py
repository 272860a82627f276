"""How good a latent is, and what a run will do."""
