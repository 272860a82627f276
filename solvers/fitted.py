"""Linear multistep rules whose weights were found for a model by least squares: `odeddim fit` finds them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from odeddim.solvers._points import Course, points_row
from odeddim.types import InputError, Point

SLOPES = 3
"""The number of slopes that a step uses: more of them lower the error by nothing that could be measured."""

DIRECTIONS = ("encode", "decode")
"""The order of the tables in the setting `weights`."""

_NEAR = 1e-4  # relative: nodes that are the same after a file, or at the model's own σ_T

Tables = Sequence[Sequence[Sequence[float]]]


def fitted(nodes: Sequence[float], *, weights: Tables = ()) -> list[Point]:
    """A linear multistep rule with weights of its own in each step: x̄_{n+1} = c_n·x̄_n + Σ_j w_nj·ε_{n-j}.

    A step costs one evaluation, at its start. It has weights for the step from or to σ = 0 too, so the nodes begin or
    end there if images lie there.

    Args:
        nodes: Noise levels, rising or falling.
        weights: Two tables, that of encoding and that of decoding. A table has a row for each step: the noise level
            σ_n at which it starts, the weight c_n of the state, and the weights w_nj of at most n + 1 slopes, the
            newest first. An empty table is a direction without weights. Without any tables the weights are those of
            Adams-Bashforth through two nodes in log σ, as of `ab2`.

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
    """The rows of this direction, checked."""
    way = DIRECTIONS[0 if nodes[-1] > nodes[0] else 1]
    hint = "`odeddim fit` finds weights, and a plan holds them with their nodes"
    if len(weights) != len(DIRECTIONS) or not all(_is_table(table) for table in weights):
        raise InputError(f"solver 'fitted': weights must be two tables, for encoding and for decoding: {hint}")
    rows = weights[DIRECTIONS.index(way)]
    if not rows:
        raise InputError(
            f"solver 'fitted' has no weights to {way}: fit them with direction={way!r} or direction='both', or choose "
            "another solver"
        )
    if len(rows) != len(nodes) - 1:
        raise InputError(
            f"solver 'fitted' has weights to {way} for {len(rows)} steps, and the run has {len(nodes) - 1}: {hint}"
        )
    for n, (sigma, row) in enumerate(zip(nodes, rows, strict=False)):
        if not math.isclose(row[0], sigma, rel_tol=_NEAR):
            raise InputError(
                f"solver 'fitted' has weights for a step {n + 1} from σ = {row[0]:.6g}, and that of the run starts at "
                f"{sigma:.6g}: {hint}"
            )
        if len(row) > n + 3:
            raise InputError(f"solver 'fitted' has weights for {len(row) - 2} slopes in step {n + 1}: {hint}")
    return rows


def _is_table(table: Any) -> bool:
    """Whether it has rows of at least three numbers."""
    return isinstance(table, (list, tuple)) and all(
        isinstance(row, (list, tuple)) and len(row) > 2 and all(isinstance(number, float) for number in row)
        for row in table
    )


FORMULA = """
x̄ₙ₊₁ = cₙ·x̄ₙ + Σⱼ wₙⱼ·εₙ₋ⱼ,  j = 0, 1, 2
Weights c and w of each step: by `odeddim fit`, for a model; without them `ab2`
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
        settings={"weights": ()},
    ),
)
