"""How to train: the settings of a run, and the learning rate that follows from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from odeddim.train.loss import OBJECTIVES
from odeddim.types import InputError, pick

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_BATCH = 65_536  # images per step: more are not drawn, let alone held, in any sensible time
CHANGEABLE = ("steps", "checkpoint_every", "samples_every", "log_every")
"""The settings that a continued run may change."""


@dataclass(frozen=True)
class Settings:
    """How to train; written into the run, and checked when it is resumed.

    Args:
        predicts: "eps" for DDPM's noise, or "flow" for the velocity of rectified flow.
        steps: how many steps the run makes in all.
        batch_size: images per step.
        learning_rate: of Adam. It rises linearly during the first `warmup` steps and falls linearly to zero during the
            last ones, which improves the model much.
        warmup: steps of the rise.
        decay: the share of the steps in which the learning rate falls.
        clip: largest norm of the gradient.
        ema: decay of the average of the weights.
        seed: of the first weights, of the order of the images and of the noise.
        precision: of the network's arithmetic while training. Weights, optimiser and loss are float32.
        prepared: how the images were prepared, as of `odeddim.storage.preparation.Preparation.to_dict`.
        checkpoint_every: steps between checkpoints; likewise samples_every for sample sheets and log_every for rows
            of the log.

    Raises:
        InputError: for values that no run can have.
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
        """The settings that a continued run must share with the one that was begun."""
        said = {name: value for name, value in asdict(self).items() if name not in CHANGEABLE}
        if not said["prepared"]:
            del said["prepared"]  # runs of earlier versions do not have it
        return said


def learning_rate(settings: Settings, step: int) -> float:
    """Rise, plateau, fall to zero. The plateau is what lets a resumed run change its number of steps."""
    rise = (step + 1) / settings.warmup if settings.warmup else 1.0
    fall = (settings.steps - step) / (settings.decay * settings.steps) if settings.decay else 1.0
    return settings.learning_rate * min(1.0, rise, fall)
