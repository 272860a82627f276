"""Exact inversion by iteration: `exact-R` decodes as the row R, and encodes by the inverse of that, found numerically.

A one-step row is inverted step by step: x̄_{n+1} solves R(x̄_{n+1}) = x̄_n, where R is the falling step. For Euler that
is AIDI (Pan et al. 2023, arXiv 2309.04907). Other rows, whose steps depend on each other, are inverted as a whole run
(Hong et al. 2023, arXiv 2311.18387, invert DPM-Solver++). The explicit encoding E of the row corrects the estimate:
z ← z + E(x) - E(R(z)). Anderson's method accelerates both. R may have no inverse: the residual of an image says how far
it is from converging.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from typing import TYPE_CHECKING

from odeddim.solvers import multistep, onestep
from odeddim.solvers._settings import defaults_of
from odeddim.types import Depends, Field, InputError, Observe, Solver, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_BASES = {row.name: row for family in (onestep, multistep) for row in family.ROWS}
EULER = _BASES["euler"]
MEMORY = 5  # differences that Anderson's method keeps; 10 and 20 took as many evaluations, 0 up to three times as many
PATIENCE, PROGRESS = 10, 0.7  # an image gives up when so many iterations have not brought its residual down so far
BLOWN_UP = 100.0  # or when its residual is so many times its best
TOLERANCES = {"torch.float32": 3e-7, "torch.float64": 1e-14}  # a little above their rounding


def accuracy_of(dtype: torch.dtype) -> float:
    """The accuracy to which a state of this dtype is iterated."""
    return TOLERANCES[str(dtype)]


ACCURACY = Depends(float, "3e-07 in float32, 1e-14 in float64", accuracy_of)


def iterated(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    base: Solver,
    accuracy: float | Depends = ACCURACY,
    max_nfe: int = 10_000,
    observe: Observe | None = None,
) -> State:
    """Downwards the base row; upwards its inverse, found by iteration.

    The interval that ends at σ = 0 takes the Euler step. That step is the network's denoising, which many images do not
    have an inverse of. So the step from 0 upwards is explicit, as in all runs, and `aux` keeps what its way back lacks:
    one tensor like xbar, added at the end. No image depends on its neighbours.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, rising or falling; the lowest may be 0.
        base: The explicit row.
        accuracy: An image stops when the root mean square of its residual in image units, over √(1+σ²), is no more
            than this.
        max_nfe: Beyond so many evaluations of an image its steps are explicit, each with one more run for its residual.
        observe: What is shown x̄ at each node between the first and the last. A run that is inverted as a whole finds
            them all together, and shows none of them.

    Returns:
        The state at sigmas[-1]. Upwards its report has "evaluations" (B,) int64; "residual" (B,) float64, the largest
        one of the steps of an image, which is a lower bound of the error of its latent; and "converged" (B,) bool,
        whether that is within the accuracy.

    Raises:
        InputError: If accuracy or max_nfe is not positive.
    """
    import torch

    accuracy = accuracy.value(state.xbar.dtype) if isinstance(accuracy, Depends) else accuracy
    if not (accuracy > 0 and max_nfe > 0):
        raise InputError(f"accuracy and max_nfe must be positive, not {accuracy} and {max_nfe}")
    rising = float(sigmas[0]) < float(sigmas[-1])
    kept = f"exact-{base.name} on {hashlib.sha256(str(sorted(sigmas.tolist())).encode()).hexdigest()[:16]}"
    zero, positive = 0 in sigmas, sigmas[sigmas > 0]
    if not rising:
        if state.kept != kept and state.kept.startswith(f"exact-{base.name} "):
            warnings.warn(
                f"the latents are from {state.kept!r}, and this run has other nodes: it starts from x̄ alone and does "
                "not come back exactly",
                stacklevel=2,
            )
        end = base.walk(field, state, positive, observe) if len(positive) > 1 else state
        if zero:
            if observe is not None and len(positive) > 1:
                observe(end.sigma, end.xbar)
            end = EULER.run(field, end, sigmas[-2:])
            if state.kept == kept:
                end = State(end.xbar + state.aux[0], 0.0)
        return end
    counted = _Counted(field, len(state.xbar))
    aux: tuple[Tensor, ...] = ()
    if zero:
        image = state.xbar
        state = EULER.run(counted, state, sigmas[:2])
        aux = (image - EULER.run(counted, state, sigmas[:2].flip(0)).xbar,)
        if observe is not None and len(positive) > 1:
            observe(state.sigma, state.xbar)
    worst = torch.zeros(len(state.xbar), dtype=torch.float64)
    several = len(positive) > 1  # of one step nothing but Euler's is left
    place, xbar, sigma = state.xbar.device, state.xbar.cpu(), state.sigma
    for nodes in positive.unfold(0, 2, 1) if base.onestep and several else [positive] * several:
        xbar, residual = _inverse(counted, State(xbar, sigma), nodes, _Runs(base, counted, place), accuracy, max_nfe)
        sigma, worst = float(nodes[-1]), torch.maximum(worst, residual)
        if observe is not None and sigma != float(positive[-1]):
            observe(sigma, xbar.to(place))
    report = {"evaluations": counted.spent, "residual": worst, "converged": worst <= accuracy}
    return State(_sent(xbar, place), sigma, aux, kept if zero else "", report)


class _Counted:
    """A field that counts the evaluations of each image; `images` says which ones of the batch it is called for."""

    def __init__(self, field: Field, batch: int) -> None:
        import torch

        self.field = field
        self.images = torch.arange(batch)
        self.spent = torch.zeros(batch, dtype=torch.int64)

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        self.spent[self.images] += 1
        return self.field(sigma, xbar)


def _sent(xbar: Tensor, place: torch.device) -> Tensor:
    """x̄ on the field's device; the host waits for a copy to the CPU only."""
    return xbar.to(place, non_blocking=place.type != "cpu")


class _Runs:
    """The explicit runs of a row, from x̄ (B, *) on the CPU to x̄ there: one wait each, and all decisions cost none."""

    def __init__(self, row: Solver, field: Field, place: torch.device) -> None:
        self.row, self.field, self.place = row, field, place

    def __call__(self, xbar: Tensor, nodes: Tensor) -> Tensor:
        return self.row.run(self.field, State(_sent(xbar, self.place), float(nodes[0])), nodes).xbar.cpu()


def _inverse(
    field: _Counted, state: State, nodes: Tensor, run: _Runs, accuracy: float, max_nfe: int
) -> tuple[Tensor, Tensor]:
    """x̄ at the top of rising nodes that the row decodes to `state`, and the residuals (B,) float64, all on the CPU."""
    import torch

    low, falling, goal = float(nodes[0]), nodes.flip(0), state.xbar
    field.images = active = torch.arange(len(goal))
    z = start = run(goal, nodes)
    best, residual = z.clone(), torch.full((len(goal),), math.inf, dtype=torch.float64)
    mark, waited = residual.clone(), torch.zeros(len(goal), dtype=torch.int64)
    memory = _Anderson()
    while True:
        field.images = active
        image = run(z, falling)
        off = goal[active] - image
        found = _rms(off) / math.sqrt(1 + low**2)
        better = found < residual[active]
        best[active[better]], residual[active[better]] = z[better], found[better]
        moved = found <= PROGRESS * mark[active]
        mark[active[moved]] = found[moved]
        waited[active] = torch.where(moved, 0, waited[active] + 1)
        going = (residual[active] > accuracy) & (waited[active] < PATIENCE) & (field.spent[active] < max_nfe)
        going &= found < BLOWN_UP * residual[active]
        if bool(going.any()):
            active, z, off, image = active[going], z[going], off[going], image[going]
            memory.keep(going)
            field.images = active
            z = memory.next(z, off if run.row.onestep else start[active] - run(image, nodes))
            going = torch.isfinite(z).flatten(1).all(dim=1)
            active, z = active[going], z[going]
            memory.keep(going)
        if not bool(going.any()):
            return best, residual


class _Anderson:
    """Anderson's method for z ← z + f(z), each image by itself (Walker & Ni 2011, SIAM J. Numer. Anal. 49, 1715)."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.updates: list[Tensor] = []

    def keep(self, going: Tensor) -> None:
        """Keep only the images that go on, (B,) bool."""
        self.points = [point[going] for point in self.points]
        self.updates = [update[going] for update in self.updates]

    def next(self, z: Tensor, f: Tensor) -> Tensor:
        """z + f, less the part of it that the last differences explain in the sense of least squares."""
        import torch

        self.points = [*self.points, z][-MEMORY - 1 :]
        self.updates = [*self.updates, f][-MEMORY - 1 :]
        if len(self.points) == 1:
            return z + f
        moves = [_explained(*parts) for parts in zip(*self.points, *self.updates, strict=True)]
        return z + f - torch.stack(moves).to(z.dtype)


def _rms(off: Tensor) -> Tensor:
    """Root mean square of each image, (B, *) -> (B,): one by one, as torch's order of sums depends on the batch."""
    import numpy as np
    import torch

    rows = off.detach().double().numpy()
    return torch.tensor([math.sqrt(np.square(row.ravel()).mean()) for row in rows], dtype=torch.float64)


def _explained(*parts: Tensor) -> Tensor:
    """The part of the last update of one image that the last differences explain. parts: points, then updates, (*)."""
    import numpy as np
    import torch

    points, updates = np.split(np.stack([part.detach().double().numpy().ravel() for part in parts]), 2)
    dz, df = np.diff(points, axis=0), np.diff(updates, axis=0)
    accuracy = torch.finfo(parts[0].dtype)
    sizes = np.maximum(np.sqrt((df**2).sum(axis=1, keepdims=True)), accuracy.tiny)
    df, dz = df / sizes, dz / sizes
    gram = df @ df.T + 10 * accuracy.eps * np.eye(len(df))
    weights = np.linalg.solve(gram, df @ updates[-1])
    return torch.from_numpy(weights @ (dz + df)).reshape(parts[0].shape)


ONE_STEP = """
Decoding: x̄ₙ₊₁ = R(x̄ₙ), a step of the row NAME
Encoding: x̄ₙ₊₁ is the z for which R(z) = x̄ₙ
z ← z + x̄ₙ - R(z), accelerated by Anderson's method
"""
WHOLE_RUN = """
Decoding: x̄₀ = R(x̄), a run of the row NAME
Encoding: x̄ is the z for which R(z) = x̄₀
z ← z + E(x̄₀) - E(R(z)), accelerated by Anderson's method
E: a run of the row NAME upwards
"""


def exact(row: Solver) -> Solver:
    """The row `exact-R` of an explicit row R: it decodes as R, and encodes by the inverse of that.

    Args:
        row: A row with fixed steps that adds no noise and is not reversible.

    Returns:
        The row. Its run is described at `iterated`.

    Raises:
        InputError: For a row of another kind.
    """
    if row.adaptive or row.stochastic or row.reversible:
        raise InputError(
            f"solver {row.name!r} has no inverse to iterate for: give a solver with fixed steps that adds no noise"
        )
    source = "Pan et al. 2023, arXiv 2309.04907 (AIDI)" if row.onestep else "Hong et al. 2023, arXiv 2311.18387"
    return Solver(
        name=f"exact-{row.name}",
        run=functools.partial(iterated, base=row),
        family="iterated",
        order=row.order,
        nfe=None,
        reversible=True,
        to_zero=True,
        observable=True,
        encodes_whole=not row.onestep,
        onestep=row.onestep,
        grid="log",
        settings=defaults_of(iterated, "accuracy", "max_nfe"),
        reference=f"decodes as {row.name}, encodes by its inverse: {source}",
        formula=ONE_STEP if row.onestep else WHOLE_RUN,
        differentiable=False,
    )


DERIVED = {"exact-": exact}
ROWS = tuple(exact(_BASES[name]) for name in ("euler", "heun", "dpmpp-2m", "ab2"))
