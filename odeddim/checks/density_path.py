"""The nodes of a run, and the log density that they make: a quadrature outside the solver's state.

`odeddim.checks.density` says what is integrated. Here are the sums, and how far each is off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from odeddim.checks.divergence import Diagonal, Products, halves, noise_of, steps_of_spline, sums
from odeddim.ode.field import VectorField
from odeddim.types import InputError

TERMS = ("prior", "divergence", "path", "dequantisation")
"""What the log density is the sum of."""

ERRORS = ("probes", "solver", "dequantisation")
"""The parts of the standard error, which is the root of the sum of their squares."""

COLUMNS = (*TERMS, *(f"error {name}" for name in ERRORS), "dimensions", "evaluations", "products")
"""What is measured of an image: terms and errors in nats, then its numbers and what it took."""

LEAST = 5
"""The fewest nodes that an error can be estimated from."""

FINER = 4
"""The error of the quadrature is the change from every second node to all of them, over this number."""


class Path:
    """The nodes that a run has shown, with ε and the diagonal of its Jacobian at each.

    Args:
        field: The field of the run.
        diagonal: What measures the diagonal.
    """

    def __init__(self, field: VectorField, diagonal: Diagonal) -> None:
        self._field, self._diagonal = field, diagonal
        self._rows, self._products = field.rows, 0
        self._nodes: list[tuple[float, Tensor, Tensor, Tensor]] = []

    def at(self, sigma: float, xbar: Tensor) -> None:
        """Add a node, with x̄ (B, *) there, which is kept as it is."""
        product = Products(self._field, sigma, xbar)
        diagonal = self._diagonal(product, xbar, len(self._nodes))
        self._nodes.append((sigma, xbar.cpu(), product.eps.cpu(), diagonal.cpu()))  # not all devices have float64
        self._products += product.made

    def measured(self, *, noisy: bool) -> Tensor:
        """What the nodes say of each image.

        Args:
            noisy: Whether the diagonals are estimates by probes.

        Returns:
            The columns `COLUMNS`, (B, K) float64 on the CPU.

        Raises:
            InputError: If there are too few nodes.
        """
        if len(self._nodes) < LEAST:
            raise InputError(
                f"a density needs at least {LEAST} nodes, and the run has shown {len(self._nodes)}: take more steps, "
                "or a solver that gives all images the same steps, such as 'ab3'"
            )
        levels, xbar, eps, diagonals = zip(*sorted(self._nodes, key=lambda node: node[0]), strict=True)
        sigmas = torch.tensor(levels, dtype=torch.float64)
        size, low, top = xbar[0][0].numel(), 1 + levels[0] ** 2, 1 + levels[-1] ** 2
        squares = sums(xbar[-1].double().square())
        prior = -size / 2 * math.log(2 * math.pi * top) - squares / (2 * top)
        integral, probes, quadrature = _integral(sigmas, diagonals, noisy=noisy)
        path = _defects(sigmas, xbar, eps)
        none = torch.zeros_like(prior)
        known = {
            "prior": prior,
            "divergence": integral + size / 2 * math.log(top / low),
            "path": path,
            "dequantisation": none,
            "error probes": probes,
            "error solver": (quadrature.square() + path.square()).sqrt(),
            "error dequantisation": none,
            "dimensions": none + size,
            "evaluations": none + (self._field.rows - self._rows) / len(prior),
            "products": none + self._products,
        }
        return torch.stack([known[name] for name in COLUMNS], 1)


def _integral(sigmas: Tensor, diagonals: Sequence[Tensor], *, noisy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """∫ (σ·tr J - D·σ²/(1+σ²)) d log σ, with the standard error of the probes, and the error of the quadrature, (B,).

    What is subtracted is large, smooth and known: the integrand of a normal distribution of variance 1.
    """
    u, size = sigmas.log(), diagonals[0][0].numel()
    scaled = [float(sigma) * part.double() for sigma, part in zip(sigmas, diagonals, strict=True)]
    values = torch.stack([sums(part) for part in scaled]) - (size * sigmas**2 / (1 + sigmas**2))[:, None]
    weights = steps_of_spline(u).sum(0)
    some = list(halves(len(u)))
    coarse = torch.zeros_like(weights)
    coarse[some] = steps_of_spline(u[some]).sum(0)
    noise = noise_of(u, scaled) if noisy else torch.zeros_like(values)
    change = coarse - weights  # of noise it has its share, which is no error of the quadrature
    rough = (_weighted(change, values).square() - _weighted(change.square(), noise)).clamp(min=0).sqrt() / FINER
    return _weighted(weights, values), _few(weights.square()[:, None] * noise), rough


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Σ w_n·v_n of each image, (B,), given (N+1,) and (N+1, B)."""
    return sums((weights[:, None] * values).T)


def _few(shares: Tensor) -> Tensor:
    """The standard error of a sum of independent parts, whose variances (N+1, B) were each measured once.

    Where few nodes carry the noise its size is uncertain. Each node counts as two degrees of freedom.
    """
    total, squares = sums(shares.T), sums(shares.T.square())
    freedom = 2 * total.square() / squares.clamp(min=torch.finfo(torch.float64).tiny)
    return total.sqrt() * student(freedom.clamp(min=1))


def student(freedom: Tensor) -> Tensor:
    """The factor that makes 1.96 of a standard error cover 95% when it was measured with so many degrees of freedom."""
    from scipy.special import stdtrit

    return torch.from_numpy(stdtrit(freedom.numpy(), 0.975)) / 1.959963984540054


def _defects(sigmas: Tensor, xbar: Sequence[Tensor], eps: Sequence[Tensor]) -> Tensor:
    """Σ d·ε/σ over the steps, (B,): d is what a step moved x̄ beyond the integral of ε over σ along the run."""
    steps = steps_of_spline(sigmas.log()) * sigmas  # dσ = σ d log σ
    total = torch.zeros(len(xbar[0]), dtype=torch.float64)
    for n in range(len(sigmas) - 1):
        moved = xbar[n + 1].double() - xbar[n].double()
        for weight, slope in zip(steps[n].tolist(), eps, strict=True):
            moved = moved - weight * slope.double()
        middle = (eps[n].double() + eps[n + 1].double()) / 2 / math.sqrt(float(sigmas[n] * sigmas[n + 1]))
        total += sums(moved * middle)
    return total


def mean_of(draws: Tensor, entropy: float) -> Tensor:
    """The mean of several runs of the same images.

    The error of the dequantisation is how much the runs differ beyond the error of their probes, and of few runs it is
    itself uncertain: Student's factor makes 1.96 of it cover 95%.

    Args:
        draws: What each run has measured (`COLUMNS`), (draws, B, K).
        entropy: The entropy of the dequantisation noise of an image, in nats; 0 without noise.

    Returns:
        The columns of all runs together, (B, K).
    """
    count, place = len(draws), {name: k for k, name in enumerate(COLUMNS)}
    mean = _mean(draws)
    noise = _mean(draws[..., place["error probes"]].square())
    mean[:, place["error probes"]] = (noise / count).sqrt()
    mean[:, place["dequantisation"]] = entropy
    for name in ("evaluations", "products"):
        mean[:, place[name]] *= count
    if count > 1:
        factor = float(student(torch.tensor([count - 1.0])))
        total = sum((draws[..., place[name]] for name in TERMS), torch.zeros(1, dtype=torch.float64))
        spread = _mean((total - _mean(total)).square()) * count / (count - 1)
        mean[:, place["error dequantisation"]] = ((spread - noise).clamp(min=0) / count).sqrt() * factor
    elif entropy:
        mean[:, place["error dequantisation"]] = math.nan
    return mean


def _mean(draws: Tensor) -> Tensor:
    """The mean over the first axis; torch's own adds in an order that depends on the number of images."""
    return sum(draws.unbind(0), torch.zeros(1, dtype=torch.float64)) / len(draws)
