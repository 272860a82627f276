"""What latents are worth: whether they look like noise, and how far the run that made them is from the ODE's truth."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import kolmogorov, ndtr
from torch import Tensor

from odeddim.types import InputError

FIGURES = ("norm", "mean", "variance", "kurtosis", "autocorrelation", "normality")
# Runs whose differences fall by less than this do not converge yet, and 1/(r - 1) could be any number. On the exact
# problems of tests/test_quality.py, 1.1 would blow up overestimates and 1.4 make underestimates of slow Euler runs.
FLATTEST = 1.25


def statistics(x_T: Tensor) -> dict[str, Tensor]:
    """Is each latent white noise? x_T (B, *) of unit variance -> figures by name, (B,) float64 each, on the CPU.

    Of a latent of D values x_i with mean m and d_i = x_i - m, in float64, the same bits in any batch:

        name             formula                               white noise   its standard deviation
        norm             ‖x‖/√D                                1             1/√(2D)
        mean             m = Σ x_i/D                           0             1/√D
        variance         Σ d_i²/(D-1)                          1             √(2/(D-1))
        kurtosis         D·Σ d_i⁴/(Σ d_i²)²                    3             √(24/D)
        autocorrelation  (D/P)·Σ d_i·d_j/Σ d_i²                0             1/√P
        normality        p-value, x_i against N(0, 1)          1/2           1/√12, evenly between 0 and 1

    The expected norm, kurtosis and autocorrelation are lower by 1/(4D), 6/(D+1) and 1/(D-1). autocorrelation is
    Moran's I (Biometrika 37, 1950), the correlation of direct neighbours: its sum is over the P pairs of them, below
    and beside each other in latents (C, H, W), along the last axis in others. normality is Kolmogorov's and Smirnov's
    test: the limiting law at √D + 0.12 + 0.11/√D times the greatest distance between the two distribution functions
    (M. A. Stephens, J. R. Stat. Soc. B 32, 1970); from D = 4 the p-value is within 0.03 of the exact one, and within
    0.003 of one below 0.1. Figures that a latent does not have are NaN: variance of one value, kurtosis and
    autocorrelation of a constant, autocorrelation without neighbours.
    """
    figures = np.array([_figures(_double(row)) for row in x_T], np.float64).reshape(-1, len(FIGURES))
    return {name: torch.from_numpy(column.copy()) for name, column in zip(FIGURES, figures.T, strict=True)}


def richardson(fine: Tensor, half: Tensor, quarter: Tensor, order: int) -> Tensor:
    """How far is a run from the truth? Results (B, *) of S, S/2 and S/4 steps -> rms distance of `fine`, (B,) float64.

    order: the solver's, 1 or more. Errors that fall by a factor r each time the steps double leave d1/(r - 1), where
    d1 and d2 are the rms distances fine - half and half - quarter, and r = d2/d1 (Aitken, Richardson): as observed,
    since few steps do not show the nominal order. Errors in their asymptotic regime also keep their direction, so
    that of an r above 2, an Euler run's, only the part is believed that does: of d2 the component along d1. r is held
    between FLATTEST and 2**order. An order of magnitude, rather high than low: of latents with known errors, by 16 to
    64 steps of six solvers, nine in ten estimates are 0.8 to 18 times the truth, half of them at most 2.1 times, and
    1.5 % less than half of it (`pytest -s tests/test_quality.py -k known`).
    Errors: InputError for results of different shapes.
    """
    if not fine.shape == half.shape == quarter.shape:
        shapes = ", ".join(str(tuple(run.shape)) for run in (fine, half, quarter))
        raise InputError(f"an error is estimated from three runs on the same images, not from shapes {shapes}")
    runs = zip(fine, half, quarter, strict=True)
    distances = [_distance(_double(a), _double(b), _double(c), order) for a, b, c in runs]
    return torch.tensor(distances, dtype=torch.float64)


def _double(row: Tensor) -> NDArray[np.float64]:
    """One latent by itself in numpy, one axis or more: torch's order of summation depends on batch and threads."""
    return np.ascontiguousarray(row.detach().to("cpu", torch.float64).numpy())


@np.errstate(divide="ignore", invalid="ignore")
def _figures(x: NDArray[np.float64]) -> tuple[float, ...]:
    size = x.size
    first = x.flat[0]
    offset = (x - first).mean()
    d = x - first - offset  # the first goes first: of a constant, x - x.mean() would leave rounding errors, not 0
    squares = (d**2).sum()
    pairs = [d[..., 1:] * d[..., :-1]]
    if x.ndim == 3:
        pairs.append(d[:, 1:] * d[:, :-1])
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


def _distance(fine: NDArray[np.float64], half: NDArray[np.float64], quarter: NDArray[np.float64], order: int) -> float:
    first, second = fine - half, half - quarter
    d1, d2 = (math.sqrt((part**2).mean()) for part in (first, second))
    if d1 == 0:
        return 0.0
    along = float((first * second).mean()) / d1**2
    return d1 / (min(max(along, min(d2 / d1, 2.0), FLATTEST), 2.0**order) - 1)
