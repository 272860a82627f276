"""How the networks in diffusers' pipelines are called: one module for each family of pipelines, `table` for all."""
