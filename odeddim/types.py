"""The contracts: what a state, a field and a solver are, and how things go wrong.

Everything else in the project is written against this file. It imports torch for type checkers only, so that the
solver table can be listed without loading torch.

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
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict

from odeddim import foreign_names

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

Field = Callable[["Tensor", "Tensor"], "Tensor"]
"""ε = field(sigma, xbar): sigma () or (B,) float64, xbar (B, *), ε like xbar. In torchdiffeq's and scipy's order."""

RunFunction = Callable[..., "State"]
"""state = run(field, state, sigmas, **settings): integrates from sigmas[0] to sigmas[-1]; sigmas (N+1,) float64 > 0.

Whether gradients are on is up to `odeddim.plans.integrate`: a row that is not `differentiable` is always called with
gradients off."""

Way: TypeAlias = Literal["reversible", "checkpoint", "direct"]
"""A way to gradients, see `Gradients`."""

Gradients: TypeAlias = Way | None
"""How a run gets its gradients: "reversible" rebuilds the states of a reversible solver backwards, "checkpoint"
evaluates the network again at each stored state, "direct" keeps all that the network computes; None: as suits the
solver."""

Observe = Callable[[float, "Tensor"], Any]
"""observe(sigma, xbar): what a run calls at each node between its first and its last, with x̄ (B, *) there."""


class Moments(Protocol):
    """The Gaussian of a model's data, as solvers see it: the attribute `moments` of a field, if it has one.

    See `odeddim.ode.gaussian.Gaussian`.
    """

    def centre(self, xbar: Tensor, /) -> Tensor:
        """The mean in float64 on the device of x̄ (B, *)."""

    def eps(self, sigma: Tensor, xbar: Tensor, /) -> Tensor:
        """The Gaussian's ε (B, *) at σ ()."""

    def per_component(self, factor: Callable[[Tensor], Tensor], /) -> tuple[Tensor, float]:
        """The values of a function of variances: those of the eigenvectors (K,), and that of the rest."""

    def filtered(self, terms: Sequence[tuple[Tensor, Tensor, float]], /) -> Tensor:
        """The sum (B, *) float64 of tensors, each with its components multiplied by factors of their own."""


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one sentence: what, where, what to do.

    Example:
        >>> odeddim.solvers.get("eulr")
        Traceback (most recent call last):
        odeddim.types.InputError: unknown solver 'eulr'; did you mean euler...
    """


class BudgetExceeded(RuntimeError):  # noqa: N818 - it is an outcome, not a defect
    """An adaptive run used up its evaluations.

    Attributes:
        state: The best state so far, the last accepted point of the solution. If the solver takes one image at a time,
            it is the state of the image (1, *) that the message names.
        nfe: The evaluations that the run has made.

    Example:
        >>> try:
        ...     odeddim.solve(odeddim.noise(1, (1, 4, 4)), "dopri5", model="exact-mixture", max_nfe=20)
        ... except odeddim.BudgetExceeded as error:
        ...     print(len(error.state), error.state.sigma < 157)
        1 True
    """

    def __init__(self, message: str, state: State, nfe: int) -> None:
        super().__init__(message)
        self.state = state
        self.nfe = nfe

    def __reduce__(self) -> tuple[type[BudgetExceeded], tuple[str, State, int]]:
        """As pickle takes it: another process may have made the run."""
        return type(self), (str(self), self.state, self.nfe)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory: Python's, or torch's of any device.

    torch's errors are known by their names and words: its CPU's, MPS's and cuBLAS's allocators have no class of errors.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("out of memory", "allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@dataclass(frozen=True, eq=False, repr=False)
class State:
    """A batch of points of the ODE at one noise level: a sequence of its images.

    Two states are equal if the next run cannot tell them apart: the same bits and dtypes of xbar and aux, the same
    sigma, kept and combined, on whatever devices. The report and the plan are not compared, for they tell of the run
    before. A state has no hash.

    Attributes:
        xbar: x̄ = x/√α, (B, *) float32 or float64.
        sigma: The noise level σ.
        aux: What a reversible method keeps besides x̄, each shaped like xbar.
        kept: Which method kept it, on which nodes. Another method, or the same one on other nodes, starts from x̄ alone.
        report: What the run that led here says of each image, name -> (B,) on the CPU: "evaluations", "accepted",
            "rejected" of adaptive rows, "residual" of those that iterate, "rounds" of runs in parallel.
        combined: Whether it was made of other latents (interpolation, means, shifts): the way back that is kept is
            theirs.
        plan: The `odeddim.Plan` that encoded the latents, with the name and the hash of the model in its notes; None if
            neither `odeddim.encode` nor a latent file made the state. `odeddim.decode` and `save` go by it.

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
    plan: Any = None

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

    def save(self, path: str | Path, **how: Any) -> None:
        """Save the latents as a file, z.h5: `odeddim.save(state, path, ...)`, whose arguments it takes."""
        import odeddim

        odeddim.save(self, path, **how)

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
    """One step of a run: an operation of a run whose arithmetic is known before it begins."""

    def words(self, place: int) -> str:
        """The instruction as `odeddim explain` prints it; `place` is its index in the run."""


@dataclass(frozen=True)
class Point:
    """One point of a run whose arithmetic is known before it begins: x̄ = Σ c_i·x̄_i + Σ w_j·ε_j.

    Point 0 is the start of the run. A point refers to earlier points by their index.

    Attributes:
        sigma: The noise level σ of the point.
        points: {i: c_i}, the weights of the earlier points.
        slopes: {j: w_j}, the weights of the field ε_j at the earlier points.
    """

    sigma: float
    points: Mapping[int, float] = field(default_factory=dict)
    slopes: Mapping[int, float] = field(default_factory=dict)

    def words(self, place: int) -> str:
        """The point as text: "x̄2 = x̄1 - 3.25·ε1, at σ = 0.5"."""
        terms = [(weight, f"x̄{i}") for i, weight in self.points.items() if weight]
        terms += [(weight, f"ε{j}") for j, weight in self.slopes.items() if weight]
        return f"x̄{place} = {weighted_sum(terms) if terms else 'the start'}, at σ = {self.sigma:.6g}"


def weighted_sum(terms: Iterable[tuple[float, str]]) -> str:
    """A weighted sum as text: "x̄0 - 3.25·ε0"."""
    text = ""
    for weight, what in terms:
        sign = (" - " if weight < 0 else " + ") if text else ("-" if weight < 0 else "")
        text += sign + (what if abs(weight) == 1 else f"{abs(weight):.6g}·{what}")
    return text


Instructions = Callable[..., "Sequence[Instruction]"]
"""list = instructions(nodes, **settings): the arithmetic of a run over these nodes, all positive."""

Transition = Callable[..., "tuple[float, float]"]
"""weight, deviation = transition(here, there, **settings): a step from σ = here to σ = there draws x̄ there from the
normal distribution with mean x̄ + weight·ε(x̄, here) and this standard deviation, 0 for a step without noise."""


@dataclass(frozen=True)
class Growth:
    """How much a run amplifies rounding errors, computed from its coefficients alone.

    Attributes:
        encode: The largest factor between an error anywhere in an encoding run and that error at the end of the run.
        decode: The same of a decoding run.
        latent: The rounding error of the latent that follows, relative to its scale √(1+σ_T²).
        image: The rounding error of the image, relative to √(1+σ²) at the lowest node.
    """

    encode: float
    decode: float
    latent: float
    image: float


@dataclass(frozen=True)
class Depends:
    """A default that depends on the run: it is computed when the run begins.

    Attributes:
        kind: The type of the setting's values: int, float or str.
        words: The rule in words, such as "0.93^(50/N) at N steps".
        value: The rule as a function. The run function that has the setting decides what the rule is given.
    """

    kind: type
    words: str
    value: Callable[..., Any]

    def __str__(self) -> str:
        return self.words


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
    weights: tuple[Any, ...] | None
    corrections: tuple[Any, ...] | None


class Settings(OdeSettings, total=False):
    """The settings of all rows of the table, those of the stochastic rows among them; see `OdeSettings`."""

    eta: float | None
    seed: int | None
    first: int | None


KINDS = {int: "a whole number", float: "a number", str: "a word", tuple: "a table: nested lists of finite numbers"}


def kind_of(default: Any) -> type:
    """The type of a setting's values, given its default."""
    return default.kind if isinstance(default, Depends) else type(default)


def table_of(value: Any) -> Any:
    """A table as a setting keeps it: tuples for lists, at any depth, and floats for numbers.

    Raises:
        TypeError: If it holds anything but finite numbers.
    """
    if isinstance(value, (list, tuple)):
        return tuple(map(table_of, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"a table holds no {value!r:.20}")
    return float(value)


def told_briefly(value: Any) -> Any:
    """The value of a setting for a line of text: of a table how many numbers it holds, all others as they are."""
    if not isinstance(value, tuple):
        return value

    def count(part: Any) -> int:
        return sum(map(count, part)) if isinstance(part, tuple) else 1

    return f"table of {count(value)} numbers" if count(value) else "none"


@dataclass(frozen=True)
class Solver:
    """One row of the solver table: how to integrate over a list of noise levels, and what others need to know of it.

    Rising nodes encode, and the same nodes in falling order decode. Code outside `odeddim.solvers` reads these fields
    and never compares the name or the family of a row with a string.

    Attributes:
        name: Lower-case words joined by hyphens.
        run: The run itself, see `RunFunction`.
        family: The heading of the row in the table. It is printed and has no other use.
        order: The global order of convergence. The tests measure it for rows with fixed steps; for adaptive rows it
            is nominal.
        nfe: Evaluations of the field per step and image, or None if they depend on the data.
        reference: The paper and the equation or algorithm.
        grid: The name of the grid that is recommended for the row.
        warmup: Additional evaluations of the first steps: (3, 3) are three more in each of the first two steps.
        onestep: A step depends on nothing but the state at its start.
        reversible: Decoding what the row has encoded, on the same nodes, returns the images that were encoded: bit
            for bit, or to an accuracy that the row reports for each image.
        to_zero: The row itself takes the Euler step between σ = 0 and its neighbour. For all other rows
            `odeddim.plans.integrate` takes it, and their nodes are positive.
        through_zero: The row is `to_zero`, and has weights of its own for that step: its instructions and growth are
            those of all nodes, that at σ = 0 too.
        adaptive: The row chooses its own nodes between the first and the last.
        stochastic: The row adds noise. It can only decode, and it has the settings `seed` and `first`, the index of
            the first image of the batch.
        ddim: The row is what the DDIM paper calls DDIM: its step at η = 0, on the paper's grids.
        stochastic_form: The name of the row that is the stochastic form of this one, with a setting `eta`; "" if
            there is none.
        shares_steps: All images of a batch take the same steps, chosen from all of them, so the result for an image
            depends on its batch.
        one_by_one: The field is evaluated for one image at a time.
        queued: Images leave the run one by one and others take their places, so a batch many times larger than that
            of the network keeps its evaluations full.
        settings: The settings of the row, name -> default. The type of the default (int, float, str, or a tuple for
            a table of numbers) is the type of the setting, and an int is accepted for a float. A default that depends
            on the run is a `Depends`.
        limits: The settings that only decide when a run gives up: they do not change a result that is reached.
        chosen: The settings that `with_settings` has fixed, name -> value.
        instructions: The arithmetic of the run, for rows that know it beforehand; `odeddim explain` prints it.
        slope: slope(field, sigmas, **settings) -> the field whose slopes the run uses, for rows that correct ε.
        growth: growth(nodes, single) -> `Growth`, for rows whose coefficients are known; `single` says whether the
            state is float32.
        observable: The run takes a further keyword, observe=, an `Observe` or None: see `walk`.
        encodes_whole: Upwards the run finds all its nodes together, at its end, and shows none of them.
        transition: The distribution of a step, a `Transition`, for rows that add noise and whose step depends on
            nothing but the state at its start.
        formula: A step in (x̄, σ), in the notation of the manual's page of solvers, which prints it.
        differentiable: Gradients go through a run: it is made of torch's operations, none of which changes in place an
            x̄ that the field was evaluated at.
        rebuilds: The run takes a further keyword, gradients=, one of `gradients` or None, and rebuilds its states
            backwards for the first of them.
        portable: The run takes a further keyword, portable=True, and then keeps its state in integers and the answers
            of the field on a fixed grid: `Plan.portable`. It gets σ = 0 among its nodes, and needs a float64 state.

    Example:
        >>> row = odeddim.solvers.get("belm")
        >>> row.order, row.nfe, row.reversible
        (2, 1, True)
    """

    name: str
    run: RunFunction
    family: str
    order: int
    nfe: int | None
    reference: str
    grid: str = "log"
    warmup: tuple[int, ...] = ()
    onestep: bool = False
    reversible: bool = False
    to_zero: bool = False
    through_zero: bool = False
    adaptive: bool = False
    stochastic: bool = False
    ddim: bool = False
    stochastic_form: str = ""
    shares_steps: bool = False
    one_by_one: bool = False
    queued: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)
    instructions: Instructions | None = None
    slope: Callable[..., Field] | None = None
    growth: Callable[..., Growth] | None = None
    observable: bool = False
    encodes_whole: bool = False
    transition: Transition | None = None
    formula: str = ""
    differentiable: bool = True
    rebuilds: bool = False
    portable: bool = False

    def __post_init__(self) -> None:
        if self.adaptive and self.nfe is not None:
            raise ValueError(f"solver {self.name!r} is adaptive: its nfe must be None")
        for key, default in self.settings.items():
            if kind_of(default) not in KINDS:
                raise ValueError(
                    f"solver {self.name!r}: the default of {key!r} must be an int, a float, a str, a tuple or a "
                    f"Depends, not {default!r}"
                )
        if unknown := {*self.limits, *self.chosen} - set(self.settings):
            raise ValueError(f"solver {self.name!r} has no setting {min(unknown)!r}, which its limits or chosen name")

    @property
    def gradients(self) -> tuple[Way, ...]:
        """The ways to gradients through a run, the usual one first (see `Gradients`); empty if there is none."""
        if not self.differentiable:
            return ()
        return ("reversible", "checkpoint", "direct") if self.rebuilds else ("checkpoint", "direct")

    def evaluations(self, steps: int) -> int | None:
        """Evaluations per image for this many steps, or None if they depend on the data."""
        return None if self.nfe is None else self.nfe * steps + sum(self.warmup[:steps])

    def walk(
        self,
        field: Field,
        state: State,
        sigmas: Tensor,
        observe: Observe | None = None,
        gradients: Gradients = None,
    ) -> State:
        """Do the run, and show it to an observer at each node between the first and the last.

        An adaptive row has nodes of its own, the ends of the steps that it has accepted. A row that is not observable
        shows nothing: its ends are all that is seen of it.

        Args:
            field, state, sigmas: See `RunFunction`.
            observe: The observer. It must not change the x̄ that it gets, nor keep it without a copy.
            gradients: The way to gradients, for a row that rebuilds its states.

        Returns:
            The state at sigmas[-1], the same bits with and without an observer.
        """
        more: dict[str, Any] = {}
        field = field if self.slope is None else self.slope(field, sigmas)
        if observe is not None and self.observable:
            more["observe"] = observe
        if gradients is not None and self.rebuilds:
            more["gradients"] = gradients
        return self.run(field, state, sigmas, **more)

    def with_settings(self, **settings: Any) -> Solver:
        """This row with some of its settings fixed.

        Args:
            **settings: Values by name, such as rtol=1e-6. A value of None leaves that setting as it is.

        Returns:
            A row whose `run`, `instructions`, `slope`, `growth` and `transition` use these values. Its `chosen` names
            them, beside those fixed before; a value fixed again replaces the one before.

        Raises:
            InputError: For a setting that the row does not have, and for a value of another type than its default.

        Example:
            >>> from odeddim import solvers
            >>> dict(solvers.get("dopri5").with_settings(rtol=1e-6).with_settings(atol=1e-7).chosen)
            {'rtol': 1e-06, 'atol': 1e-07}
        """
        given = {key: value for key, value in settings.items() if value is not None}
        for key, value in given.items():
            if key not in self.settings:
                has = ", ".join(f"{name} = {default}" for name, default in self.settings.items()) or "none"
                hint = foreign_names.argument_hint(key)
                words = f"solver {self.name!r} has no setting {key!r} (its settings and defaults: {has})"
                raise InputError(f"{words}: {hint}" if hint else words)
            kind = kind_of(self.settings[key])
            if kind is tuple:
                given[key] = _table(key, self.name, value)
            elif isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise InputError(f"{key} of solver {self.name!r} must be {KINDS[kind]}, not {value!r}")
        if not given:
            return self
        functions = {name: getattr(self, name) for name in ("run", "instructions", "slope", "growth", "transition")}
        bound: dict[str, Any] = {
            name: functools.partial(it, **given) for name, it in functions.items() if it is not None
        }
        return replace(self, chosen={**self.chosen, **given}, **bound)


def _table(key: str, solver: str, value: Any) -> tuple[Any, ...]:
    """The value of a setting that is a table."""
    try:
        if isinstance(value, (list, tuple)):
            return table_of(value)  # type: ignore[no-any-return]
        raise TypeError(f"{value!r:.20} is no table")
    except (OverflowError, RecursionError, TypeError) as error:
        raise InputError(f"{key} of solver {solver!r} must be {KINDS[tuple]} ({error})") from error


def pick(name: str, choices: Iterable[str], what: str) -> str:
    """`name` if it is one of the choices; otherwise an InputError with what we call it, or its nearest neighbours."""
    known = list(choices)
    if name in known:
        return name
    word = name if isinstance(name, str) else ""
    ours = foreign_names.hint(what, word, known)
    near = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise InputError(f"unknown {what} {name!r}; {ours or hint}")
