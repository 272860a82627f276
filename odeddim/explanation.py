"""What a run will do, before it does it: nodes, labels, evaluations, coefficients, the growth of rounding errors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from odeddim.api import Grid, Model, integrate, plan
from odeddim.models import DEFAULT, load
from odeddim.types import Growth, InputError, Solver, State, pick

DIRECTIONS = ("encode", "decode")


@dataclass(frozen=True)
class Explanation:
    """What a run will do.

    nodes (N+1,): its noise levels as they are walked; labels: the network's t at each. evaluations: per image, None
    where they depend on the data. instructions: the arithmetic in words, empty where it is another library's or depends
    on the data. growth: of rounding errors, None where it is not known. refused: why such a run is refused, if it is.
    """

    solver: str
    family: str
    order: int
    reference: str
    direction: str
    model: str
    end: str
    dtype: str
    nodes: tuple[float, ...]
    labels: tuple[float, ...]
    evaluations: int | None
    instructions: tuple[str, ...]
    growth: Growth | None
    refused: str

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def explain(
    solver: str | Solver = "euler",
    *,
    direction: str = "encode",
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    dtype: str = "float32",
    **settings: object,
) -> Explanation:
    """What `encode` or `decode` with the same arguments will do. dtype: of the state, "float32" or "float64".

    Errors: InputError for what cannot be used, as in `encode`.
    """
    field = load(model)
    pick(direction, DIRECTIONS, "direction")
    pick(dtype, ("float32", "float64"), "dtype")
    row, rising = plan(field.schedule, solver, steps, grid, end, dict(settings))
    if row.stochastic and direction == "encode":
        raise InputError(f"solver {row.name!r} adds noise, so it only decodes: explain it with direction 'decode'")
    nodes = rising if direction == "encode" else rising.flip(0)
    evaluations, refused = _evaluations(row, nodes, getattr(torch, dtype))
    levels = [sigma for sigma in nodes.tolist() if sigma > 0]
    return Explanation(
        solver=row.name,
        family=row.family,
        order=row.order,
        reference=row.reference,
        direction=direction,
        model=field.name,
        end="zero" if float(rising[0]) == 0 else "sigma_min",
        dtype=dtype,
        nodes=tuple(nodes.tolist()),
        labels=tuple(float(field.schedule.t(sigma)) for sigma in nodes),
        evaluations=evaluations,
        instructions=_instructions(row, levels, zero=float(rising[0]) == 0, direction=direction),
        growth=None if row.growth is None or len(levels) < 2 else row.growth(levels, dtype == "float32"),
        refused=refused,
    )


def _evaluations(row: Solver, nodes: Tensor, dtype: torch.dtype) -> tuple[int | None, str]:
    """Counted, by a run over a single number in a field of zeros; and why there is no such run."""
    if row.nfe is None:
        return None, ""
    calls = 0

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(xbar)

    try:
        integrate(field, State(torch.zeros(1, 1, dtype=dtype), float(nodes[0])), nodes, row)
    except InputError as error:
        return None, str(error)
    return calls, ""


def _instructions(row: Solver, levels: list[float], *, zero: bool, direction: str) -> tuple[str, ...]:
    if row.plan is None or len(levels) < 2:
        return ()
    lines = [instruction.words(place) for place, instruction in enumerate(row.plan(levels))]
    clean = min(levels)
    if zero and direction == "encode":
        lines.insert(0, f"x̄ = x̄ + {clean:.6g}·ε(x̄, σ = 0), Euler from σ = 0")
    elif zero:
        lines.append(f"x̄ = x̄ - {clean:.6g}·ε(x̄, σ = {clean:.6g}), Euler to σ = 0")
    return tuple(lines)
