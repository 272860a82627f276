"""Training: the loss, the run."""
