"""How sensitive images are to their latents: the largest singular value of the decode, image by image.

The Jacobian J of the decode, from x_T of unit variance to the image, stretches no direction by more than its largest
singular value. Power iteration on JᵀJ finds that from below, by products alone: J·v in forward mode, through the same
run in floating point (or by a difference, where torch has no forward mode), and Jᵀ·w by the gradients of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import Unpack

from odeddim import defaults
from odeddim.api import Model, at_the_top, planned, state_dtype, to_images
from odeddim.models import DEFAULT, load
from odeddim.plans import Grid, Plan, integrate
from odeddim.solvers.stochastic import noise
from odeddim.types import Gradients, InputError, Settings, Solver

ITERATIONS = 10
"""Rounds of power iteration."""


@dataclass(frozen=True)
class Sensitivity:
    """The largest singular value of the decode at some latents.

    Attributes:
        values: By how much a small change of x_T is amplified at most, as norms over all numbers: (B,) float64.
        directions: The changes of x_T, of norm 1, that are amplified so much: (B, *).
        rise: By how much of itself the value has risen in the last round, (B,) float64: small if it has converged.
    """

    values: Tensor
    directions: Tensor
    rise: Tensor


@torch.inference_mode(False)
def sensitivity(
    x_T: Tensor | np.ndarray,
    solver: str | Solver = defaults.SOLVE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    plan: Plan | None = None,
    iterations: int = ITERATIONS,
    **settings: Unpack[Settings],
) -> Sensitivity:
    """The largest singular value of the decode at each latent, by power iteration.

    A round takes twice the evaluations of a run: one run in forward mode, and one backward pass that evaluates again.

    Args:
        x_T: The latents, (B, C, H, W) of unit variance, as of `odeddim.solve`.
        solver, model, steps, grid, end, plan, **settings: As of `odeddim.solve`.
        iterations: The number of rounds, at least 1. A value rises from round to round towards the singular value.

    Returns:
        The values, and where they point.

    Raises:
        InputError: If an argument cannot be used, or the solver gives no gradients.

    Example:
        >>> from odeddim import Schedule, VectorField
        >>> twice = VectorField(lambda x, t: x / 2, Schedule.linear(), name="mine")
        >>> found = odeddim.sensitivity(odeddim.noise(2, (1, 4, 4)), model=twice, steps=5)
        >>> found.values.shape, bool(found.rise.abs().max() < 1e-3)
        (torch.Size([2]), True)
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise InputError(f"iterations must be a whole number, at least 1, not {iterations!r}")
    field = load(model)
    plan = planned(field, plan, solver, defaults.SOLVE, steps, grid, end, settings)
    latents = state_dtype(x_T)
    latents = latents.detach().clone().to(field.device or latents.device)

    def decoded(x: Tensor, gradients: Gradients = None) -> Tensor:
        start = at_the_top(field.schedule, plan, x)
        return to_images(field, integrate(field, start, plan, gradients=gradients).xbar)

    with torch.enable_grad():
        begin = latents.clone().requires_grad_()
        images = decoded(begin)
    directions = _unit(noise(len(latents), tuple(latents.shape[1:]), step=1).to(latents))
    stretched = _pushed(decoded, latents, directions)
    for _ in range(iterations):
        (pulled,) = torch.autograd.grad(images, begin, stretched, retain_graph=True)
        directions, before = _unit(pulled), _norms(stretched)
        stretched = _pushed(decoded, latents, directions)
    values = _norms(stretched)
    return Sensitivity(values, directions, 1 - before / values)


STEP = 1e-3  # of the difference that stands in for a forward mode, beside a latent of norm √D


def _pushed(decoded: Callable[[Tensor, Gradients], Tensor], latents: Tensor, directions: Tensor) -> Tensor:
    """J·v (B, *) at each latent. torch has no forward mode of its fast attention kernels, so these are not used."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(latents, directions)  # type: ignore[no-untyped-call]
                out = forward_ad.unpack_dual(decoded(dual, "direct"))  # type: ignore[no-untyped-call]
                tangent: Tensor = out.tangent
        except NotImplementedError:  # nor of some other operations, such as the distances in the exact models
            x, step = latents.double(), STEP * directions.double()
            tangent = (decoded(x + step, "direct") - decoded(x - step, "direct")) / (2 * STEP)
    return tangent.to(latents)


def _norms(vectors: Tensor) -> Tensor:
    """The norm over all numbers of each image, (B,) float64 on the CPU."""
    found: Tensor = torch.linalg.vector_norm(vectors.double().flatten(1), dim=1)
    return found.cpu()


def _unit(vectors: Tensor) -> Tensor:
    """Each image over its norm."""
    return vectors / _norms(vectors).to(vectors).reshape(-1, *[1] * (vectors.ndim - 1))
