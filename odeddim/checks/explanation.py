"""What a run will do, before it does it: nodes, labels, evaluations, coefficients, the growth of rounding errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults
from odeddim.api import Model, noise, planned
from odeddim.checks import sensitivity as sensitivities
from odeddim.models import DEFAULT, load
from odeddim.ode.analytic import Gaussian
from odeddim.ode.field import VectorField
from odeddim.plans import Grid, Plan, check_encodes, integrate
from odeddim.types import Depends, Growth, InputError, Settings, Solver, State, pick

DIRECTIONS = ("encode", "decode")


@dataclass(frozen=True)
class Explanation:
    """What a run will do.

    Attributes:
        solver, family, order, reference, reversible: Of the solver's row, see `odeddim.types.Solver`.
        settings: The default of each setting; a default that depends on the run is in words.
        chosen: The settings that were given.
        direction: "encode" or "decode".
        model: The name of the model.
        end: "zero" or "sigma_min".
        dtype: The dtype of the state.
        nodes: The noise levels in the order of the run, (N+1,).
        labels: The network's label t at each node, (N+1,).
        evaluations: Evaluations of the network per image; None if they depend on the data.
        instructions: The arithmetic in words; empty if another library does it, or it depends on the data.
        growth: The growth of rounding errors; None if it is not known.
        refused: Why such a run is refused; "" if it is not.
        gaussian: The relative error of such a run for images N(0, 0.5²), whose exact solution is known; None if the
            evaluations depend on the data, or the solver adds noise. A solver with an error above 1 is unstable there.
        sensitivity: The largest singular value of the decode at some noises, see `odeddim.sensitivity`; empty if it was
            not asked for.
        carried: The noise levels (σ_s, σ_T) between which the model's Gaussian carries; None if the solver runs up to
            σ_T.
    """

    solver: str
    family: str
    order: int
    reference: str
    reversible: bool
    settings: Mapping[str, Any]
    chosen: Mapping[str, Any]
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
    gaussian: float | None
    sensitivity: tuple[float, ...] = ()
    carried: tuple[float, float] | None = None

    def to_json(self) -> str:
        """The explanation as JSON. Numbers that are not finite become null."""
        return json.dumps(_finite(asdict(self)), indent=1, ensure_ascii=False, allow_nan=False)


def explain(
    solver: str | Solver = defaults.ENCODE,
    *,
    direction: str = "encode",
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    top: str | None = None,
    dtype: str = "float32",
    plan: Plan | None = None,
    sensitivity: int = 0,
    **settings: Unpack[Settings],
) -> Explanation:
    """What `odeddim.encode` or `odeddim.decode` with the same arguments will do, before it does it.

    Args:
        direction: "encode" or "decode".
        solver, model, steps, grid, end, top, plan, **settings: As of `odeddim.encode`.
        dtype: The dtype of the state, "float32" or "float64".
        sensitivity: At how many noises the largest singular value of the decode is computed, which runs the network.

    Returns:
        The nodes, labels, evaluations, instructions and growth of rounding errors of the run.

    Raises:
        InputError: If an argument cannot be used.

    Example:
        >>> run = odeddim.explain("belm", steps=10)
        >>> run.evaluations, run.reversible, len(run.nodes)
        (10, True, 11)
        >>> run.instructions[0]
        'x̄ = x̄ + 0.0100005·ε(x̄, σ = 0), Euler from σ = 0'
    """
    field = load(model)
    pick(direction, DIRECTIONS, "direction")
    pick(dtype, ("float32", "float64"), "dtype")
    plan = planned(field, plan, solver, defaults.ENCODE, steps, grid, end, settings, top)
    row = plan.solver
    if direction == "encode":
        check_encodes(row)
    nodes, solved = (it.nodes if direction == "encode" else it.nodes.flip(0) for it in (plan, plan.solved))
    evaluations, gaussian, refused = _dry_run(plan, getattr(torch, dtype), direction)
    levels = [sigma for sigma in solved.tolist() if sigma > 0 or row.through_zero]
    return Explanation(
        solver=row.name,
        family=row.family,
        order=row.order,
        reference=row.reference,
        reversible=row.reversible,
        settings={key: str(value) if isinstance(value, Depends) else value for key, value in row.settings.items()},
        chosen=dict(row.chosen),
        direction=direction,
        model=field.name,
        end="zero" if float(plan.nodes[0]) == 0 else "sigma_min",
        dtype=dtype,
        nodes=tuple(nodes.tolist()),
        labels=tuple(float(field.schedule.label(sigma, field.time)) for sigma in nodes),
        evaluations=evaluations,
        instructions=_instructions(row, levels, zero=float(plan.nodes[0]) == 0, direction=direction),
        carried=(plan.solved.top, plan.top) if plan.carried else None,
        growth=_growth(row, levels, dtype == "float32"),
        refused=refused,
        gaussian=gaussian,
        sensitivity=_sensitivity(field, plan, sensitivity, getattr(torch, dtype)),
    )


def _sensitivity(field: VectorField, plan: Plan, count: int, dtype: torch.dtype) -> tuple[float, ...]:
    """The largest singular values at the first so many noises of seed 0; of a model of any size, of 8×8 numbers."""
    if count < 1:
        return ()
    shape = field.shape or (1, 8, 8)
    found = sensitivities.sensitivity(noise(count, shape).to(dtype), model=field, plan=plan)
    return tuple(found.values.tolist())


def _growth(row: Solver, levels: list[float], single: bool) -> Growth | None:
    """The growth; None without any step, if it is not known, or if it overflows, where the run is refused."""
    if row.growth is None or len(levels) < 2:
        return None
    try:
        return row.growth(levels, single)
    except InputError:
        return None


def _dry_run(plan: Plan, dtype: torch.dtype, direction: str) -> tuple[int | None, float | None, str]:
    """Evaluations and error of a run over one number of Gaussian data, and the reason if the run is refused."""
    # A row whose evaluations depend on the data iterates when it encodes, and not when it decodes.
    row = plan.solver
    if row.adaptive or (row.nfe is None and direction == "encode"):
        return None, None, ""
    data = Gaussian(0.0, 0.5)
    field = _Counted(data)
    begin, end = plan.nodes[[0, -1] if direction == "encode" else [-1, 0]].tolist()
    xbar = data.flow(torch.ones(1, 1, dtype=dtype), 0.0, begin)
    try:
        found = integrate(field, State(xbar, begin), plan).xbar
    except InputError as error:
        return None, None, str(error)
    truth = data.flow(xbar, begin, end)
    return field.calls, None if row.stochastic else float((found / truth - 1).abs()), ""


class _Counted:
    """A field that counts its calls, with the Gaussian of its data."""

    def __init__(self, data: Gaussian) -> None:
        self.data, self.moments, self.calls = data, data.moments, 0

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        self.calls += 1
        return self.data(sigma, xbar)


def _finite(value: Any) -> Any:
    """The value with None in place of the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _instructions(row: Solver, levels: list[float], *, zero: bool, direction: str) -> tuple[str, ...]:
    if row.instructions is None or len(levels) < 2:
        return ()
    lines = [instruction.words(place) for place, instruction in enumerate(row.instructions(levels))]
    clean = min(levels)
    zero = zero and not row.through_zero
    if zero and direction == "encode":
        lines.insert(0, f"x̄ = x̄ + {clean:.6g}·ε(x̄, σ = 0), Euler from σ = 0")
    elif zero:
        lines.append(f"x̄ = x̄ - {clean:.6g}·ε(x̄, σ = {clean:.6g}), Euler to σ = 0")
    return tuple(lines)
