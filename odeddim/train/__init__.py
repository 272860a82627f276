"""Training of a model: the loss, the settings, a training step, and a run that can be stopped and continued."""
