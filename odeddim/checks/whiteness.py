"""Whether latents look like noise. How far they are from the ODE's is in `odeddim.checks.certificate`."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import kolmogorov, ndtr
from torch import Tensor

FIGURES = ("norm", "mean", "variance", "kurtosis", "autocorrelation", "normality")


def statistics(x_T: Tensor) -> dict[str, Tensor]:
    """Statistics that say whether each latent looks like white noise.

    For a latent of D values x_i with mean m and d_i = x_i - m, in float64, the same bits in any batch:

        name             formula                               white noise   its standard deviation
        norm             ‖x‖/√D                                1             1/√(2D)
        mean             m = Σ x_i/D                           0             1/√D
        variance         Σ d_i²/(D-1)                          1             √(2/(D-1))
        kurtosis         D·Σ d_i⁴/(Σ d_i²)²                    3             √(24/D)
        autocorrelation  (D/P)·Σ d_i·d_j/Σ d_i²                0             1/√P
        normality        p-value, x_i against N(0, 1)          1/2           1/√12, evenly between 0 and 1

    The expected norm, kurtosis and autocorrelation are lower by 1/(4D), 6/(D+1) and 1/(D-1).

    autocorrelation is Moran's I, the correlation of direct neighbours: its sum is over the P pairs of them, below and
    beside each other in latents (C, H, W), behind each other too in (C, F, H, W), along the last axis in others.

    normality is the test of Kolmogorov and Smirnov: the limiting law at √D + 0.12 + 0.11/√D times the largest distance
    between the two distribution functions. From D = 4 the p-value is within 0.03 of the exact one, and within 0.003 of
    an exact one below 0.1.

    Figures that are not defined are NaN: the variance of one value, the kurtosis and autocorrelation of a constant, the
    autocorrelation without neighbours.

    Args:
        x_T: The latents, (B, *) of unit variance.

    Returns:
        The figures by name, (B,) float64 each, on the CPU.

    Source:
        P. A. P. Moran, Biometrika 37, 1950; M. A. Stephens, J. R. Stat. Soc. B 32, 1970.
    """
    figures = np.array([_figures(_double(row)) for row in x_T], np.float64).reshape(-1, len(FIGURES))
    return {name: torch.from_numpy(column.copy()) for name, column in zip(FIGURES, figures.T, strict=True)}


def _double(row: Tensor) -> NDArray[np.float64]:
    """One latent as an array of numpy, because torch's order of summation depends on the batch and the threads."""
    return np.ascontiguousarray(row.detach().to("cpu", torch.float64).numpy())


def _without(d: NDArray[np.float64], axis: int, end: int) -> NDArray[np.float64]:
    """An array without its first (0) or its last (-1) along an axis."""
    return d[(slice(None),) * axis + (slice(1, None) if end == 0 else slice(end),)]


@np.errstate(divide="ignore", invalid="ignore")
def _figures(x: NDArray[np.float64]) -> tuple[float, ...]:
    size = x.size
    first = x.flat[0]
    offset = (x - first).mean()
    d = x - first - offset  # exactly 0 for a constant latent, where x - x.mean() would leave rounding errors
    squares = (d**2).sum()
    axes = range(x.ndim - 1, 0, -1) if x.ndim >= 3 else (x.ndim - 1,)  # all but the channels
    pairs = [_without(d, axis, 0) * _without(d, axis, -1) for axis in axes]
    count = np.float64(sum(products.size for products in pairs))
    steps = np.arange(size + 1) / size
    below = ndtr(np.sort(x, axis=None))
    apart = max((steps[1:] - below).max(), (below - steps[:-1]).max())
    return (
        np.sqrt((x**2).sum() / size),
        first + offset,
        squares / np.float64(size - 1),
        size * (d**4).sum() / squares**2,
        sum(products.sum() for products in pairs) / count * (size / squares),
        kolmogorov(apart * (math.sqrt(size) + 0.12 + 0.11 / math.sqrt(size))),
    )
