"""The noise levels of score_sde's variance preserving SDEs in continuous time (Song et al. 2021, arXiv 2011.13456).

β rises linearly in t from 0 to 1, and B(t) = ∫β dt. The image is scaled by a = exp(-B/2), and the noise has the
standard deviation √(1-a²) in the VP SDE and 1-a² in the sub-VP SDE (equations 29 and 30). So

    VP       σ² = exp(B) - 1        x = x̄/√(1+σ²)
    sub-VP   σ = 2·sinh(B/2)        x = 2·x̄/(σ + √(σ²+4))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odeddim.types import InputError


@dataclass(frozen=True)
class ContinuousTime:
    """σ and t of a VP or sub-VP SDE as functions of each other; all tensors are float64.

    Attributes:
        beta_min: β at t = 0.
        beta_max: β at t = 1.
        sub: Whether it is the sub-VP SDE.
    """

    beta_min: float
    beta_max: float
    sub: bool

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < 1e3:
            raise InputError(
                f"betas must satisfy 0 < beta_min <= beta_max < 1000, unlike beta_min = {self.beta_min} and beta_max = "
                f"{self.beta_max}"
            )

    def levels(self, T: int, t_min: float) -> Tensor:
        """T noise levels, even in t from t_min to 1."""
        if not isinstance(T, int) or T < 2 or not 0 < t_min < 1:
            raise InputError(
                f"T must be at least 2 and t_min strictly between 0 and 1, unlike T = {T}, t_min = {t_min}"
            )
        return self.sigma(torch.linspace(t_min, 1, T, dtype=torch.float64))

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level of a time."""
        whole = t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)
        return 2 * torch.sinh(whole / 2) if self.sub else torch.sqrt(torch.expm1(whole))

    def t(self, sigma: Tensor) -> Tensor:
        """The time of a noise level: the root of B(t), in the form that does not cancel."""
        whole = 2 * torch.asinh(sigma / 2) if self.sub else torch.log1p(sigma**2)
        rise = self.beta_max - self.beta_min
        return 2 * whole / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * rise * whole))

    def scale(self, sigma: Tensor) -> Tensor:
        """The factor in x = scale·x̄: the share a of the image."""
        if self.sub:
            return 2 / (sigma + torch.sqrt(sigma**2 + 4))
        return 1 / torch.sqrt(1 + sigma**2)


def index_of(t: Tensor, T: int, t_min: float) -> Tensor:
    """The place of a time among T levels that are even in t: 0 at t_min, T-1 at 1."""
    return (t - t_min) / (1 - t_min) * (T - 1)
