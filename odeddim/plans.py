"""Plans: what a run does, decided before it runs. A solver with its settings, over the nodes of a grid.

A plan is made in one place, `Plan.of`, from the arguments that a user gives (a solver, steps, a grid, an end,
settings). Everything that runs, stores or compares runs holds a plan: `integrate`, latent files, benches, bridges.
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

from odeddim import foreign_names, solvers
from odeddim.ode import grids
from odeddim.ode.field import VectorField
from odeddim.ode.gaussian import Gaussian
from odeddim.ode.gradients import field_for, way_of
from odeddim.ode.plan_content import CARRIED_VERSION, HINT, PORTABLE_VERSION, VERSION, checked
from odeddim.ode.plan_content import FORMAT as FORMAT
from odeddim.ode.plan_content import GIVEN as GIVEN
from odeddim.ode.portable import certified, check_portable
from odeddim.ode.schedule import Schedule
from odeddim.ode.starts import Start
from odeddim.ode.tops import begins, lowered, raised
from odeddim.ode.waits import unwaiting
from odeddim.ode.walking import Callback as Callback
from odeddim.ode.walking import Steps as Steps
from odeddim.ode.walking import gaussian_of, solved
from odeddim.ode.walking import ready as ready
from odeddim.solvers._portable import NODE_BITS, portable_row, short_nodes
from odeddim.solvers.stochastic import ONLY_DECODES
from odeddim.storage.atomic import replacing
from odeddim.storage.json_files import read_json
from odeddim.types import Field, Gradients, InputError, Observe, Solver, State, pick, told_briefly

Grid: TypeAlias = str | Path | Tensor | Sequence[float] | None

_LARGEST = 1 << 26  # characters of a file: a plan with the most steps has 25 million
_NO_STEPS = "solver {!r} chooses its own steps: leave out steps=... and grid=..., and give rtol=... and atol=..."
_UNIT = Gaussian.isotropic(0.0, 1.0)
_LOWEST = 1e-6  # as a share of σ_1: nodes below it would only add rounding


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run does: a solver with its settings, and the nodes that it walks. `odeddim.plan` makes one.

    Attributes:
        solver: The row of the solver table, with its settings.
        nodes: The noise levels, (N+1,) float64 on the CPU, rising from the image to the noise. Encoding walks them up,
            decoding walks them down. An adaptive solver goes from the first to the last and chooses those between.
        grid: The name of the grid, the path of its file, or "nodes" where the nodes were given.
        end: Where images lie: "zero" (σ = 0), "sigma_min" (σ_1), or "nodes" (elsewhere).
        carried: Whether the last interval of the nodes, from σ_s to σ_T, is left to the model's Gaussian
            (`odeddim.ode.gaussian`), at no evaluation: the solver runs over the nodes up to σ_s.
        notes: Notes that the file of the plan holds too: the model for which the plan was found, and how.
        start: How an encoding begins: "" with the solver's first step, "forward:K" or "forward:K:SEED" with noise in
            place of the first K steps, see `odeddim.ode.starts`. Decoding walks all nodes down.
        portable: Whether the bits are to be the same on any machine (docs/portable.md): the network's answers, in
            float64, are rounded to a fixed grid, the state is held in integers, and nodes have 20 bits.

    Raises:
        InputError: If the nodes are not at least two finite noise levels that rise strictly, or those of the solver
            are not where the last interval is carried, or the start does not go with the solver and the nodes; or the
            plan is to be portable, and something in it cannot be.

    Example:
        >>> plan = odeddim.plan(solver="belm", steps=10)
        >>> print(plan)
        belm, log grid, 10 steps, end zero
        >>> plan.steps, plan.evaluations, plan.nodes.shape
        (10, 10, torch.Size([11]))
    """

    solver: Solver
    nodes: Tensor
    grid: str = GIVEN
    end: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    carried: bool = False
    start: str = ""
    portable: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", grids.check_nodes(self.nodes, where="plan"))
        if self.carried:
            grids.check_nodes(self.nodes[:-1], where="plan, below the interval that is carried")
        if not self.end:
            object.__setattr__(self, "end", "zero" if float(self.nodes[0]) == 0 else GIVEN)
        if self.start:
            Start.of(self.start).check(self.solver, len(self.nodes) - 1 - self.carried)
        if self.portable:
            portable_row(self.solver)  # or a sentence
            if self.carried or self.start:
                what = "top='gaussian'" if self.carried else f"start={self.start!r}"
                raise InputError(f"portable=True excludes {what}, whose numbers differ between machines: leave out one")
            object.__setattr__(self, "nodes", self.nodes.new_tensor(short_nodes(self.nodes.tolist())))

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
        top: float | str | None = None,
        moments: Gaussian | None = None,
        start: str | None = None,
    ) -> Plan:
        """The plan of the arguments that a user gives.

        Args:
            schedule: The noise levels of the model.
            solver: A name of `odeddim.solvers.names()`, or a row of your own.
            steps: The number of steps; 50 by default, or as many as a grid file has. Adaptive solvers take none.
            grid: A name of `odeddim.ode.grids.NAMES`, the path of a grid file, the nodes themselves (rising σ), or None
                for the grid that the solver recommends. Adaptive solvers keep only the ends of nodes.
            end: Where the image lies: "zero" or "sigma_min" (see `odeddim.ode.grids`).
            settings: The solver's settings (`Solver.settings`); those that are None keep their defaults.
            top: The last node of a named grid, in place of σ_T. Or "gaussian:σ_s", for a last interval from σ_s to σ_T
                that the model's Gaussian carries; "gaussian" for the σ_s that suits the number of steps, which may be
                none; "model" for none. Nodes that are given, and those of a file, are those of the solver: they end at
                σ_s.
            moments: The model's Gaussian, or None if it has none.
            start: How an encoding begins, "forward:K"; None for the solver's first step.

        Returns:
            The plan.

        Raises:
            InputError: If a name is unknown, an adaptive solver is given steps, a node is outside the model's range, or
                the model has no Gaussian that could carry.
        """
        pick(end, grids.ENDS, "end")
        row = solvers.get(solver) if isinstance(solver, str) else solver
        if not isinstance(row, Solver):
            hint = foreign_names.hint("solver", type(row).__name__, solvers.names())
            what = f"a {type(row).__name__}: {hint}" if hint else f"{row!r:.80}"
            raise InputError(f"solver must be a name or a row of the table (odeddim.Solver), not {what}")
        row = row.with_settings(**(settings or {}))
        if isinstance(top, str):
            low = begins(top, moments, schedule, row.evaluations(steps or grids.STEPS), named=_is_named(grid))
            if low is not None:
                own = cls.of(schedule, row, steps, grid, end, top=low if _is_named(grid) else None, start=start)
                return own.below_gaussian(schedule, low)
            top = None
        if grid is None or isinstance(grid, (str, Path)):
            nodes, name = _named(schedule, row, steps, grid, end, top), str(grid or row.grid)
        else:
            if row.adaptive and steps is not None:
                raise InputError(_NO_STEPS.format(row.name))
            nodes, name = grids.check_nodes(grid, steps=steps), GIVEN
            if end == "sigma_min" and float(nodes[0]) == 0:
                raise InputError("the nodes begin at σ = 0: give end='zero' instead of end='sigma_min'")
        nodes = on_schedule(nodes, schedule, adaptive=row.adaptive)
        return cls(row, nodes, name, end_of(nodes, schedule), start=start or "")

    def below_gaussian(self, schedule: Schedule, low: float = math.nan) -> Plan:
        """The plan with a further interval that the model's Gaussian carries, from where it ends to σ_T.

        Args:
            schedule: The noise levels of the model.
            low: Where the plan must end; NaN for anywhere.

        Returns:
            The plan.

        Raises:
            InputError: If the plan reaches σ_T already, or ends elsewhere.
        """
        if not math.isnan(low) and not math.isclose(low, self.top, rel_tol=1e-5):
            raise InputError(
                f"top='gaussian:{low:g}', but the nodes end at σ = {self.top:.9g}: give nodes that end there, or "
                "top='gaussian' for where they end"
            )
        if self.top >= schedule.sigma_max:
            raise InputError(
                f"the nodes reach the model's σ_T = {schedule.sigma_max:.6g}, so top='gaussian' has nothing to carry: "
                "leave out top=..., or end the nodes lower"
            )
        nodes = torch.cat([self.nodes, self.nodes.new_tensor([schedule.sigma_max])])
        return replace(self, nodes=nodes, carried=True)

    @property
    def solved(self) -> Plan:
        """The part of the plan that the solver runs: all of it, or all but the interval that is carried."""
        return replace(self, nodes=self.nodes[:-1], carried=False) if self.carried else self

    @property
    def steps(self) -> int | None:
        """The number of the solver's steps; None if the solver chooses them."""
        return None if self.solver.adaptive else len(self.nodes) - 1 - self.carried

    @property
    def top(self) -> float:
        """The noise level of the latents."""
        return float(self.nodes[-1])

    @property
    def settings(self) -> dict[str, Any]:
        """The chosen settings that change a result, so without those that only decide when a run gives up."""
        return {key: value for key, value in self.solver.chosen.items() if key not in self.solver.limits}

    @cached_property
    def evaluations(self) -> float:
        """Evaluations of the network per image to encode; NaN if they depend on the image.

        Raises:
            InputError: If the solver only decodes.
        """
        check_encodes(self.solver)
        return self.solved._count(self.begun(self.nodes.new_zeros(1, 1)))

    @cached_property
    def evaluations_down(self) -> float:
        """Evaluations of the network per image to decode; NaN if they depend on the image."""
        return self.solved._count(State(self.nodes.new_zeros(1, 1), self.solved.top))

    def _count(self, start: State) -> float:
        """Counted in a run over one number: no other way of counting holds for all rows."""
        rising = start.sigma < self.top
        row = self.solver
        if row.adaptive or (rising and row.nfe is None):  # rows that iterate do so on rising nodes only
            return math.nan
        calls = 0

        def zero(sigma: Tensor, xbar: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return xbar * 0

        zero.moments = _UNIT  # type: ignore[attr-defined]  # for rows that need the Gaussian of the data
        integrate(zero, start, replace(self, portable=False))
        return calls

    def begun(self, data: Tensor, first: int = 0) -> State:
        """The state from which the solver encodes.

        Args:
            data: What is encoded, (B, *).
            first: The index of the first image, by which noise is drawn if the encoding begins with some.

        Returns:
            The data at the first node; or, if the encoding begins with noise, x̄ at the node where the solver goes on.
        """
        if not self.start:
            return State(data, float(self.nodes[0]))
        return Start.of(self.start).begun(data, self.nodes, first)

    def portably(self, portable: bool = True) -> Plan:
        """The plan with bits that are the same on any machine, or without.

        Raises:
            InputError: If something in the plan cannot be portable.
        """
        return self if portable == self.portable else replace(self, portable=portable)

    def with_solver(self, solver: Solver) -> Plan:
        """The plan with the same nodes and another row, or this row with other settings."""
        return replace(self, solver=solver)

    def noted(self, model: VectorField, **notes: Any) -> Plan:
        """The plan with notes.

        Args:
            model: The model for which the plan was found.
            **notes: Further notes, values that JSON can hold.

        Returns:
            The plan.
        """
        return self.noted_of(model.name, model.sha256, model.condition.words, **notes)

    def noted_of(self, model: str, sha256: str, condition: str = "", **notes: Any) -> Plan:
        """The plan with notes that name a model by its name, its hash and the words of its condition."""
        under = {"condition": condition} if condition else {}
        return replace(self, notes={"model": model, "sha256": sha256, **under, **notes})

    def unlike(self, model: VectorField) -> str:
        """How the model for which the plan was found differs from this one, in words; "" if it does not."""
        if other := self.of_another(model):
            return other
        condition = self.notes.get("condition", "")
        if self._owner is None or condition == model.condition.words:
            return ""
        return f"under {condition or 'no condition'}, not {model.condition.words or 'without condition'}"

    def of_another(self, model: VectorField) -> str:
        """The model for which the plan was found, in words, if it is another one; "" if it is this one or not known."""
        theirs = self._owner
        if theirs is None or theirs == (model.sha256 if self.notes.get("sha256") else model.name):
            return ""
        name = self.notes.get("model", theirs)
        weights = f" with other weights ({theirs[:12]})" if name == model.name else ""
        return f"for the model {name!r}{weights}, not {model.name!r}"

    @property
    def _owner(self) -> str | None:
        """The model for which the plan was found: its hash, the name of one that has none, or None if not known."""
        return self.notes.get("sha256") or self.notes.get("model") or None

    def on(self, schedule: Schedule) -> Plan:
        """The plan for a model with another schedule.

        Args:
            schedule: The noise levels of the model.

        Returns:
            The plan, its last node at the model's σ_T if it is that up to rounding.

        Raises:
            InputError: If a node is outside the model's range.
        """
        nodes = on_schedule(self.nodes, schedule, adaptive=self.solver.adaptive, carried=self.carried)
        end = end_of(nodes, schedule)
        return self if torch.equal(nodes, self.nodes) and end == self.end else replace(self, nodes=nodes, end=end)

    def alone(self, schedule: Schedule, said: Mapping[str, bool]) -> Plan:
        """The plan on a model's schedule (`on`); an InputError if an argument beside it says how to run, too.

        Args:
            schedule: The noise levels of the model.
            said: The names of the other arguments, each with whether it was given.
        """
        if named := [name for name, given in said.items() if given]:
            raise InputError(f"plan=... says how to run: leave out {named[0]}=, or make another plan with it")
        return self.on(schedule)

    def ends_at(self, sigma: float) -> bool:
        """Whether latents at this noise level lie at the top of the plan, up to the rounding of a portable plan."""
        return math.isclose(sigma, self.top, rel_tol=2.0**-NODE_BITS)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same: the solver's name and settings, the nodes bit for bit, grid, end and notes."""
        return self is other or (isinstance(other, Plan) and self.to_dict() == other.to_dict())

    def __str__(self) -> str:
        """The plan in words, such as "belm, log grid, 10 steps, end zero"."""
        steps = "its own steps" if self.steps is None else f"{self.steps} step{'s' if self.steps != 1 else ''}"
        grid = "" if self.solver.adaptive else f", {self.grid} grid"
        top = f", gaussian from σ = {self.solved.top:.6g} to {self.top:.6g}" if self.carried else ""
        words = {name: f"{value:g}" if isinstance(value, float) else value for name, value in self.settings.items()}
        settings = "".join(f", {name} {told_briefly(value)}" for name, value in words.items())
        start = f", start {self.start}" if self.start else ""
        portable = ", portable" if self.portable else ""
        return f"{self.solver.name}{grid}, {steps}, end {self.end}{top}{settings}{start}{portable}"

    def to_dict(self) -> dict[str, Any]:
        """The content of the plan's file, as values that JSON can hold."""
        return {
            "format": FORMAT,
            "version": CARRIED_VERSION if self.carried else PORTABLE_VERSION if self.portable else VERSION,
            "solver": self.solver.name,
            "settings": dict(self.solver.chosen),
            "grid": self.grid,
            "end": self.end,
            **({"start": self.start} if self.start else {}),
            **({"notes": dict(self.notes)} if self.notes else {}),
            **({"carried": True} if self.carried else {}),
            **({"portable": True} if self.portable else {}),
            "nodes": self.nodes.tolist(),
        }

    def to_json(self) -> str:
        """The content of the plan's file, as text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, for `Plan.load`, `odeddim encode --plan`, or as a grid file.

        Args:
            path: The file, such as plan.json.

        Raises:
            InputError: If the file cannot be written.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file.

        Args:
            path: A file that `save` or `odeddim fit` has written.

        Returns:
            The plan.

        Raises:
            InputError: If the file is no plan or damaged, or names a solver or a setting that does not exist.
        """
        return cls.from_dict(read_json(path, "plan", HINT, most=_LARGEST), path)

    @classmethod
    def from_dict(cls, content: object, path: str | Path) -> Plan:
        """The plan of what `to_dict` has given.

        Args:
            content: What the file holds.
            path: The file, for messages.

        Returns:
            The plan.

        Raises:
            InputError: If it is no plan or damaged, or names a solver or a setting that does not exist.
        """
        return cls(**checked(content, path))


def _is_named(grid: Grid) -> bool:
    """Whether the nodes are those of a named grid, which ends where it is told to."""
    return grid is None or (isinstance(grid, (str, Path)) and grids.is_named(str(grid)))


def _named(
    schedule: Schedule, row: Solver, steps: int | None, grid: str | Path | None, end: str, top: float | None
) -> Tensor:
    """The nodes of a named grid or a grid file; for adaptive solvers only the ends."""
    if not row.adaptive:
        return grids.grid(str(grid or row.grid), schedule, steps, end=end, top=top)
    if steps is not None or grid is not None:
        raise InputError(_NO_STEPS.format(row.name))
    ends = [0.0 if end == "zero" else schedule.sigma_min, top or schedule.sigma_max]
    return torch.tensor(ends, dtype=torch.float64)


def end_of(nodes: Tensor, schedule: Schedule) -> str:
    """Where images lie on these nodes: "zero" (σ = 0), "sigma_min" (σ_1) or "nodes" (elsewhere)."""
    lowest = [schedule.sigma_min, *short_nodes([schedule.sigma_min])]  # σ_1, and σ_1 in a portable plan
    return "zero" if float(nodes[0]) == 0 else "sigma_min" if float(nodes[0]) in lowest else GIVEN


def on_schedule(nodes: Tensor, schedule: Schedule, *, adaptive: bool, carried: bool = False) -> Tensor:
    """Nodes on the model's range of noise levels.

    Args:
        nodes: The nodes, (N+1,), rising.
        schedule: The noise levels of the model.
        adaptive: Whether the solver chooses the nodes between the ends.
        carried: Whether the last interval is carried; the solver's last node is then the one before the last.

    Returns:
        The nodes, the last one at σ_T if it is that up to rounding; for an adaptive solver only the ends, with a node
        for the Euler step from 0 if they begin there.

    Raises:
        InputError: If a node lies above σ_T, or too close to 0.
    """
    top = schedule.sigma_max
    if float(nodes[-1]) > top * (1 + 1e-5):
        raise InputError(
            f"the grid ends at σ = {float(nodes[-1]):.9g}, above the model's σ_T = {top:.9g}: end it at σ_T or below"
        )
    if math.isclose(float(nodes[-1]), top, rel_tol=1e-5):
        nodes = torch.cat([nodes[:-1], nodes.new_tensor([top])])
    first = nodes[1] if float(nodes[0]) == 0 else nodes[0]
    if float(first) < schedule.sigma_min * _LOWEST:
        raise InputError(
            f"the grid's node σ = {float(first):.3g} is too close to 0: put it at 0, or at {_LOWEST}·σ_1 or above"
        )
    if carried:
        return torch.cat([on_schedule(nodes[:-1], schedule, adaptive=adaptive), nodes[-1:]])
    if adaptive and float(nodes[0]) == 0:
        # The step from 0 is an Euler step whose error is not controlled: it must be as short as the model allows.
        return nodes.new_tensor([0.0, min(schedule.sigma_min, float(first)), float(nodes[-1])])
    return nodes[[0, -1]] if adaptive else nodes


def check_encodes(row: Solver) -> None:
    """Raise an InputError if a solver only decodes."""
    if row.stochastic:
        raise InputError(f"solver {row.name!r} {ONLY_DECODES}")


def integrate(
    field: VectorField | Field,
    state: State,
    plan: Plan,
    *,
    callback: Callback | None = None,
    gradients: Gradients = None,
) -> State:
    """Walk a state along the nodes of a plan: from its first node up, from its last node down.

    This is the ODE alone, with its end at σ = 0. Between 0 and its neighbour lies one Euler
    step, as in the paper: x̄ + σ·ε with ε from the step's source. The solver gets the other nodes, all positive; a
    solver that goes to 0 itself gets all of them.

    Gradients are those of torch: where they are on, and x̄, aux, the network's parameters or a tensor inside the field
    need one, the result carries it. Otherwise nothing is kept.

    Args:
        field: A model, or any function ε = field(σ, x̄), σ () or (B,) float64, x̄ (B, *).
        state: The state, x̄ (B, *), at the first node of the plan or at the last.
        plan: The solver and the nodes.
        callback: Called as callback(step, sigma, xbar) after each step of the plan: the number of steps made, from 1
            to N, the node, and a copy of x̄ (B, *) there, whose changes change nothing. The last x̄ is the result. An
            adaptive solver makes steps of its own; one that gives each image its own steps shows only where the run
            ends, and so do exact-R of a multistep R, upwards, and rows of your own that are not observable. An error
            that the callback raises ends the run.
        gradients: How gradients are found, see `odeddim.solve`.

    Returns:
        The state at the other end of the plan. Its `report` holds what the solver reports of each image.

    Raises:
        InputError: If the state lies elsewhere, the model does not take it, or the solver gives no gradients and one
            is needed.
        BudgetExceeded: If an adaptive solver reaches max_nfe; the error holds the best state so far.

    Source:
        Song et al. 2020, arXiv 2010.02502, eq. 13 and 14.

    Example:
        >>> import odeddim, torch
        >>> plan = odeddim.plan("exact-gaussian", "rk4", steps=20)
        >>> start = odeddim.State(torch.zeros(1, 1, 2, 2), sigma=0.0)
        >>> round(odeddim.integrate(odeddim.load("exact-gaussian"), start, plan).sigma)
        157
    """
    return walk(*ready(field, state), plan, None if callback is None else Steps(callback), gradients)


def directed(plan: Plan, state: State) -> Tensor:
    """The nodes of a plan in the direction in which a state walks them, (N+1,) float64.

    Args:
        plan: The plan.
        state: The state, at the first node of the plan or at the last.

    Returns:
        The nodes, rising or falling.

    Raises:
        InputError: If the state lies elsewhere, or at the first node of a plan whose encoding begins with noise.
    """
    sigmas = plan.nodes
    if plan.start and not plan.ends_at(state.sigma):
        sigmas = sigmas[Start.of(plan.start).steps :]
        if math.isclose(state.sigma, float(plan.nodes[0]), rel_tol=1e-12):
            raise InputError(f"an encoding with start={plan.start!r} begins with noise: only `odeddim.encode` makes it")
    if math.isclose(state.sigma, float(sigmas[0]), rel_tol=1e-12):
        return sigmas
    if not plan.ends_at(state.sigma):
        raise InputError(
            f"the state lies at σ = {state.sigma:.9g}, but the plan goes from σ = {float(sigmas[0]):.9g} to "
            f"{plan.top:.9g}: give a state at one of them"
        )
    return sigmas.flip(0)


def walk(field: Field, state: State, plan: Plan, observe: Observe | None = None, gradients: Gradients = None) -> State:
    """The run of `integrate`, shown to an observer at each node but the first; see `Solver.walk`.

    Args:
        field: ε(σ, x̄).
        state: The state, on the field's device (`ready`).
        plan: The solver and the nodes.
        observe: The observer. It must not change the x̄ that it gets, nor keep it without a copy.
        gradients: How gradients are found, see `odeddim.solve`.

    Returns:
        The state at the other end of the plan, the same bits with and without an observer.
    """
    sigmas, solver, state = directed(plan, state), plan.solver, replace(state, report={})
    if plan.portable:
        check_portable(field)
        solver, state = portable_row(solver), state.to(torch.float64)
    way = way_of(solver, gradients)
    moments = gaussian_of(field) if plan.carried else None
    its = field_for(field, state, solver, way)

    def shown(reached: State) -> State:
        if observe is not None:
            observe(reached.sigma, reached.xbar)
        return reached

    def run() -> State:
        if moments is None:
            end = solved(its, state, sigmas, solver, shown, observe, way)
            return certified(field, end, sigmas) if plan.portable else end
        if plan.ends_at(state.sigma):
            below = shown(lowered(moments, state, float(sigmas[1]), plan.top))
            return solved(its, below, sigmas[1:], solver, shown, observe, way)
        below = solved(its, state, sigmas[:-1], solver, shown, observe, way)
        return shown(raised(moments, below, float(sigmas[-1])))

    with torch.set_grad_enabled(torch.is_grad_enabled() and way is not None):
        return unwaiting(field, state, solver, observe, run)
