"""The settings of a training run, and the learning rate at each step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from odeddim.train.loss import OBJECTIVES
from odeddim.types import InputError, pick

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_BATCH = 65_536  # images per step: a larger batch takes too long to draw, and too much memory
DECAY_SHAPES = ("linear", "cosine")
CHANGEABLE = ("steps", "checkpoint_every", "samples_every", "log_every", "tensorboard", "distance_images")
"""The settings that a continued run may change."""
_ADDED = (
    "weight_decay",
    "decay_shape",
    "ema_half_life",
    "flips",
    "microbatches",
    "compile",
    "tensorboard",
    "distance_images",
)
"""The settings that runs of earlier versions do not have. They are written only if they differ from their defaults."""


@dataclass(frozen=True)
class Settings:
    """The settings of a training run. The run stores them, and checks them when it is continued.

    Attributes:
        predicts: The objective, a name of `odeddim.train.loss.OBJECTIVES`: "eps" for DDPM's noise, "v" for its
            velocity, "flow" for the velocity of rectified flow, "edm" for EDM's preconditioned denoiser.
        steps: The number of steps of the whole run.
        batch_size: The number of images in a step.
        learning_rate: The largest learning rate of Adam. The learning rate rises linearly in the first `warmup` steps,
            and falls to zero in the last steps, which improves the model considerably.
        warmup: The number of steps in which the learning rate rises.
        decay: The share of the steps in which the learning rate falls.
        clip: The largest norm of the gradient.
        ema: The decay of the weights' moving average in one step.
        seed: The seed of the first weights, of the order of the images, and of the noise.
        precision: The precision of the network's arithmetic, "float32" or "bfloat16". Weights, optimiser and loss are
            float32.
        prepared: How the images were prepared, as of `odeddim.storage.preparation.Preparation.to_dict`.
        checkpoint_every: The number of steps between checkpoints.
        samples_every: The number of steps between sample sheets.
        log_every: The number of steps between rows of the log.
        weight_decay: The weight decay λ of AdamW (arXiv 1711.05101): each step also subtracts learning rate · λ ·
            weight. 0 is Adam.
        decay_shape: How the learning rate falls: "linear", or "cosine" for half a wave (arXiv 1608.03983, eq. 5). With
            decay=1 it falls over the whole run.
        ema_half_life: The half-life of the moving average in images, in place of `ema`: after so many images, weights
            count half. 0 for `ema`.
        flips: Whether half of the images of each step, chosen at random, are mirrored left to right.
        microbatches: The number of equal pieces that a step's batch is cut into. Their gradients are added up before
            the step (gradient accumulation), and the processes of torchrun share them. A step has the same images,
            labels and noise for any number.
        compile: Whether the network is compiled by torch.compile for training. Its last digits may differ.
        tensorboard: Whether the log is also written for TensorBoard.
        distance_images: The largest number of samples for a Fréchet distance, if there are as many reference images.

    Raises:
        InputError: If a value has the wrong type or is out of range.

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
    weight_decay: float = 0.0
    decay_shape: str = "linear"
    ema_half_life: float = 0.0
    flips: bool = False
    microbatches: int = 1
    compile: bool = False
    tensorboard: bool = False
    distance_images: int = 2048

    def __post_init__(self) -> None:
        self._check_types()
        pick(self.predicts, OBJECTIVES, "prediction to train")
        pick(self.precision, PRECISIONS, "precision")
        pick(self.decay_shape, DECAY_SHAPES, "decay_shape")
        for name in ("steps", "batch_size", "checkpoint_every", "samples_every", "log_every", "microbatches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.distance_images < 2:
            raise InputError(f"distance_images must be at least 2, not {self.distance_images}")
        if self.batch_size > MOST_BATCH:
            raise InputError(f"batch_size must be at most {MOST_BATCH:,} images per step, not {self.batch_size:,}")
        good = self.learning_rate > 0 and self.clip > 0 and self.warmup >= 0
        if not good or not 0 <= self.decay <= 1 or not 0 <= self.ema < 1:
            raise InputError(
                "training needs learning_rate > 0, clip > 0, warmup >= 0, decay in [0, 1] and ema in [0, 1), not "
                f"{self.learning_rate}, {self.clip}, {self.warmup}, {self.decay} and {self.ema}"
            )
        if not (self.weight_decay >= 0 and self.ema_half_life >= 0):
            raise InputError(
                "training needs weight_decay >= 0 and ema_half_life >= 0, not "
                f"{self.weight_decay} and {self.ema_half_life}"
            )
        if self.ema_half_life and self.ema != type(self).ema:
            raise InputError(
                f"ema={self.ema} and ema_half_life={self.ema_half_life} both say how fast the average forgets: give one"
            )
        if self.batch_size % self.microbatches:
            raise InputError(
                f"a batch of {self.batch_size} images cannot be cut into {self.microbatches} equal pieces: give "
                "batch_size=... as a multiple of microbatches=... (with torchrun, of the number of processes)"
            )

    def _check_types(self) -> None:
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            kind = (int, float) if isinstance(default, float) else type(default)
            fits = isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
            if default is None or (fits and (not isinstance(value, float) or math.isfinite(value))):
                continue
            words = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a word"}
            raise InputError(f"{field.name} must be {words[type(default)]}, not {value!r}")

    @property
    def average_decay(self) -> float:
        """The decay of the moving average in one step: `ema`, or what its half-life in images amounts to."""
        return 0.5 ** (self.batch_size / self.ema_half_life) if self.ema_half_life else self.ema

    def to_dict(self) -> dict[str, Any]:
        """The settings as values that JSON can hold, from which `Settings(**...)` makes them again."""
        default = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name not in _ADDED or value != default[name]}

    def fixed(self) -> dict[str, Any]:
        """The settings that must stay the same when a run is continued, by name, as of `to_dict`."""
        said = {name: value for name, value in self.to_dict().items() if name not in CHANGEABLE}
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
    if settings.decay_shape == "cosine":
        fall = (1 - math.cos(math.pi * min(1.0, fall))) / 2
    return settings.learning_rate * min(1.0, rise, fall)
