"""Conversions of what a network predicts into ε. They are pointwise, one line each.

Every network was trained on x = scale·(x0 + σ·ε), so x and one of ε, x0, v, u determine the others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Conversion = Callable[[Tensor, Tensor, Tensor], Tensor]
"""ε = conversion(prediction (B, *), xbar (B, *), sigma (B, 1, ...) > 0)."""


def _eps(eps: Tensor, xbar: Tensor, sigma: Tensor) -> Tensor:
    return eps


def _x0(x0: Tensor, xbar: Tensor, sigma: Tensor) -> Tensor:
    return (xbar - x0) / sigma


def _v(v: Tensor, xbar: Tensor, sigma: Tensor) -> Tensor:
    # v = √α·ε - √(1-α)·x0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D), so ε = √α·v + √(1-α)·x
    return v / torch.sqrt(1 + sigma**2) + xbar * (sigma / (1 + sigma**2))


def _flow(u: Tensor, xbar: Tensor, sigma: Tensor) -> Tensor:
    # u = dx/dt = ε - x0 on x = (1-t)·x0 + t·ε (arXiv 2209.03003), so ε = x + (1-t)·u with 1-t = 1/(1+σ)
    return (xbar + u) / (1 + sigma)


def _to_data(u: Tensor, xbar: Tensor, sigma: Tensor) -> Tensor:
    return _flow(-u, xbar, sigma)


def _score(score: Tensor, xbar: Tensor, sigma: Tensor) -> Tensor:
    return -sigma * score


PREDICTIONS: dict[str, Conversion] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "flow": _flow,
    "flow-to-data": _to_data,
    "score": _score,
}
"""The conversions by the name that `VectorField(predicts=...)` takes.

EDM's denoiser D(x, σ) is "x0" on `Schedule.edm()`. "flow" is ε - x0, the velocity if t is 0 at the image;
"flow-to-data" is x0 - ε, the velocity if t is 0 at the noise. "score" is ∇ log p by the network's input
x; its conversion takes the gradient by x̄, which is scale(σ) times that."""

HELD = ("x0", "score")
"""The predictions whose conversion has no value, or the wrong one, at σ = 0: there σ_1 is used, as in the network."""
