"""Exact fields: distributions whose ε is known in closed form. The tests' oracles, and models without training.

For data x0 ~ p and x̄ = x0 + σ·z, the ideal network predicts ε(x̄, σ) = (x̄ - E[x0 | x̄])/σ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odeddim.ode.gaussian import Gaussian as Gaussians
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError


class GaussianMixture:
    """The exact ε of a mixture of K isotropic Gaussians, Σ_k w_k·N(m_k, s²), as a Field.

    It is exact at every σ > 0, and for std > 0 also at σ = 0.

    Args:
        means: The m_k as whole images, (K, *); or (K,), where every pixel is an independent draw from the same mixture
            of K numbers. They become float64.
        std: s >= 0, in image units. 0 makes the mixture a finite data set (`finite`).
        weights: The w_k > 0, (K,). They are equal if not given.

    Raises:
        InputError: If there is no mean, std is negative, or the weights are not K positive numbers.
    """

    def __init__(self, means: Tensor, std: float, weights: Tensor | None = None) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        count = means.shape[0] if means.ndim else 0
        weights = torch.full((count,), 1.0) if weights is None else torch.as_tensor(weights)
        if count == 0 or std < 0 or weights.shape != (count,) or not bool((weights > 0).all()):
            raise InputError("a mixture needs means of shape (K, *), std >= 0 and K positive weights")
        self.means = means
        self.std = float(std)
        self.weights = weights.to(torch.float64) / weights.sum()
        self._log_weights = torch.log(self.weights)

    @property
    def moments(self) -> Gaussians:
        """The Gaussian with the mixture's mean and covariance."""
        means, weights = self.means, self.weights
        if means.ndim == 1:
            mean = weights @ means
            return Gaussians.isotropic(mean, float(self.std**2 + weights @ (means - mean) ** 2))
        mean = torch.tensordot(weights, means, 1)
        apart = (means - mean).flatten(1) * weights.sqrt()[:, None]
        _, spread, directions = torch.linalg.svd(apart, full_matrices=False)
        return Gaussians(mean, directions, spread**2 + self.std**2, self.std**2)

    @classmethod
    def finite(cls, images: Tensor) -> GaussianMixture:
        """The exact ε of a finite data set: a mixture of points, which is known for σ > 0 only.

        Args:
            images: The data set, (K, *).

        Returns:
            The field.
        """
        return cls(images, std=0.0)

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        """The exact ε.

        Args:
            sigma: The noise levels, () or (B,).
            xbar: x̄, (B, *).

        Returns:
            ε, with the shape and dtype of xbar.
        """
        sigma = torch.as_tensor(sigma, dtype=xbar.dtype, device=xbar.device)
        means = self.means.to(xbar)
        if means.ndim == 1:  # one pixel is one point: (B·D, 1) against (K, 1)
            points, centres = xbar.reshape(-1, 1), means.reshape(-1, 1)
        else:
            points, centres = xbar.flatten(1), means.flatten(1)
        # One noise level is one number; where each image has its own, so has each of its points.
        per_image = sigma.repeat_interleave(points.shape[0] // xbar.shape[0]).unsqueeze(1) if sigma.ndim else sigma
        variance = self.std**2 + per_image**2
        # Differences first: |x|² - 2x·m + |m|² would cancel where x is close to m, which is where it matters.
        distance = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        share = torch.softmax(self._log_weights.to(xbar) - distance / (2 * variance), dim=1)  # P(k | x̄)
        return ((points - share @ centres) * (per_image / variance)).reshape(xbar.shape)

    def network(self, schedule: Schedule) -> ExactNetwork:
        """This field as a network that was trained with a schedule.

        Args:
            schedule: The schedule, which sets the units of x and the labels t.

        Returns:
            A function eps(x (B, *), t (B,)) -> (B, *).
        """
        return ExactNetwork(self, schedule)


@dataclass(frozen=True, eq=False)
class ExactNetwork:
    """An exact field that is called as a network is: with x in the units of a schedule, and with the label t.

    Attributes:
        field: The exact field.
        schedule: The schedule.
    """

    field: GaussianMixture
    schedule: Schedule

    @property
    def moments(self) -> Gaussians:
        """The Gaussian of the field's data."""
        return self.field.moments

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The exact ε (B, *), given x (B, *) and t (B,)."""
        # torch computes no distances in half precision, and ε would not be exact in it.
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        sigma = self.schedule.sigma(t).to(exact)
        scale = self.schedule.scale(sigma)
        return self.field(sigma, exact / scale.reshape(-1, *[1] * (x.ndim - 1))).to(x.dtype)


class Gaussian(GaussianMixture):
    """The exact ε of one Gaussian N(mean, std²), ε = σ·(x̄ - mean)/(std² + σ²). Its ODE has a closed-form solution.

    Args:
        mean: The mean, a number or one image (*).
        std: The standard deviation, in image units.
    """

    def __init__(self, mean: float | Tensor = 0.0, std: float = 1.0) -> None:
        super().__init__(torch.as_tensor(mean, dtype=torch.float64).unsqueeze(0), std)

    def flow(self, xbar: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
        """The exact solution of the ODE: x̄ - mean grows with √(std² + σ²).

        Args:
            xbar: x̄ at `sigma_from`, (B, *).
            sigma_from: The noise level where the solution starts.
            sigma_to: The noise level where it ends.

        Returns:
            x̄ at `sigma_to`, (B, *).
        """
        mean = self.means[0].to(xbar)
        ratio: float = ((self.std**2 + sigma_to**2) / (self.std**2 + sigma_from**2)) ** 0.5
        return mean + (xbar - mean) * ratio
