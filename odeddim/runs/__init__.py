"""How a run over many images is done: in batches, and what is shown of it meanwhile."""
