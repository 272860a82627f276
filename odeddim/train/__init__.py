"""Training of a model: the loss, the settings, a step, and the run that can be stopped and continued."""
