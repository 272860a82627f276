"""Linear multistep rules whose weights were found for a model by least squares: `odeddim fit` finds them.

Where the model has the Gaussian of its data, N(μ, Σ), a slope is corrected by it before it is used:

    ε' = ε + α_n·ε_G + β_n·Σ(Σ + σ_n²)⁻¹·ε,    ε_G = σ_n·(Σ + σ_n²)⁻¹·(x̄ - μ).

So the weights of the state and of a slope are two numbers each: where the data are large beside the noise, and where
the noise is. With α = β = 0 a slope is ε itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from odeddim.solvers._points import Course, points_row
from odeddim.solvers.principal import moments_of
from odeddim.types import Field, InputError, Moments, Point

if TYPE_CHECKING:
    from torch import Tensor

SLOPES = 3
"""The number of slopes that a step uses: more of them lower the error by nothing that could be measured."""

DIRECTIONS = ("encode", "decode")
"""The order of the tables in the setting `weights`."""

_NEAR = 1e-4  # relative: nodes that are the same after a file, or at the model's own σ_T

_HINT = "`odeddim fit` finds them, and a plan holds them with their nodes"

Tables = Sequence[Sequence[Sequence[float]]]


def fitted(nodes: Sequence[float], *, weights: Tables = (), corrections: Tables = ()) -> list[Point]:
    """A linear multistep rule with weights of its own in each step: x̄_{n+1} = c_n·x̄_n + Σ_j w_nj·ε'_{n-j}.

    A step costs one evaluation, at its start. It has weights for the step from or to σ = 0 too, so the nodes begin or
    end there if images lie there.

    Args:
        nodes: Noise levels, rising or falling.
        weights: Two tables, that of encoding and that of decoding. A table has a row for each step: the noise level
            σ_n at which it starts, the weight c_n of the state, and the weights w_nj of at most n + 1 slopes, the
            newest first. An empty table is a direction without weights. Without any tables the weights are those of
            Adams-Bashforth through two nodes in log σ, as of `ab2`.
        corrections: Those of the slopes, see `corrected`; the weights do not depend on them.

    Returns:
        The points of the run.

    Raises:
        InputError: If there are no weights for this direction, or they belong to other nodes.

    Source:
        Shaul et al. 2024, arXiv 2403.01329, eq. 8 (non-stationary solvers), with the last slopes only.
    """
    rows = _table(nodes, weights) if len(weights) else adams_table(nodes)
    points = [Point(nodes[0])]
    for n, (end, (_, state, *slopes)) in enumerate(zip(nodes[1:], rows, strict=True)):
        points.append(Point(end, {n: state}, {n - j: weight for j, weight in enumerate(slopes)}))
    return points


def corrected(field: Field, sigmas: Tensor, *, weights: Tables = (), corrections: Tables = ()) -> Field:
    """The field whose slopes ε' a run uses: ε, corrected by the Gaussian of the model's data.

    Args:
        field: ε(σ, x̄), with the attribute `moments` if there are corrections.
        sigmas: The noise levels of the run, (N+1,), rising or falling.
        weights: As of `fitted`; the slopes do not depend on them.
        corrections: Two tables, that of encoding and that of decoding. A table has a row for each step: the noise level
            σ_n at which it starts, α_n and β_n. In an empty table, and without any, no slope is corrected.

    Returns:
        The field.

    Raises:
        InputError: If there are corrections and the field has no moments, or they belong to other nodes.
    """
    if not len(corrections):
        return field
    nodes = sigmas.tolist()
    rows = _rows(nodes, corrections, "corrections")
    if any(len(row) != 3 for row in rows):
        raise InputError(f"solver 'fitted': corrections have three numbers in each row: σ, α and β: {_HINT}")
    return _Corrected(field, moments_of(field), rows) if rows else field


class _Corrected:
    """ε, corrected at some noise levels."""

    def __init__(self, field: Field, moments: Moments, rows: Sequence[Sequence[float]]) -> None:
        self.field, self.moments, self.rows = field, moments, rows

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        from torch import cat

        eps = self.field(sigma, xbar)
        if sigma.ndim == 0:
            return self._at(float(sigma), xbar, eps)
        own = [self._at(level, xbar[i : i + 1], eps[i : i + 1]) for i, level in enumerate(sigma.tolist())]
        return cat(own)  # of a run in parallel

    def _at(self, sigma: float, xbar: Tensor, eps: Tensor) -> Tensor:
        for level, alpha, beta in self.rows:
            if (alpha or beta) and math.isclose(sigma, level, rel_tol=_NEAR):
                return eps + correction(self.moments, sigma, xbar, eps, alpha, beta).to(eps)
        return eps


def correction(moments: Moments, sigma: float, xbar: Tensor, eps: Tensor, alpha: float, beta: float) -> Tensor:
    """α·ε_G + β·Σ(Σ + σ²)⁻¹·ε.

    Args:
        moments: The Gaussian.
        sigma: The noise level σ > 0 of all images.
        xbar: x̄, (B, *).
        eps: ε there, (B, *).
        alpha: α.
        beta: β.

    Returns:
        What is added to ε, (B, *) float64; the same bits of an image whatever the batch is.
    """
    centre = moments.centre(xbar)
    own = moments.per_component(lambda variance: alpha * sigma / (variance + sigma**2))
    gain = moments.per_component(lambda variance: beta * variance / (variance + sigma**2))
    return moments.filtered([(xbar.to(centre) - centre, *own), (eps.to(centre), *gain)])


def adams_table(nodes: Sequence[float], k: int = 2) -> list[list[float]]:
    """The table of Adams-Bashforth: ε as the polynomial in log σ through the last k nodes, Euler's step at σ = 0.

    Args:
        nodes: Noise levels, rising or falling.
        k: The number of nodes; fewer in the first steps.

    Returns:
        A row for each step, as of `fitted`.
    """
    rows = []
    for n, (start, end) in enumerate(itertools.pairwise(nodes)):
        known = [sigma for sigma in reversed(nodes[: n + 1]) if sigma > 0][:k]
        if min(start, end) == 0:
            rows.append([start, 1.0, end - start])
            continue
        course = Course(start)
        course.points += [Point(sigma) for sigma in known[1:]]
        rows.append([start, 1.0, *course.weights(range(len(known)), 0, end).values()])
    return rows


def _table(nodes: Sequence[float], weights: Tables) -> Sequence[Sequence[float]]:
    """The rows of weights of this direction, checked."""
    rows = _rows(nodes, weights, "weights")
    if not rows:
        way = _way(nodes)
        raise InputError(
            f"solver 'fitted' has no weights to {way}: fit them with direction={way!r} or direction='both', or choose "
            "another solver"
        )
    for n, row in enumerate(rows):
        if len(row) > n + 3:
            raise InputError(f"solver 'fitted' has weights for {len(row) - 2} slopes in step {n + 1}: {_HINT}")
    return rows


def _rows(nodes: Sequence[float], tables: Tables, what: str) -> Sequence[Sequence[float]]:
    """The rows of the table of this direction; empty, or one for each step that starts where the run's does."""
    if len(tables) != len(DIRECTIONS) or not all(_is_table(table) for table in tables):
        raise InputError(f"solver 'fitted': {what} must be two tables, for encoding and for decoding: {_HINT}")
    way = _way(nodes)
    rows = tables[DIRECTIONS.index(way)]
    if rows and len(rows) != len(nodes) - 1:
        raise InputError(
            f"solver 'fitted' has {what} to {way} for {len(rows)} steps, and the run has {len(nodes) - 1}: {_HINT}"
        )
    for n, (sigma, row) in enumerate(zip(nodes, rows, strict=False)):
        if not math.isclose(row[0], sigma, rel_tol=_NEAR):
            raise InputError(
                f"solver 'fitted' has {what} for a step {n + 1} from σ = {row[0]:.6g}, and that of the run starts at "
                f"{sigma:.6g}: {_HINT}"
            )
    return rows


def _way(nodes: Sequence[float]) -> str:
    return DIRECTIONS[0 if nodes[-1] > nodes[0] else 1]


def _is_table(table: Any) -> bool:
    """Whether it has rows of at least three numbers."""
    return isinstance(table, (list, tuple)) and all(
        isinstance(row, (list, tuple)) and len(row) > 2 and all(isinstance(number, float) for number in row)
        for row in table
    )


FORMULA = """
x̄ₙ₊₁ = cₙ·x̄ₙ + Σⱼ wₙⱼ·ε'ₙ₋ⱼ,  j = 0, 1, 2
ε'ₙ = εₙ + αₙ·σₙ·(Σ + σₙ²)⁻¹·(x̄ₙ - μ) + βₙ·Σ·(Σ + σₙ²)⁻¹·εₙ
μ, Σ: mean and covariance of the model's data
c, w, α and β of each step: by `odeddim fit`, for a model
without them: `ab2`, and ε' = ε
"""

ROWS = (
    points_row(
        "fitted",
        fitted,
        family="fitted",
        order=2,
        nfe=1,
        reference="`odeddim fit`; Shaul et al. 2024, arXiv 2403.01329 (non-stationary solvers)",
        formula=FORMULA,
        through_zero=True,
        settings={"weights": (), "corrections": ()},
        slope=corrected,
    ),
)
