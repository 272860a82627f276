"""The settings of a training run, and the learning rate at each step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from odeddim.train.loss import OBJECTIVES
from odeddim.types import InputError, pick

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_BATCH = 65_536  # images per step: a larger batch takes too long to draw, and too much memory
CHANGEABLE = ("steps", "checkpoint_every", "samples_every", "log_every")
"""The settings that a continued run may change."""


@dataclass(frozen=True)
class Settings:
    """The settings of a training run. The run stores them, and checks them when it is continued.

    Attributes:
        predicts: "eps" for DDPM's noise, or "flow" for the velocity of rectified flow.
        steps: The number of steps of the whole run.
        batch_size: The number of images in a step.
        learning_rate: The largest learning rate of Adam. The learning rate rises linearly in the first `warmup` steps,
            and falls linearly to zero in the last steps, which improves the model considerably.
        warmup: The number of steps in which the learning rate rises.
        decay: The share of the steps in which the learning rate falls.
        clip: The largest norm of the gradient.
        ema: The decay of the weights' moving average.
        seed: The seed of the first weights, of the order of the images, and of the noise.
        precision: The precision of the network's arithmetic, "float32" or "bfloat16". Weights, optimiser and loss are
            float32.
        prepared: How the images were prepared, as of `odeddim.storage.preparation.Preparation.to_dict`.
        checkpoint_every: The number of steps between checkpoints.
        samples_every: The number of steps between sample sheets.
        log_every: The number of steps between rows of the log.

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> from odeddim.train.settings import Settings, learning_rate
        >>> learning_rate(Settings(steps=1000, warmup=100), 49)
        0.0005
    """

    predicts: str = "eps"
    steps: int = 20000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.3
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = "float32"
    prepared: dict[str, Any] | None = None
    checkpoint_every: int = 1000
    samples_every: int = 5000
    log_every: int = 100

    def __post_init__(self) -> None:
        pick(self.predicts, OBJECTIVES, "prediction to train")
        pick(self.precision, PRECISIONS, "precision")
        for name in ("steps", "batch_size", "checkpoint_every", "samples_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.batch_size > MOST_BATCH:
            raise InputError(f"batch_size must be at most {MOST_BATCH:,} images per step, not {self.batch_size:,}")
        good = self.learning_rate > 0 and self.clip > 0 and self.warmup >= 0
        if not good or not 0 <= self.decay <= 1 or not 0 <= self.ema < 1:
            raise InputError(
                "training needs learning_rate > 0, clip > 0, warmup >= 0, decay in [0, 1] and ema in [0, 1), not "
                f"{self.learning_rate}, {self.clip}, {self.warmup}, {self.decay} and {self.ema}"
            )

    def fixed(self) -> dict[str, Any]:
        """The settings that must stay the same when a run is continued, by name."""
        said = {name: value for name, value in asdict(self).items() if name not in CHANGEABLE}
        if not said["prepared"]:
            del said["prepared"]  # runs of earlier versions do not have it
        return said


def learning_rate(settings: Settings, step: int) -> float:
    """Return the learning rate of a step: it rises, stays constant, and falls to zero.

    Because it stays constant for a while, a continued run can change its number of steps.

    Args:
        settings: The settings of the run.
        step: The step, from 0.

    Returns:
        The learning rate.
    """
    rise = (step + 1) / settings.warmup if settings.warmup else 1.0
    fall = (settings.steps - step) / (settings.decay * settings.steps) if settings.decay else 1.0
    return settings.learning_rate * min(1.0, rise, fall)
