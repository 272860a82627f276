"""How far the samples of a model in training are from held-out images: the Fréchet distance of their features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from odeddim.api import sample
from odeddim.bench.distances import frechet
from odeddim.bench.features import DEFAULT, Features, load_features
from odeddim.models.networks import classifier
from odeddim.ode.field import VectorField
from odeddim.storage.images import ImageSource
from odeddim.storage.png import to_bytes
from odeddim.types import InputError

_BLOCK = 64  # images that are read, or sampled, at once
STEPS = 50


def distance_to(
    reference: ImageSource, features: str | Path | Features | None, count: int, device: torch.device
) -> Callable[[VectorField], float]:
    """Return the function that measures a model against reference images.

    It compares `count` reference images, or all if there are fewer, with as many samples: DDIM with 50 steps, always
    from the same noise, rounded to 8 bits. The distance is biased: it is larger for fewer images.

    Args:
        reference: The held-out images.
        features: The feature network, as of `odeddim.bench.features.load_features`. By default, for images of 1×28×28
            only, the built-in classifier.
        count: The largest number of images to compare.
        device: The device that the feature network runs on.

    Returns:
        The function from a model to its distance.

    Raises:
        InputError: If the features cannot be computed, or there are fewer than 2 images.
    """
    if features is None and reference.shape != classifier.SHAPE:
        size = "×".join(map(str, reference.shape))
        raise InputError(
            f"the built-in features are of images of 1×28×28, not {size}: give features=..., such as "
            "'inception:WEIGHTS.pth' for the FID"
        )
    network = load_features(DEFAULT if features is None else features, device=device)
    n = min(count, len(reference))
    real = torch.cat([network(reference[start : min(start + _BLOCK, n)]) for start in range(0, n, _BLOCK)])
    frechet(real, real)  # raises now what would be raised after hours

    @torch.no_grad()
    def measure(field: VectorField) -> float:
        made = sample(n, "euler", grid="linear", steps=STEPS, model=field, batch_size=_BLOCK).cpu()
        if not bool(torch.isfinite(made).all()):
            return float("nan")  # of a young or broken model: the loss decides whether the run goes on
        return frechet(real, network(to_bytes(made).float() / 127.5 - 1))

    return measure
