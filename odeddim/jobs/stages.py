"""The stages of a decoding run: its state at some noise levels, and the image that it predicts there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from odeddim.api import to_images
from odeddim.jobs.decoding import Decoding
from odeddim.ode.field import VectorField
from odeddim.storage.png import to_bytes
from odeddim.types import State


class Stage(NamedTuple):
    """A stage of the decoding of some latents.

    Attributes:
        sigma: The noise level.
        predicted: The predicted image x̂₀ = x̄ - σ·ε as 8-bit values, (B, C, H, W); at the end the image itself.
        x: The state x = x̄/√(1+σ²) likewise; None for latent models, whose states are no images, and at the end.
    """

    sigma: float
    predicted: Tensor
    x: Tensor | None = None


def stages_of(
    decoding: Decoding, state: State, field: VectorField, count: int, first: int = 0
) -> tuple[Tensor, list[Stage]]:
    """Decode latents, and keep what the run sees on its way.

    The run is the one that decodes, and the last stage is its result. The others are evaluations of the network that
    this run makes in any case. A run that returns to a higher noise level, as after a step that an adaptive solver
    rejects, leaves behind what it has seen below, so the noise levels fall.

    Args:
        decoding: What decodes the latents.
        state: The latents, xbar (B, *). A solver must take all of them to a noise level at once: B is 1 for those that
            take them one by one (`Solver.queued`, `Solver.one_by_one`).
        field: The model.
        count: The number of stages, at least 2, evenly among all that there are. If there are fewer, some come twice.
        first: As of `Decoding.images`.

    Returns:
        The images, (B, C, H, W), and the stages, from the noise down.

    Raises:
        InputError: If the model does not take the latents, or the images are not finite.
    """
    watched = _Watched(field, len(state))
    images = to_images(field, decoding.images(state, watched, first))
    end = float(decoding.plan.nodes[0])
    seen = [stage for stage in watched.seen if stage.sigma > end]
    stages = [seen[round(i * (len(seen) - 1) / max(count - 2, 1))] for i in range(count - 1)]
    if field.codec is not None:
        stages = [Stage(it.sigma, to_bytes(to_images(field, it.predicted))) for it in stages]
    return images, [*stages, Stage(end, to_bytes(images))]


class _Watched(VectorField):
    """A field on data that keeps where it was evaluated, and what it predicted there: 8-bit values of pixels.

    A solver may fill up its batches with further rows: the first `count` are those of the latents.
    """

    def __init__(self, field: VectorField, count: int) -> None:
        self.__dict__.update(field.__dict__)
        self._field, self._count, self.codec = field, count, None
        self.seen: list[Stage] = []

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        eps = self._field(sigma, xbar)
        level = float(torch.as_tensor(sigma).flatten()[0])
        while self.seen and self.seen[-1].sigma <= level:
            self.seen.pop()
        own = xbar[: self._count]
        predicted = own - level * eps[: self._count]
        if self._field.codec is None:
            self.seen.append(Stage(level, to_bytes(predicted), to_bytes(State(own, level).x)))
        else:
            self.seen.append(Stage(level, predicted))
        return eps
