"""Log density: how probable a model's ODE makes an image, with an error bar.

A run of the ODE moves x̄(σ_1) to x̄(σ_T), and along it log p changes by the trace of the field's Jacobian J = ∂ε/∂x̄:

    log p(x̄_1) = log N(x̄_T; 0, 1+σ_T²) + ∫ tr J dσ + path

The solver's state is x̄ alone. The integral is a quadrature over the run's nodes, made from outside: one evaluation at
each node, products of its Jacobian with probes (`odeddim.checks.divergence`), and a cubic spline in log σ through
σ·tr J - D·σ²/(1+σ²), whose last part, that of a normal distribution of variance 1, is integrated exactly. So any solver
that has nodes can be used, and one that amplifies rounding does not amplify that of log p.

`path` takes back the first order of the solver's own error. The run's x̄ is not quite the ODE's: from node to node it
moves by d = Δx̄ - ∫ ε dσ too much, and where ε/σ is minus the gradient of log p, log p falls by d·ε/σ on the way.

Where the density lies: at σ_1, the lowest noise level that the network knows. p is the density of the model's images
as `end="sigma_min"` makes them, which are data with noise of σ_1; nothing is claimed of the interval below. Images of
whole numbers get noise within their bins (`odeddim.checks.dequantisation`), and the density becomes a lower bound of
their log-probability.

Sources: Song et al. 2021, arXiv 2011.13456, eq. 39 (their likelihood, where log p is a component of the state).
Zheng et al. 2023, arXiv 2305.03935.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults, solvers
from odeddim.api import LOWEST_TOP, Model, planned, state_dtype, to_data
from odeddim.checks.density_path import COLUMNS, ERRORS, TERMS, Path, mean_of
from odeddim.checks.dequantisation import Dequantisation
from odeddim.checks.divergence import exact, probed
from odeddim.models import DEFAULT, load
from odeddim.ode.field import VectorField
from odeddim.ode.grids import is_named
from odeddim.plans import Callback, Grid, Plan, check_encodes, integrate
from odeddim.runs.batches import Batches, BatchSize
from odeddim.runs.progress import Progress
from odeddim.types import InputError, OdeSettings, Solver, State

_SMALL = 16  # numbers of an image: with fewer, their exact trace costs no more than what estimates it


@dataclass(frozen=True)
class LogDensity:
    """The log density of images under a model, each with its error.

    Attributes:
        terms: What the log density is the sum of, in nats: name of `TERMS` -> (B,) float64 on the CPU.
        errors: The parts of the standard error, in bits per dimension: name of `ERRORS` -> (B,). A part is NaN where it
            is not known: that of the dequantisation with one draw.
        dimensions: D, the numbers of an image, or of a latent model's data.
        evaluations: Evaluations of the network for an image.
        products: Products with its Jacobian for an image. Each costs a backward pass, about as much as an evaluation.
        of: What the density is of, in words.
        plan: The plan of the run.

    Example:
        >>> images = odeddim.sample(2, model="exact-gaussian", steps=5, shape=(1, 4, 4), end="sigma_min")
        >>> density = odeddim.log_density(images, model="exact-gaussian", dequantise="none")
        >>> len(density), density.nats.shape, density[0].bits_per_dim.shape
        (2, torch.Size([2]), torch.Size([1]))
    """

    terms: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    dimensions: int
    evaluations: float = math.nan
    products: float = math.nan
    of: str = ""
    plan: Plan | None = field(default=None, compare=False)

    @property
    def nats(self) -> Tensor:
        """The log density, (B,) float64: the sum of the terms."""
        return sum(self.terms.values(), torch.zeros(1, dtype=torch.float64))

    @property
    def bits_per_dim(self) -> Tensor:
        """Minus the log density over D, in bits, (B,) float64: small where the density is high."""
        return -self.nats / (self.dimensions * math.log(2))

    @property
    def standard_error(self) -> Tensor:
        """The standard error of `bits_per_dim`, (B,): the root of the sum of squares of the errors that are known."""
        return sum(part.nan_to_num(0).square() for part in self.errors.values()).sqrt()  # type: ignore[union-attr]

    def __len__(self) -> int:
        """The number of images, B."""
        return len(next(iter(self.terms.values())))

    def __getitem__(self, images: int | slice) -> LogDensity:
        """Some of the images, by an index (B = 1) or a slice."""
        if not isinstance(images, slice):
            place = range(len(self))[images]
            images = slice(place, place + 1)
        terms, errors = ({name: part[images] for name, part in its.items()} for its in (self.terms, self.errors))
        return replace(self, terms=terms, errors=errors)

    def __str__(self) -> str:
        """The density in words: the mean over the images, the typical error of one, and what it is of."""
        bits, error = self.bits_per_dim, self.standard_error
        spread = f" ± {float(bits.std() / math.sqrt(len(self))):.3f}" if len(self) > 1 else ""
        unknown = " (that of the dequantisation is not known from one draw)" if self._unknown else ""
        return (
            f"{float(bits.mean()):.3f}{spread} bits/dim, the mean of {len(self)}; an image's error is "
            f"{float(error.median()):.2g}{unknown}; {self.of}; {self.evaluations:g} evaluations and "
            f"{self.products:g} products with the Jacobian an image"
        )

    @property
    def _unknown(self) -> bool:
        return bool(self.errors["dequantisation"].isnan().any())


@torch.inference_mode(False)
@torch.no_grad()
def log_density(
    images: Tensor | np.ndarray,
    solver: str | Solver = defaults.DENSITY,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    plan: Plan | None = None,
    probes: int | str | None = None,
    dequantise: str | None = None,
    bits: int = 8,
    draws: int | None = None,
    seed: int = 0,
    start: int = 0,
    batch_size: BatchSize = None,
    progress: Progress = False,
    **settings: Unpack[OdeSettings],
) -> LogDensity:
    """Measure how probable a model's ODE makes images: bits per dimension, with a standard error for each image.

    Args:
        images: The images, (B, C, H, W) in [-1, 1], float32 or float64.
        solver: A name of `odeddim.solvers.names()` or a row of your own, with nodes that can be seen.
        model: As of `odeddim.encode`. Under a condition and guidance the density is that of the guided field's ODE. A
            latent model's is that of the data that its autoencoder makes of the images.
        steps: The number of steps, 20 by default.
        grid, plan, batch_size, progress, **settings: As of `odeddim.encode`. The images lie at the lowest node, σ_1.
        probes: Probes at each node, a power of two, 2 by default; "exact" for the exact trace, by as many products as
            an image has numbers, which is the default of images of at most 16.
        dequantise: "uniform" or "normal" noise within the bins of pixels of whole numbers, or "none" for continuous
            data; by default "uniform", and "none" for latent models.
        bits: The bits of a pixel: its 2^bits values are evenly spaced in [-1, 1], the ends among them.
        draws: Runs, each with its own dequantisation noise, whose mean is taken: 4 by default, 1 without such noise.
            From one draw the error that this noise makes is not known.
        seed: Probes and noise of an image depend on (seed, its index) only.
        start: The index of the first image.

    Returns:
        The log density. With dequantisation it is a lower bound of log P of the discrete image, and bits per dimension
        an upper bound; without, it is the density of continuous data in [-1, 1], whose bits may be negative.

    Raises:
        InputError: An argument cannot be used: a solver without visible nodes, nodes from σ = 0, images that are not of
            so many bits, a network that cannot be differentiated.
        BudgetExceeded: An adaptive run reached max_nfe; the error holds the best state so far.

    Source:
        Song et al. 2021, arXiv 2011.13456, section 4.3; Zheng et al. 2023, arXiv 2305.03935, section 4.

    Example:
        >>> images = torch.zeros(1, 1, 2, 2)
        >>> density = odeddim.log_density(images, model="exact-gaussian", dequantise="none")
        >>> truth = -2 * math.log(2 * math.pi * (0.5**2 + 0.01**2))
        >>> abs(float(density.nats) - truth) < 0.01
        True
    """
    model_field = load(model)
    images = state_dtype(images)
    plan = density_plan(model_field, plan, solver, steps, grid, settings)
    made = Density.of(model_field, plan, probes, dequantise, bits, draws, seed)
    model_field.check(images, model_field.image_sizes)
    made.noise.check(images, start)

    def batch(rows: slice, plan: Plan, callback: Callback | None) -> Tensor:
        return made.columns(images[rows], start + rows.start, callback)

    batches = Batches(model_field, plan, batch_size, progress)
    table = batches.run(batch, len(images), torch.device("cpu"), "measuring", tuple(images.shape[1:]))
    return made.density(table)


def density_plan(
    model: VectorField,
    plan: Plan | None,
    solver: str | Solver | None,
    steps: int | None,
    grid: Grid,
    settings: Mapping[str, object],
) -> Plan:
    """The plan of a run that measures a density: images at σ_1, `defaults.DENSITY_STEPS` unless something else is said.

    Args:
        model: The model.
        plan, solver, steps, grid, settings: As of `log_density`; the solver None for the default.

    Returns:
        The plan.

    Raises:
        InputError: For what cannot be used.
    """
    usual = solver or defaults.DENSITY
    if plan is not None:
        return check_plan(planned(model, plan, usual, defaults.DENSITY, steps, grid, "zero", settings), model)
    row = solvers.get(usual) if isinstance(usual, str) else usual
    fixed = isinstance(row, Solver) and not row.adaptive  # Plan.of says what else is no solver
    if steps is None and fixed and (grid is None or (isinstance(grid, str) and is_named(grid))):
        steps = defaults.DENSITY_STEPS
    return check_plan(Plan.of(model.schedule, row, steps, grid, "sigma_min", settings), model)


def check_plan(plan: Plan, model: VectorField) -> Plan:
    """The plan, if a density can be measured along it; otherwise an InputError."""
    row, least = plan.solver, min(LOWEST_TOP, model.schedule.sigma_max)
    check_encodes(row)
    if float(plan.nodes[0]) == 0:
        raise InputError("a density is taken at σ_1, but the nodes begin at σ = 0: give end='sigma_min'")
    if not row.observable:
        raise InputError(
            f"solver {row.name!r} does not show its nodes, which a density needs: give another, such as 'ab3'"
        )
    if plan.carried:
        raise InputError(
            "a density is that of the model's flow up to σ_T, not of a Gaussian's: leave out top='gaussian'"
        )
    if plan.portable:
        raise InputError("a density is not measured along portable runs: leave out portable=True")
    if plan.top < least:
        raise InputError(
            f"the grid ends at σ = {plan.top:.6g}, where images still show through the noise: end it at "
            f"σ = {least:.6g} at least for a density"
        )
    return plan


@dataclass(frozen=True)
class Density:
    """How densities are measured; `Density.of` checks what a user says of it.

    Attributes:
        model: The model.
        plan: The plan of each run.
        probes: The probes at each node; 0 for the exact trace.
        noise: The dequantisation.
        draws: The runs of each image.
        seed: The seed of probes and noise.
    """

    model: VectorField
    plan: Plan
    probes: int | None
    noise: Dequantisation
    draws: int
    seed: int

    @classmethod
    def of(
        cls,
        model: VectorField,
        plan: Plan,
        probes: int | str | None = None,
        dequantise: str | None = None,
        bits: int = 8,
        draws: int | None = None,
        seed: int = 0,
    ) -> Density:
        """Check the arguments of `log_density`."""
        if probes == "exact":
            probes = 0
        elif probes is not None and not (_whole(probes) and probes > 0 and probes & (probes - 1) == 0):  # type: ignore[operator]
            raise InputError(f"probes must be a power of two such as 2 or 4, or 'exact', not {probes!r}")
        kind = dequantise or ("none" if model.codec is not None else "uniform")
        noise = Dequantisation(kind, bits, float(plan.nodes[0]))
        if kind != "none" and model.codec is not None:
            raise InputError("the data of an autoencoder are continuous, without bins: leave out dequantise=...")
        if draws is not None and not (_whole(draws) and draws > 0):
            raise InputError(f"draws must be a positive whole number, not {draws!r}")
        if kind == "none" and draws not in (None, 1):
            raise InputError("without dequantisation noise all draws are the same: leave out draws=...")
        if not _whole(seed) or seed < 0:
            raise InputError(f"seed must be a whole number, not negative, not {seed!r}")
        draws = draws or (1 if kind == "none" else defaults.DENSITY_DRAWS)
        return cls(model, plan, probes, noise, draws, seed)  # type: ignore[arg-type]

    @property
    def words(self) -> str:
        """What the density is of, in words."""
        words = self.noise.words
        if self.model.codec is not None:
            words = f"of the data that the autoencoder makes, with noise of σ = {self.noise.sigma:.4g}"
        condition = self.model.condition
        return f"{words}, under {condition.words}" if condition.words else words

    def probes_of(self, shape: Sequence[int]) -> int:
        """The probes at each node for data of a shape (C, H, W); 0 for the exact trace."""
        if self.probes is not None:
            return self.probes
        return 0 if math.prod(shape) <= _SMALL else defaults.DENSITY_PROBES

    def columns(self, images: Tensor, start: int, callback: Callback | None = None) -> Tensor:
        """What is measured of images (B, C, H, W) whose first has this index: (B, K) float64, for `density`."""
        data, made = to_data(self.model, images), []
        for draw in range(self.draws):
            u = self.noise.noise(len(data), data.shape[1:], seed=self.seed, start=start, draw=draw)
            here = State(data + u.to(data), float(self.plan.nodes[0]))
            made.append(self.along(here, start, draw, callback)[1])
        return mean_of(torch.stack(made), self.noise.entropy * data[0].numel())

    def along(self, state: State, start: int, draw: int = 0, callback: Callback | None = None) -> tuple[State, Tensor]:
        """Run the ODE in either direction, and measure the density at its lower end.

        Args:
            state: The state, x̄ (B, *), at the first node of the plan or at the last.
            start: The index of its first image.
            draw: Which run of these images it is.
            callback: Called after each step, as of `odeddim.integrate`.

        Returns:
            The state at the other end, the same bits as without a density; and what was measured, (B, K) float64.
        """
        probes = self.probes_of(state.xbar.shape[1:])
        diagonal = exact if probes == 0 else probed(probes, seed=self.seed, start=start, draw=draw)
        ode = self.model.on_data()
        path = Path(ode, diagonal)
        path.at(state.sigma, state.xbar.to(ode.device or state.xbar.device))

        def step(made: int, sigma: float, xbar: Tensor) -> None:
            path.at(sigma, xbar)
            if callback is not None:
                callback(made, sigma, xbar)

        end = integrate(ode, state, self.plan, callback=step)
        return end, path.measured(noisy=probes > 0)

    def density(self, table: Tensor) -> LogDensity:
        """The log density of what was measured (`columns`, `along`), (B, K)."""
        by_name = dict(zip(COLUMNS, table.unbind(1), strict=True))
        size = round(float(by_name["dimensions"][0]))
        bits = size * math.log(2)
        return LogDensity(
            {name: by_name[name] for name in TERMS},
            {name: by_name[f"error {name}"] / bits for name in ERRORS},
            size,
            float(by_name["evaluations"][0]),
            float(by_name["products"][0]),
            self.words,
            self.plan,
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
