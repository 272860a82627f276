"""Plans: what a run does, decided before it runs. A solver with its settings, over the nodes of a grid.

A plan is made in one place, `Plan.of`, from what people say (a solver, steps, a grid, an end, settings), and everything
that runs, keeps or compares runs holds one: `integrate`, latent files, benches, bridges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odeddim import solvers
from odeddim.ode import grids
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.solvers.stochastic import ONLY_DECODES
from odeddim.storage.atomic import replacing
from odeddim.types import Field, InputError, Solver, State, pick

Grid: TypeAlias = str | Path | Tensor | Sequence[float] | None
GIVEN = "nodes"
"""The name of a grid whose nodes were given, and of an end that is neither σ = 0 nor σ_1."""

FORMAT, VERSION = "odeddim plan", 1
_LARGEST = 1 << 26  # letters of a file: a plan of the most steps has 25 million
_TOLD = ("model", "sha256", "condition")  # notes of `Plan.noted`, words all
_NO_STEPS = "solver {!r} chooses its own steps: leave out steps and grid, and give rtol and atol"
_LOWEST = 1e-6  # of σ_1: nodes below would only add rounding


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run does.

    Attributes:
        solver: The row of the solver table, with its settings.
        nodes: The noise levels, (N+1,) float64 on the CPU, rising from the image to the noise. Encoding walks them up,
            decoding walks them down. An adaptive solver goes from the first to the last and chooses those between.
        grid: The name of the grid, the path of its file, or "nodes" where the nodes were given.
        end: Where images lie: "zero" (σ = 0), "sigma_min" (σ_1), or "nodes" (elsewhere).
        notes: What a file says besides: for which model the plan was found, and what it keeps.
    """

    solver: Solver
    nodes: Tensor
    grid: str = GIVEN
    end: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", grids.check_nodes(self.nodes, where="plan"))
        if not self.end:
            object.__setattr__(self, "end", "zero" if float(self.nodes[0]) == 0 else GIVEN)

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        solver: str | Solver,
        steps: int | None = None,
        grid: Grid = None,
        end: str = "zero",
        settings: Mapping[str, object] | None = None,
        *,
        top: float | None = None,
    ) -> Plan:
        """The plan of what people say.

        Args:
            schedule: The noise levels of the model.
            solver: A name of `odeddim.solvers.names()`, or a row of one's own.
            steps: The number of steps; 50 unless given, or as many as a file has. Not of adaptive solvers.
            grid: A name of `odeddim.ode.grids.NAMES`, a file, the nodes themselves (rising σ), or None for the
                solver's own. Of nodes given to an adaptive solver only the ends are kept.
            end: "zero" or "sigma_min" (see `odeddim.ode.grids`).
            settings: The solver's own (`Solver.settings`); those that are None keep their defaults.
            top: Where a named grid ends in place of σ_T.

        Raises:
            InputError: What cannot be used: an unknown name, steps of an adaptive solver, nodes outside the model's.
        """
        pick(end, grids.ENDS, "end")
        row = solvers.get(solver) if isinstance(solver, str) else solver
        if not isinstance(row, Solver):
            raise InputError(f"a solver is a name or a row of the table (odeddim.Solver), not {row!r}")
        row = row.with_settings(**(settings or {}))
        if grid is None or isinstance(grid, (str, Path)):
            nodes, name = _named(schedule, row, steps, grid, end, top), str(grid or row.grid)
        else:
            if row.adaptive and steps is not None:
                raise InputError(_NO_STEPS.format(row.name))
            nodes, name = grids.check_nodes(grid, steps=steps), GIVEN
            if end == "sigma_min" and float(nodes[0]) == 0:
                raise InputError("the nodes given begin at σ = 0, which is end 'zero', not 'sigma_min'")
        nodes = on_schedule(nodes, schedule, adaptive=row.adaptive)
        return cls(row, nodes, name, end_of(nodes, schedule))

    @property
    def steps(self) -> int | None:
        """How many steps; None where the solver chooses them."""
        return None if self.solver.adaptive else len(self.nodes) - 1

    @property
    def top(self) -> float:
        """The noise level of the latents."""
        return float(self.nodes[-1])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that change a result: all that were chosen, but for where a run gives up."""
        return {key: value for key, value in self.solver.chosen.items() if key not in self.solver.limits}

    @cached_property
    def evaluations(self) -> float:
        """Evaluations of the network per image to encode; NaN where they depend on the image.

        Raises:
            InputError: For a solver that only decodes.
        """
        check_encodes(self.solver)
        return self._count(State(self.nodes.new_zeros(1, 1), float(self.nodes[0])))

    @cached_property
    def evaluations_down(self) -> float:
        """Evaluations of the network per image to decode; NaN where they depend on the image."""
        return self._count(State(self.nodes.new_zeros(1, 1), self.top))

    def _count(self, start: State) -> float:
        """By a run over one number: no other way of counting holds for all rows."""
        rising = start.sigma < self.top
        row = self.solver
        if row.adaptive or (rising and row.nfe is None):  # falling, rows that iterate do not
            return math.nan
        calls = 0

        def zero(sigma: Tensor, xbar: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return xbar * 0

        integrate(zero, start, self)
        return calls

    def with_solver(self, solver: Solver) -> Plan:
        """The same nodes, walked by another row or by this one with other settings."""
        return replace(self, solver=solver)

    def noted(self, model: VectorField, **notes: Any) -> Plan:
        """The plan with notes of the model that it was found for, and of whatever else is known of it."""
        condition = {"condition": model.condition.words} if model.condition.words else {}
        return replace(self, notes={"model": model.name, "sha256": model.sha256, **condition, **notes})

    def unlike(self, model: VectorField) -> str:
        """What the notes say of the model that the plan was found for, if that is another one; "" if it is this one."""
        theirs = self.notes.get("sha256") or self.notes.get("model")
        if theirs and theirs != (model.sha256 if self.notes.get("sha256") else model.name):
            name = self.notes.get("model", theirs)
            weights = f" with other weights ({theirs[:12]})" if name == model.name else ""
            return f"for the model {name!r}{weights}, not {model.name!r}"
        condition = self.notes.get("condition", "")
        if theirs and condition != model.condition.words:
            return f"under {condition or 'no condition'}, not {model.condition.words or 'without condition'}"
        return ""

    def on(self, schedule: Schedule) -> Plan:
        """The plan for a model with this schedule. Raises InputError for nodes that the model does not know."""
        nodes = on_schedule(self.nodes, schedule, adaptive=self.solver.adaptive)
        end = end_of(nodes, schedule)
        return self if torch.equal(nodes, self.nodes) and end == self.end else replace(self, nodes=nodes, end=end)

    def __eq__(self, other: object) -> bool:
        """Whether both do the same: the solver by its name, its settings, the nodes to the bit, grid, end and notes."""
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    def __str__(self) -> str:
        """The plan in words, as a last line tells it."""
        steps = "its own steps" if self.steps is None else f"{self.steps} step{'s' if self.steps != 1 else ''}"
        grid = "" if self.solver.adaptive else f", {self.grid} grid"
        words = {name: f"{value:g}" if isinstance(value, float) else value for name, value in self.settings.items()}
        settings = "".join(f", {name} {value}" for name, value in words.items())
        return f"{self.solver.name}{grid}, {steps}, end {self.end}{settings}"

    def to_dict(self) -> dict[str, Any]:
        """The content of its file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "solver": self.solver.name,
            "settings": dict(self.solver.chosen),
            "grid": self.grid,
            "end": self.end,
            **({"notes": dict(self.notes)} if self.notes else {}),
            "nodes": self.nodes.tolist(),
        }

    def to_json(self) -> str:
        """The content of its file, in words."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, plan.json, which `Plan.load`, `--plan` and, for its nodes, `--grid` read.

        Raises:
            InputError: If the file cannot be written.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan of a file that `save` wrote.

        Raises:
            InputError: For anything else, and for a solver or a setting that this version does not have.
        """
        try:
            with open(path, encoding="utf-8") as file:
                content = json.loads(file.read(_LARGEST))  # a device would never end
        except OSError as error:
            raise InputError(f"the plan {path} cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no plan: `Plan.save` and `odeddim grid` write them") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path} is no plan: `Plan.save` and `odeddim grid` write them")
        kinds = {"solver": str, "settings": dict, "grid": str, "end": str, "nodes": list}
        wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
        notes, version = content.get("notes", {}), content.get("version")
        wrong += [name for name in ("grid", "end") if content.get(name) == ""]
        if not isinstance(notes, dict) or not all(isinstance(notes.get(name, ""), str) for name in _TOLD):
            wrong.append("notes")
        if version != VERSION or isinstance(version, bool) or wrong:
            what = f"{wrong[0]} is missing or wrong" if wrong else f"version {version!r:.20}"
            raise InputError(f"{path} is damaged, or was written by a newer odeddim ({what}): make it again")
        try:
            row, settings = solvers.get(content["solver"]), content["settings"]
            if unknown := [name for name, value in settings.items() if name not in row.settings or value is None]:
                raise InputError(
                    f"solver {row.name!r} has no setting {unknown[0]!r} of that value: make the plan again"
                )
            row, nodes = row.with_settings(**settings), grids.check_nodes(content["nodes"], where="nodes")
            pick(content["end"], (*grids.ENDS, GIVEN), "end")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # what is no number, or none of float64
            raise InputError(f"{path} is damaged (nodes or settings are no numbers): make the plan again") from error
        if (content["end"] == "zero") != (float(nodes[0]) == 0):
            raise InputError(
                f"{path} is damaged (end {content['end']!r}, but its nodes begin at {float(nodes[0]):.6g})"
            )
        return cls(row, nodes, content["grid"], content["end"], notes)


def _named(
    schedule: Schedule, row: Solver, steps: int | None, grid: str | Path | None, end: str, top: float | None
) -> Tensor:
    """The nodes of a named grid or a file; of adaptive solvers its ends."""
    if not row.adaptive:
        return grids.grid(str(grid or row.grid), schedule, steps, end=end, top=top)
    if steps is not None or grid is not None:
        raise InputError(_NO_STEPS.format(row.name))
    ends = [0.0 if end == "zero" else schedule.sigma_min, top or schedule.sigma_max]
    return torch.tensor(ends, dtype=torch.float64)


def end_of(nodes: Tensor, schedule: Schedule) -> str:
    """Where images lie on these nodes: "zero", "sigma_min" or "nodes"."""
    return {0.0: "zero", 1.0: "sigma_min"}.get(float(nodes[0]) / schedule.sigma_min, GIVEN)


def on_schedule(nodes: Tensor, schedule: Schedule, *, adaptive: bool) -> Tensor:
    """Nodes within the model's range: a top within a rounded figure of σ_T is σ_T; above it the model knows nothing."""
    top = schedule.sigma_max
    if float(nodes[-1]) > top * (1 + 1e-5):
        raise InputError(
            f"the grid ends at σ = {float(nodes[-1]):.9g}, above the model's σ_T = {top:.9g}: end it there"
        )
    if math.isclose(float(nodes[-1]), top, rel_tol=1e-5):
        nodes = torch.cat([nodes[:-1], nodes.new_tensor([top])])
    first = nodes[1] if float(nodes[0]) == 0 else nodes[0]
    if float(first) < schedule.sigma_min * _LOWEST:
        raise InputError(
            f"the grid's node σ = {float(first):.3g} is too close to 0: put it at 0, or {_LOWEST}·σ_1 or more"
        )
    if adaptive and float(nodes[0]) == 0:
        # The step from 0 is Euler's and nobody controls its error: it must be the shortest that the model knows.
        return nodes.new_tensor([0.0, min(schedule.sigma_min, float(first)), float(nodes[-1])])
    return nodes[[0, -1]] if adaptive else nodes


def check_encodes(row: Solver) -> None:
    """Raises InputError for a solver that only decodes."""
    if row.stochastic:
        raise InputError(f"solver {row.name!r} {ONLY_DECODES}")


def integrate(field: VectorField | Field, state: State, plan: Plan) -> State:
    """Walk a state along the nodes of a plan: from its first node up, from its last node down.

    This is the bare ODE, and the only place that knows the end at σ = 0. Between 0 and its neighbour lies one Euler
    step, as in the paper: x̄ + σ·ε with ε from the step's source. The solver gets the other nodes, all positive; one
    that goes to 0 itself gets them all. Gradients are off.

    Args:
        field: A model, or any function ε = field(σ, x̄), σ () or (B,) float64, x̄ (B, *).
        state: x̄ (B, *) at the first node of the plan or at its last.
        plan: The solver and the nodes.

    Returns:
        The state at the other end of the plan. Its `report` says what the solver tells of each image.

    Raises:
        InputError: For a state that lies elsewhere, or that the model does not take.
        BudgetExceeded: When an adaptive solver reaches max_nfe; it carries the best state so far.

    Source:
        Song et al. 2020, arXiv 2010.02502, eq. 13 and 14.

    Example:
        >>> import odeddim, torch
        >>> plan = odeddim.plan("exact-gaussian", "rk4", steps=20)
        >>> start = odeddim.State(torch.zeros(1, 1, 2, 2), sigma=0.0)
        >>> round(odeddim.integrate(odeddim.load("exact-gaussian"), start, plan).sigma)
        157
    """
    sigmas = plan.nodes
    if not math.isclose(state.sigma, float(sigmas[0]), rel_tol=1e-12):
        if not math.isclose(state.sigma, plan.top, rel_tol=1e-12):
            raise InputError(
                f"the state lies at σ = {state.sigma:.9g}, but the plan goes from σ = {float(sigmas[0]):.9g} to "
                f"{plan.top:.9g}: begin at one of them"
            )
        sigmas = sigmas.flip(0)
    return _walk(field, state, sigmas, plan.solver)


def _walk(field: VectorField | Field, state: State, sigmas: Tensor, solver: Solver) -> State:
    field, state = _ready(field, replace(state, report={}))
    with torch.no_grad():
        if solver.to_zero:
            return solver.run(field, state, sigmas)
        leaves_zero = float(sigmas[0]) == 0
        if leaves_zero:
            state = _euler(field, state, sigmas[0], sigmas[1])
            sigmas = sigmas[1:]
        lands_on_zero = float(sigmas[-1]) == 0
        inner = sigmas[:-1] if lands_on_zero else sigmas
        if len(inner) > 1:
            state = solver.run(field, state, inner)
        if lands_on_zero:
            state = _euler(field, state, sigmas[-2], sigmas[-1])
    if "evaluations" in state.report and leaves_zero + lands_on_zero:
        spent = state.report["evaluations"] + leaves_zero + lands_on_zero
        state = replace(state, report={**state.report, "evaluations": spent})
    return state


def _euler(field: Field, state: State, source: Tensor, target: Tensor) -> State:
    eps = field(source, state.xbar)
    return replace(state, xbar=torch.add(state.xbar, eps, alpha=float(target - source)), sigma=float(target))


def _ready(field: VectorField | Field, state: State) -> tuple[Field, State]:
    """The state on the field's device, checked against what the model takes."""
    if isinstance(field, VectorField):
        field.check(state.xbar)
        if field.device is not None:
            aux = tuple(part.to(field.device) for part in state.aux)
            state = replace(state, xbar=state.xbar.to(field.device), aux=aux)
    return field, state
