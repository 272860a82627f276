"""Solvers fitted to a model: nodes and the weights of a linear multistep rule for a number of evaluations.

1. Fine solutions of noises, or of images, are what is to be met.
2. Grids of three numbers (the noise level where the Gaussian takes over, the lowest one, how even they lie) are tried
   on a few of the solutions, with weights by least squares step by step.
3. Gauss-Newton moves all weights and nodes together (`odeddim.fitting.descent`). Other solutions say when to stop.
4. The errors that are reported are those on solutions that were used for nothing else.

No network is trained, and none needs gradients.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim import defaults
from odeddim.api import Model, state_dtype, to_data
from odeddim.fitting.checkpoint import Checkpoint
from odeddim.fitting.descent import GAIN, Point, evaluations, measured, round_of
from odeddim.fitting.pairs import Pairs, reference, solved
from odeddim.fitting.rules import Rule, Task, least_squares
from odeddim.fitting.shapes import Shape
from odeddim.models import DEFAULT, load
from odeddim.ode import grids
from odeddim.ode.field import VectorField
from odeddim.ode.tops import GAUSSIAN, LACKS, MODEL
from odeddim.plans import Plan, integrate
from odeddim.runs.progress import Progress, shown
from odeddim.solvers import get
from odeddim.solvers.fitted import DIRECTIONS
from odeddim.solvers.stochastic import noise
from odeddim.types import InputError, State, pick

BOTH = "both"
HELD_OUT = 64  # solutions for nothing but the errors that are reported
STOPPING = 4  # one solution in so many says when to stop
FIRST_NOISE = 1_000_000  # the index of the first noise: nobody's samples are those that were fitted
MOST_STEPS = 20
MOST_KEPT, MOST_NUMBERS = 16, 1 << 26  # solutions that are known between the ends: how many, and how many numbers
ROUNDS = 4
STARTS = 2
TOPS, LOWS, BENDS = (8.0, 16.0, 32.0, 64.0, 128.0), (0.02, 0.05, 0.1, 0.2, 0.4), (0.0, 3.0, 7.0)  # of `Shape`
PATIENCE = 2  # rounds in a row that other solutions gain nothing by
PLAIN = ("ab2", "ab3", "dpmpp-2m", "dpmpp-3m", "ipndm", "unipc-2", "belm")
PLAIN_GRIDS = ("log", "karras")
PLAIN_SETTINGS = {"warmup": "lower"}  # one evaluation in each step, the first ones too
QUANTILES = (0.5, 0.1, 0.9)


@dataclass(frozen=True)
class Errors:
    """Errors of one direction over the held-out solutions.

    Attributes:
        direction: "encode", errors of latents over σ_T; or "decode", of images in [-1, 1] (of a latent model's data).
        solver: What made them: "fitted", or a solver and its grid, "ab3@log".
        median, low, high: The median, and the quantiles 10% and 90%, of the rms of each image.
    """

    direction: str
    solver: str
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, direction: str, solver: str, means: Tensor) -> Errors:
        """The errors of mean squares (B,)."""
        return cls(direction, solver, *torch.quantile(means.double().sqrt(), torch.tensor(QUANTILES).double()).tolist())


@dataclass(frozen=True)
class Fitted:
    """A fitted solver.

    Attributes:
        plan: The plan, for `plan=` of `odeddim.encode` or `odeddim.decode`.
        errors: Its errors on held-out solutions.
        plain: Those of the best solver with named nodes on the same solutions, at as many evaluations.
        evaluations: The evaluations of one image that the fit took in all, of all images together.

    Example:
        >>> found = odeddim.fit("exact-mixture", 3, count=8, shape=(1, 4, 4))
        >>> found.plan.solver.name, found.plan.steps, [errors.solver for errors in found.errors]
        ('fitted', 3, ['fitted'])
    """

    plan: Plan
    errors: tuple[Errors, ...]
    plain: tuple[Errors, ...]
    evaluations: int


@dataclass(frozen=True)
class Aim:
    """What is to be fitted.

    Attributes:
        steps: The number of steps, which is that of evaluations.
        direction: "encode", "decode" or "both": one list of nodes, with weights for each direction.
        end: Where images lie: "zero" or "sigma_min".
        count: The number of solutions that are fitted to; a quarter of them says when to stop.
        seed: The seed of the noises.
        top: "gaussian" for the Gaussian of the data between the last node and σ_T and in the slopes, "model" for none;
            None to use it where the model has one.
        shape: The (C, H, W) of the images of noises, for models that take several sizes or any.
    """

    steps: int
    direction: str = "decode"
    end: str = "zero"
    count: int = defaults.FIT_COUNT
    seed: int = 0
    top: str | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        pick(self.direction, (*DIRECTIONS, BOTH), "direction")
        pick(self.end, grids.ENDS, "end")
        pick(self.top or MODEL, (MODEL, GAUSSIAN), "top of a fit")
        for name, least, most in (("steps", 1, MOST_STEPS), ("count", 8, defaults.MOST_NEW)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                many = ": with more steps a row of the table is as accurate" if name == "steps" else ""
                raise InputError(f"{name} of a fit must be a whole number from {least} to {most}, not {value!r}{many}")

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions that are fitted."""
        return DIRECTIONS if self.direction == BOTH else (self.direction,)


def fit(
    model: Model = DEFAULT,
    steps: int = defaults.FIT_STEPS,
    direction: str = "decode",
    *,
    images: Tensor | None = None,
    end: str = "zero",
    count: int = defaults.FIT_COUNT,
    seed: int = 0,
    top: str | None = None,
    shape: tuple[int, ...] | None = None,
    batch_size: int = 32,
    progress: Progress = False,
) -> Fitted:
    """Find the nodes and the weights with which a linear multistep rule errs least on a model.

    A step of the rule uses the state and the last three slopes ε, which the Gaussian of the model's data corrects where
    the model has one (`odeddim.solvers.fitted`). It is found from the model's own fine solutions, by
    least squares step by step and then by Gauss-Newton on the whole. For 10 steps it takes about as many evaluations as
    3,000 images in 20 steps.

    Args:
        model: A name, a path, a VectorField, or a pipeline of diffusers; a rule found for it belongs to it alone.
        steps: The number of steps, 1 to 20; each takes one evaluation.
        direction: "decode", "encode", or "both" for one plan with common nodes.
        images: Images whose fine encodings are met, (B, C, H, W) in [-1, 1], half of them or 64 held out; None for fine
            decodings of noises, whose images are those of the model.
        end: Where images lie: "zero" or "sigma_min".
        count: The number of solutions to fit to.
        seed: The seed of the noises.
        top: "gaussian" for the Gaussian of the data between the last node and σ_T, "model" for none; None to use it
            where the model has one.
        shape: The (C, H, W) of the images of noises, for models that take several sizes or any.
        batch_size: The number of images in work at once. The last digits of the result depend on it.
        progress: What shows progress; see `odeddim.runs.progress.Progress`.

    Returns:
        The plan, with its errors on solutions that were used for nothing else.

    Raises:
        InputError: If an argument cannot be used.

    Source:
        Shaul et al. 2024, arXiv 2403.01329 (non-stationary solvers, fitted by descent); here by least squares.

    Example:
        >>> found = odeddim.fit("exact-gaussian", 4, count=8, shape=(1, 4, 4))
        >>> found.errors[0].median < found.plain[0].median, found.plan.evaluations_down
        (True, 4)
    """
    aim = Aim(steps, direction, end, count, seed, top, shape)
    return Fit(load(model), aim, images, batch_size).run(progress=progress)


class Fit:
    """A fit under way.

    Args:
        field: The model.
        aim: What is to be fitted.
        images: As of `fit`.
        batch_size: As of `fit`.
        checkpoint: Where the fit is kept, to go on from after a kill; None to keep it in memory.

    Raises:
        InputError: If the model has no Gaussian and one is asked for, or there are too few images.
    """

    def __init__(
        self,
        field: VectorField,
        aim: Aim,
        images: Tensor | None = None,
        batch_size: int = 32,
        checkpoint: Path | None = None,
        mark: str = "",
    ) -> None:
        self.model, self.aim, self.batch = field, aim, batch_size
        self.field = copy.copy(field.on_data())
        self.images = images
        self.plan = reference(self.field, aim.end)
        self.moments = None if aim.top == MODEL else field.moments
        if aim.top == GAUSSIAN and self.moments is None:
            raise InputError(LACKS.format(repr(field.name)))
        self.held = HELD_OUT
        if images is not None:
            field.check(images, field.image_sizes)
            self.held = min(HELD_OUT, len(images) // 2)
            self.count = min(aim.count, len(images) - self.held)
            if self.count < 8:
                raise InputError(f"{len(images)} images are too few to fit to: give at least 16")
        else:
            self.count = aim.count
        self.shape = field.shape_of_data(aim.shape if images is None else tuple(images.shape[1:]))
        self.stopping = self.count // STOPPING
        self.checkpoint = self.solutions = Checkpoint(checkpoint, mark)

    @property
    def cost(self) -> int:
        """About the number of evaluations of an image that the fit takes."""
        ways, steps = len(self.aim.directions), self.aim.steps
        runs = sum(1 if way == self._way else 2 for way in self.aim.directions)
        fine = runs * (self.count + self.held) * len(self.plan.nodes)
        searched = ways * MOST_KEPT * steps * 80
        round_ = evaluations(steps, self.count - self.stopping, ways, corrected=self.moments is not None)
        rounds = 3 * (round_ + 2 * ways * self.count * steps)
        return fine + searched + rounds + ways * self.held * steps * (len(PLAIN) * len(PLAIN_GRIDS) + 1)

    @torch.no_grad()
    def run(self, progress: Progress = False) -> Fitted:
        """Do what is left of the fit."""
        before, left = self.field.rows, float(self.cost)
        with shown(progress, self.cost, "evaluations") as advance:

            def watch(count: int) -> None:
                nonlocal left
                advance(min(count, left))
                left -= min(count, left)

            self.field.watch = watch
            found = self._run()
            advance(left)
        plan, errors, plain = found
        return Fitted(plan, errors, plain, self.field.rows - before)

    def _run(self) -> tuple[Plan, tuple[Errors, ...], tuple[Errors, ...]]:
        ways = self.aim.directions
        pairs = {way: self._pairs(way, "pairs", 0, self.count) for way in ways}
        last = self.count - self.stopping
        tasks, others = (
            [self._task(way, _part(pairs[way], *its)) for way in ways] for its in ((0, last), (last, None))
        )
        rule = self._descended(tasks, others, self._searched(tasks))
        held = {way: self._pairs(way, "held", self.count, self.held) for way in ways}
        plan = self._plan_of(rule)
        errors = tuple(self._errors(way, plan, held[way], "fitted") for way in ways)
        plain = tuple(self._best_plain(way, held[way]) for way in ways)
        return plan, errors, plain

    # Solutions.

    def _pairs(self, direction: str, name: str, first: int, count: int) -> Pairs:
        """Fine solutions in a direction, of noises or images, batch by batch.

        Those against the way of noises or images start at the ends of fine solutions along it: over the Euler step at
        σ = 0 the ways are not each other's inverse, and a latent hangs on what is lost there.
        """
        parts = []
        room = MOST_NUMBERS // (len(self.plan.nodes) * math.prod(self.shape))
        kept = max(1, min(MOST_KEPT, room, self.count - self.stopping)) if name == "pairs" else 0
        for start in range(0, count, self.batch):
            stop = min(start + self.batch, count)

            def solve(start: int = start, stop: int = stop) -> dict[str, Tensor]:
                begin = self._begin(first + start, stop - start)
                if direction != self._way:
                    along = solved(self.field, begin, self.plan, self._way, 0, lambda n: None)
                    begin = (along.high if direction == "decode" else along.low).to(self._device)
                part = solved(self.field, begin, self.plan, direction, max(0, min(kept, stop) - start), lambda n: None)
                return {"low": part.low, "high": part.high, "levels": part.levels, "path": part.path}

            parts.append(Pairs(**self.solutions.tensors(f"{name}-{direction}-{start}", solve)))
        return Pairs.joined(parts)

    @property
    def _way(self) -> str:
        return "decode" if self.images is None else "encode"

    def _begin(self, first: int, count: int) -> Tensor:
        if self.images is not None:
            return self._data(first, count)
        fresh = noise(count, self.shape, seed=self.aim.seed, start=FIRST_NOISE + first)
        return (fresh * math.hypot(1.0, self.plan.top)).to(self._device)

    def _data(self, first: int, count: int) -> Tensor:
        """The data of images, counted from the last one."""
        assert self.images is not None
        stop = len(self.images) - first
        data = to_data(self.model, state_dtype(self.images[stop - count : stop]))
        return data.to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.field.device or torch.device("cpu")

    def _task(self, direction: str, pairs: Pairs) -> Task:
        return Task(direction, self.field, pairs, self.plan.top, self.moments, self.batch, self._device)

    # Nodes.

    def _searched(self, tasks: Sequence[Task]) -> list[Rule]:
        """The best of some grids, with weights by least squares on the solutions that are known between the ends.

        Returns:
            Up to `STARTS` rules with different last nodes, the best one first.
        """
        known = [task.over(task.pairs.known) for task in tasks]
        tops = TOPS if self.moments is not None else (self.plan.top,)
        found = []
        for top in tops:
            shapes = [Shape(top, *numbers) for numbers in itertools.product(LOWS, BENDS)]
            best = min(shapes, key=lambda shape: self._tried(known, shape))
            if math.isfinite(level := self._tried(known, best)):
                found.append(self._walked(known, best, level))
        if not found:
            raise InputError(
                f"no run of {self.aim.steps} steps over noise levels between {float(self.plan.nodes[0]):.6g} and "
                f"{self.plan.top:.6g} stayed finite: give another number of steps"
            )
        rules = []
        for _, shape in sorted(found, key=lambda pair: pair[0])[:STARTS]:
            nodes = self._nodes(shape)
            assert nodes is not None
            rules.append(_together([least_squares(task, nodes)[0] for task in known]))
        return rules

    def _walked(self, known: Sequence[Task], best: Shape, level: float) -> tuple[float, Shape]:
        """The level and the shape that walks from a shape end at."""
        for others in best.neighbours(movable=self.moments is not None):
            for shape in others(best):
                found = self._tried(known, shape)
                if not found < level - GAIN:
                    break
                best, level = shape, found
        return level, best

    def _tried(self, tasks: Sequence[Task], shape: Shape) -> float:
        """The mean logarithm of the error on the grid of a shape; infinite where there is none or a run fails."""
        nodes = self._nodes(shape)
        if nodes is None:
            return math.inf

        def error() -> list[float]:
            try:
                means = [least_squares(task, nodes)[1] for task in tasks]
            except InputError:  # the model's answer was not finite
                return [math.inf]
            return [sum(float((found + 1e-12).log().mean()) for found in means)]

        return float(self.checkpoint.numbers(f"shape {shape}", error)[0])

    def _nodes(self, shape: Shape) -> tuple[float, ...] | None:
        """The nodes of a shape; None if they do not fit on the model's levels."""
        lowest = float(self.plan.nodes[0])
        if not self.field.schedule.sigma_min < shape.low < shape.top <= self.plan.top:
            return None
        return (lowest, *shape.nodes(self.aim.steps))

    # Descent.

    def _descended(self, tasks: Sequence[Task], others: Sequence[Task], starts: Sequence[Rule]) -> Rule:
        """The best rule of a descent, from the start whose first round errs least on other solutions."""
        first = [self._rounds(tasks, others, place, rule, 1)[1] for place, rule in enumerate(starts)]
        place = first.index(min(first))
        return self._rounds(tasks, others, place, starts[place], ROUNDS)[0]

    def _rounds(
        self, tasks: Sequence[Task], others: Sequence[Task], place: int, rule: Rule, count: int
    ) -> tuple[Rule, float]:
        """Rounds of the descent from a start.

        Returns:
            The rule with the smallest objective on the others, and that objective.
        """
        point = measured(tasks, rule)
        best, level, waited = rule, measured(others, rule).objective, 0
        for number in range(count):
            before = point.objective

            def go(point: Point = point) -> dict[str, Any]:
                found = round_of(tasks, point, lambda images: None)
                if found is None:
                    return {}
                return {**_to_json(found.rule), "stopping": measured(others, found.rule).objective}

            made = self.checkpoint.values(f"start-{place}-round-{number}", go)
            if not made:
                break
            point = measured(tasks, _from_json(made))
            if made["stopping"] < level - GAIN:
                best, level, waited = point.rule, made["stopping"], 0
            else:
                waited += 1
            if waited >= PATIENCE or point.objective > before - GAIN * len(tasks):
                break
        return best, level

    # The plan and its errors.

    def _plan_of(self, rule: Rule) -> Plan:
        nodes = torch.tensor(rule.nodes, dtype=torch.float64)
        plan = Plan(get("fitted").with_settings(**rule.settings()), nodes, "fitted", self.plan.end)
        return plan if rule.nodes[-1] == self.plan.top else plan.below_gaussian(self.field.schedule)

    def _errors(self, direction: str, plan: Plan, pairs: Pairs, words: str) -> Errors:
        """The errors of a plan, run as everybody runs it."""

        def means() -> list[float]:
            found = []
            task = self._task(direction, pairs)
            for images in task.batches():
                begin = (pairs.low if task.rises else pairs.high)[images].to(self._device)
                state = State(begin, float(plan.nodes[0]) if task.rises else plan.top)
                found.append(task.misses(integrate(self.field, state, plan).xbar.cpu(), images).square().mean(dim=1))
            return torch.cat(found).tolist()

        return Errors.of(direction, words, torch.tensor(self.checkpoint.numbers(f"{direction} {words}", means)))

    def _best_plain(self, direction: str, held: Pairs) -> Errors:
        found = []
        for name in PLAIN:
            row = get(name)
            row = row.with_settings(**{key: value for key, value in PLAIN_SETTINGS.items() if key in row.settings})
            for grid in PLAIN_GRIDS:
                plan = Plan.of(self.field.schedule, row, self.aim.steps, grid, self.aim.end)
                try:
                    found.append(self._errors(direction, plan, held, f"{name}@{grid}"))
                except InputError:  # it is refused, or gets out of hand with so few steps
                    continue
        return min(found, key=lambda errors: errors.median)


def _part(pairs: Pairs, start: int, stop: int | None) -> Pairs:
    """Some of the solutions; only the first ones are known between the ends."""
    path = pairs.path if start == 0 else pairs.path[:0]
    return replace(pairs, low=pairs.low[start:stop], high=pairs.high[start:stop], path=path)


def _together(rules: Sequence[Rule]) -> Rule:
    """One rule of rules on the same nodes, each of a direction of its own."""
    weights = {way: table for rule in rules for way, table in rule.weights.items()}
    corrections = {way: table for rule in rules for way, table in rule.corrections.items()}
    return Rule(rules[0].nodes, weights, corrections)


def _to_json(rule: Rule) -> dict[str, Any]:
    return {"nodes": rule.nodes, "weights": rule.weights, "corrections": rule.corrections}


def _from_json(content: Mapping[str, Any]) -> Rule:
    weights, corrections = (
        {way: tuple(map(tuple, table)) for way, table in content[name].items()} for name in ("weights", "corrections")
    )
    return Rule(tuple(content["nodes"]), weights, corrections)
