"""The contracts: what a state, a field and a solver are, and how things go wrong.

Everything else in the project is written against this file. It imports nothing but torch, and that only for
type checkers, so that the solver table can be listed without loading torch.

Symbols, after *Denoising Diffusion Implicit Models* (arXiv 2010.02502), where α is the **cumulative** product
that other code writes ᾱ:

    x̄ = x / √α        σ = √(1-α) / √α        dx̄/dσ = ε(x̄, σ)                      (eq. 13, 14)
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Field = Callable[["Tensor", "Tensor"], "Tensor"]
"""ε = field(sigma, xbar): sigma () or (B,) float64, xbar (B, *), ε like xbar. In torchdiffeq's and scipy's order."""

Run = Callable[..., "State"]
"""state = run(field, state, sigmas, **settings): integrates from sigmas[0] to sigmas[-1]; sigmas (N+1,) float64 > 0.

It is called with gradients off (`odeddim.api.integrate` sees to it)."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, where, what to do."""


class BudgetExceeded(RuntimeError):  # noqa: N818 - it is an outcome, not a defect
    """An adaptive run used up its evaluations. `state` is the best so far: the last accepted point of the solution.

    Of solvers that take one image at a time it is that of the image (1, *) that the message names.
    """

    def __init__(self, message: str, state: State, nfe: int) -> None:
        super().__init__(message)
        self.state = state
        self.nfe = nfe


@dataclass(frozen=True, eq=False, repr=False)
class State:
    """A batch of points of the ODE at one noise level: a sequence of its images.

    Two states are equal if the next run cannot tell them apart: the same bits and dtypes of xbar and aux, the same
    sigma, kept and combined, on whatever devices. The report is not compared, for it tells of the run before. A state
    has no hash.

    Attributes:
        xbar: x̄ = x/√α, (B, *) float32 or float64.
        sigma: The noise level σ.
        aux: What a reversible method keeps besides x̄, each shaped like xbar.
        kept: Which method kept it, on which nodes. Another method, or the same one on other nodes, starts from x̄ alone.
        report: What the run that led here says of each image, name -> (B,) on the CPU: "evaluations", "accepted",
            "rejected" of adaptive rows, "residual" of those that iterate.
        combined: Whether it was made of other latents (interpolation, means, shifts): the way back that is kept is
            theirs.

    Example:
        >>> state = odeddim.State(torch.zeros(3, 1, 28, 28), 157.4)
        >>> state[1:]
        State(2 × (1, 28, 28) float32, σ = 157.4)
        >>> first, second, third = state
        >>> len(state), second == state[1], state == state.to(torch.float64)
        (3, True, False)
    """

    xbar: Tensor
    sigma: float
    aux: tuple[Tensor, ...] = ()
    kept: str = ""
    report: Mapping[str, Tensor] = field(default_factory=dict)
    combined: bool = False

    @property
    def x(self) -> Tensor:
        """x = √α·x̄ = x̄/√(1+σ²), (B, *): DDPM's units, in which a latent at σ_T has unit variance on any schedule."""
        return self.xbar / math.sqrt(1.0 + self.sigma**2)

    def to(
        self, device: torch.device | torch.dtype | str | int | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state on a device, in a dtype, or both, as `Tensor.to` takes them: xbar and aux. The report stays.

        Args:
            device: Such as "cuda"; a dtype may stand alone in its place.
            dtype: torch.float32 or torch.float64. In another dtype a reversible method cannot come back exactly.

        Returns:
            A State that shares with this one what need not be copied.

        Example:
            >>> odeddim.State(torch.zeros(1, 2), 1.0).to(torch.float64).xbar.dtype
            torch.float64
        """
        given: list[Any] = [value for value in (device, dtype) if value is not None]
        if not given:
            return self
        return replace(self, xbar=self.xbar.to(*given), aux=tuple(part.to(*given) for part in self.aux))

    def __len__(self) -> int:
        """The number of images, B."""
        return len(self.xbar)

    def __getitem__(self, images: int | slice | Sequence[int] | Tensor) -> State:
        """Some of the images: by an index (B = 1, from the end if negative), a slice, or indices or a mask in one row.

        Of an index and a slice the tensors are views, as torch has it. Raises IndexError where there is no such image.
        """
        rows: Any = images
        if isinstance(images, Sequence) and not isinstance(images, (tuple, str)):
            rows = list(images)
        elif not isinstance(images, slice) and getattr(images, "ndim", 0) == 0:
            place = operator.index(images)  # type: ignore[arg-type]  # a tensor () is one as well
            if not -len(self) <= place < len(self):
                raise IndexError(f"a state of {len(self)} images has no image {place}")
            rows = slice(place % len(self), place % len(self) + 1)
        if getattr(rows, "ndim", 1) != 1:
            raise IndexError(f"the images of a state are chosen by one row of indices, (n,), not {tuple(rows.shape)}")

        def of(part: Tensor) -> Tensor:
            return part[rows.to(part.device) if hasattr(rows, "to") else rows]

        report = {name: of(values) for name, values in self.report.items()}
        return replace(self, xbar=of(self.xbar), aux=tuple(of(part) for part in self.aux), report=report)

    def __iter__(self) -> Iterator[State]:
        """The images one after another, a State (1, *) each."""
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        mine, theirs = ((state.sigma, state.kept, state.combined, len(state.aux)) for state in (self, other))
        parts = zip((self.xbar, *self.aux), (other.xbar, *other.aux), strict=False)
        return mine == theirs and all(_same_bits(a, b) for a, b in parts)

    def __repr__(self) -> str:
        shape = f"{len(self)} × {tuple(self.xbar.shape[1:])} {str(self.xbar.dtype).removeprefix('torch.')}"
        place = "" if self.xbar.device.type == "cpu" else f" on {self.xbar.device}"
        kept = f", kept by {self.kept.split()[0]}" if self.kept else ""
        return f"State({shape}{place}, σ = {self.sigma:.6g}{kept}{', combined' if self.combined else ''})"


def _same_bits(a: Tensor, b: Tensor) -> bool:
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.device != b.device:
        a, b = a.cpu(), b.cpu()
    return torch.equal(*(part.detach().contiguous().view(torch.uint8) for part in (a, b)))


class Instruction(Protocol):
    """One step of a run whose arithmetic is known beforehand."""

    def words(self, place: int) -> str:
        """The instruction at this place of a plan, as `odeddim explain` prints it."""


@dataclass(frozen=True)
class Point:
    """One point of a run whose arithmetic is known beforehand: x̄ = Σ c_i·x̄_i + Σ w_j·ε_j, at the noise level σ.

    points: {i: c_i} and slopes: {j: w_j} over the points before it, by their place in the plan; ε_j is the field at
    point j. Point 0 is where the run starts.
    """

    sigma: float
    points: Mapping[int, float] = field(default_factory=dict)
    slopes: Mapping[int, float] = field(default_factory=dict)

    def words(self, place: int) -> str:
        """x̄_place = Σ c_i·x̄_i + Σ w_j·ε_j, at σ."""
        terms = [(weight, f"x̄{i}") for i, weight in self.points.items() if weight]
        terms += [(weight, f"ε{j}") for j, weight in self.slopes.items() if weight]
        return f"x̄{place} = {weighted_sum(terms) if terms else 'the start'}, at σ = {self.sigma:.6g}"


def weighted_sum(terms: Iterable[tuple[float, str]]) -> str:
    """A sum in words: "x̄0 - 3.25·ε0"."""
    text = ""
    for weight, what in terms:
        sign = (" - " if weight < 0 else " + ") if text else ("-" if weight < 0 else "")
        text += sign + (what if abs(weight) == 1 else f"{abs(weight):.6g}·{what}")
    return text


Plan = Callable[..., "Sequence[Instruction]"]
"""instructions = plan(nodes, **settings): what a run over these nodes does."""


@dataclass(frozen=True)
class Growth:
    """What becomes of rounding errors in a run, by its coefficients alone.

    encode, decode: the factor by which an error made somewhere in the run can have grown at its end. latent: the
    rounding error of the latent that this makes, over √(1+σ_T²); image: that of the image, over √(1+σ²) there.
    """

    encode: float
    decode: float
    latent: float
    image: float


class OdeSettings(TypedDict, total=False):
    """The settings of the table's rows that add no noise: for type checkers, and for editors that complete `rtol=`.

    `Solver.settings` says which of them a row has; None keeps the row's default. At run time nothing is checked
    against this class: a run asks the row. Settings that only a row of your own has go through its `with_settings`.
    """

    rtol: float | None
    atol: float | None
    max_nfe: int | None
    accuracy: float | None
    batch: int | None
    variable: str | None
    warmup: str | None
    gamma: float | None
    p: float | None
    coupling: float | None


class Settings(OdeSettings, total=False):
    """The settings of all rows of the table, those of the stochastic rows among them; see `OdeSettings`."""

    eta: float | None
    seed: int | None
    first: int | None


KINDS = {int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True)
class Solver:
    """One row of the table: a whole run from noise level to noise level, and what it declares about itself.

    Rising nodes encode, the same nodes falling decode. `order` is the global order that the order test measures
    (nominal for adaptive rows); `nfe` the evaluations per step (None where they depend on the data); `warmup` what the
    first steps cost on top of that; `grid` the family's recommended grid; `reference` the paper and equation.
    `settings` are the names that `with_settings` accepts, each with its type: int, float or str. `plan`: the run's
    arithmetic, of rows that follow one, which `odeddim explain` prints; `growth`: growth(nodes, single) of rounding
    errors, single if the state is float32. `onestep`: a step depends on the state at its start only. `adaptive`:
    chooses its own nodes between the first and the last. `reversible`: comes back exactly. `to_zero`: takes the Euler
    step between σ = 0 and its neighbour itself, which of other rows is left to `odeddim.api.integrate`. `stochastic`:
    adds noise, decodes only, and has the settings `seed` and `first`, the index of the batch's first image.
    """

    name: str
    run: Run
    family: str
    order: int
    nfe: int | None
    reference: str
    grid: str = "log"
    warmup: tuple[int, ...] = ()
    onestep: bool = False
    reversible: bool = False
    to_zero: bool = False
    adaptive: bool = False
    stochastic: bool = False
    settings: Mapping[str, type] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    plan: Plan | None = None
    growth: Callable[..., Growth] | None = None

    def __post_init__(self) -> None:
        if self.adaptive and self.nfe is not None:
            raise ValueError(f"solver {self.name!r} is adaptive: its nfe must be None")

    def evaluations(self, steps: int) -> int | None:
        """Evaluations per image for this many steps; None where they depend on the data."""
        return None if self.nfe is None else self.nfe * steps + sum(self.warmup[:steps])

    def with_settings(self, **settings: Any) -> Solver:
        """This row with settings such as rtol, atol, max_nfe fixed; settings that are None keep their defaults."""
        given = {key: value for key, value in settings.items() if value is not None}
        for key in given:
            if key not in self.settings:
                has = ", ".join(self.settings) or "none"
                raise InputError(f"solver {self.name!r} has no setting {key!r} (it has: {has})")
            kind, value = self.settings[key], given[key]
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise InputError(f"{key} of solver {self.name!r} must be {KINDS[kind]}, not {value!r}")
        if not given:
            return self
        plan = None if self.plan is None else functools.partial(self.plan, **given)
        growth = None if self.growth is None else functools.partial(self.growth, **given)
        chosen = {**self.chosen, **given}
        return replace(self, run=functools.partial(self.run, **given), plan=plan, growth=growth, chosen=chosen)


def pick(name: str, choices: Iterable[str], what: str) -> str:
    """`name` if it is one of the choices; otherwise an InputError that suggests its nearest neighbours."""
    known = list(choices)
    if name in known:
        return name
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise InputError(f"unknown {what} {name!r}; {hint}")
