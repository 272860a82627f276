"""Reversible runs: what encoding does, decoding undoes, bit for bit, by the operations of `_registers`.

A run that comes back exactly can still be far from the solution. It also amplifies errors that are there already (of a
network in float32, on another machine, of interpolated latents): `Solver.growth` computes by how much, and a run in
which they would spoil the result is refused.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from odeddim.solvers._operations import Mix, Moves, Operation
from odeddim.solvers._registers import UNSTABLE, Asked, Registers, finite
from odeddim.types import Field, Growth, InputError, Observe, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPOILED = 1e-2  # of the scale of a latent or an image: rounding errors that would grow beyond it are refused


def account(nodes: Sequence[float], single: bool, *, moves: Callable[..., Moves], **settings: Any) -> Growth:
    """The growth of rounding errors of a reversible run, from its coefficients alone.

    The dependence of ε on x̄ is left out, as in the definition of zero-stability. Each evaluation is taken to be wrong
    by one unit of rounding.

    Args:
        nodes: The noise levels in the direction of the run.
        single: Whether the unit of rounding is that of float32.
        moves: moves(nodes, **settings) makes the operations.
        **settings: The settings of the row.

    Returns:
        The growth in both directions.

    Raises:
        InputError: If the coefficients overflow.
    """
    return _account(moves(_positive(nodes), **settings), nodes, single)


def _account(made: Moves, nodes: Sequence[float], single: bool) -> Growth:
    """`account` of operations that are made already."""
    try:
        bank = Registers(made, nodes, single=single)
        there = _gain(made.operations, made.output, bank, single)
        back = _gain([operation.inverse() for operation in reversed(made.operations)], 0, bank, single)
    except (OverflowError, ZeroDivisionError) as error:
        raise InputError("the coefficients of this reversible run overflow: choose settings nearer to 1") from error
    (up, at_top), (down, at_clean) = (there, back) if nodes[-1] > nodes[0] else (back, there)
    return Growth(up, down, at_top / math.sqrt(1 + max(nodes) ** 2), at_clean / math.sqrt(1 + min(nodes) ** 2))


def _gain(operations: Sequence[Operation], output: int, bank: Registers, single: bool) -> tuple[float, float]:
    """The largest factor of an error on its way to the output, and the rounding errors of all that arrive there."""
    rounding = 2.0**-24 if single else 2.0**-53
    row = [0.0, 0.0]
    row[output] = 1.0
    largest, arrived = 1.0, 0.0
    for operation in reversed(operations):
        if isinstance(operation, Mix):
            (a, b), (c, d) = operation.matrix
            row = [row[0] * a + row[1] * c, row[0] * b + row[1] * d]
            largest = max(largest, *map(abs, row))
        else:
            error = rounding * operation.size + bank.quantum
            arrived = math.hypot(arrived, row[operation.register] * error)
            if operation.data:  # what the step does to its source while ε stays as it is
                row[1 - operation.register] += row[operation.register] * operation.carried
                largest = max(largest, *map(abs, row))
    return largest, arrived


def run(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    name: str,
    moves: Callable[..., Moves],
    bank: type[Registers] = Registers,
    observe: Observe | None = None,
    **settings: Any,
) -> State:
    """A reversible run, or the way back of an earlier one if the state was kept by the same method on these nodes.

    A fresh run begins with x̄ alone. The way back ends at the x̄ with which that run began, bit for bit, except that -0
    becomes 0. The interval that ends at σ = 0 takes the Euler step, as in all runs; upwards `aux` holds what its way
    back lacks, and a fresh run down to 0 keeps nothing. A warning is given if the same method has kept the state, but
    in another run.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, rising or falling; the lowest may be 0.
        name: The name of the row, by which states are kept.
        moves: moves(nodes, **settings) makes the operations over the positive nodes.
        bank: What does the operations.
        observe: What is shown x̄ at each node between the first and the last.
        **settings: The settings of the row.

    Returns:
        The state at sigmas[-1], with what its way back needs in `aux`.

    Raises:
        InputError: If rounding errors would grow beyond 1% of the result, if the run is unstable, or if the state's
            `aux` is not what its `kept` says.
    """
    import torch

    single, nodes = state.xbar.dtype == torch.float32, sigmas.tolist()
    notes: list[Tensor] | None = getattr(field, "notes", None)
    its = name, moves, tuple(settings.items())
    if state.kept.startswith(f"{name} "):
        # A float32 state as float64 has lost nothing: its way back is the same.
        for halves in (single,) if single else (False, True):
            made, kept = _made(*its, tuple(nodes[::-1]), halves)
            if state.kept == kept:
                registers = bank(made, nodes, single=halves, notes=notes)
                return _back(field, state, sigmas, registers, halves, observe)
        warnings.warn(
            f"the latents are from {state.kept!r}, and this run of {name} has other nodes, settings or dtype: it "
            "starts from x̄ alone and does not come back exactly",
            stacklevel=2,
        )
    made, kept = _checked(*its, tuple(nodes), single)
    registers = bank(made, nodes, single=single, notes=notes)
    return _fresh(field, state, sigmas, registers, observe, kept)


@functools.lru_cache(maxsize=16)
def _made(
    name: str,
    moves: Callable[..., Moves],
    settings: tuple[tuple[str, Any], ...],
    nodes: tuple[float, ...],
    single: bool,
) -> tuple[Moves, str]:
    """The operations of a run and the text of `State.kept`, made once for all batches of images."""
    made = moves(_positive(nodes), **dict(settings))
    return made, _kept(name, made, nodes, single)


@functools.lru_cache(maxsize=16)
def _checked(
    name: str,
    moves: Callable[..., Moves],
    settings: tuple[tuple[str, Any], ...],
    nodes: tuple[float, ...],
    single: bool,
) -> tuple[Moves, str]:
    """The same of a run that rounding errors do not spoil; see `_check`."""
    made, kept = _made(name, moves, settings, nodes, single)
    _check(name, made, nodes, single)
    return made, kept


def _fresh(field: Field, state: State, sigmas: Tensor, bank: Registers, observe: Observe | None, kept: str) -> State:
    """A run that begins with x̄ alone; `kept` is for the state at its end."""
    import torch

    dtype, nodes = state.xbar.dtype, sigmas.tolist()
    grain = bank.grain(nodes, dtype == torch.float32)
    begin = bank.rounded(state.xbar, grain)
    xbar, asked = begin, Asked()
    lacking: tuple[Tensor, ...] = ()
    if nodes[0] == 0:
        xbar = begin + bank.rounded(field(sigmas[0], begin) * nodes[1], bank.quantum)
        if observe is not None and len(nodes) > 2:
            observe(nodes[1], xbar.to(dtype))
        slope = field(sigmas[1], xbar)
        lost = begin - bank.rounded(xbar - slope * nodes[1], grain)
        lacking = (lost.to(dtype),)
        if bank.exact:
            bank.require((lacking[0] == lost).all(), UNSTABLE)
        asked = dict.fromkeys((0, 1), (nodes[1], slope))
        del slope, lost
    registers = bank.begun(xbar)
    del begin, xbar
    bank.run(field, registers, False, asked, _in_dtype(observe, dtype))
    asked.clear()
    if bank.output == 1:
        registers.reverse()
    output = bank.show(registers.pop(0), dtype)
    other = bank.show(registers.pop(0), dtype)
    bank.scratch = None
    if nodes[-1] == 0:
        xbar = output[0].double() + output[1]
        return State((xbar - field(sigmas[-2], xbar) * nodes[-2]).to(dtype), 0.0)
    # Made again, not held all the way. It is exact: its bits are some of those of x̄.
    remainder = (state.xbar - bank.rounded(state.xbar, grain)).to(dtype)
    return State(output[0], nodes[-1], (output[1], *other, *lacking, remainder), kept)


def _back(field: Field, state: State, sigmas: Tensor, bank: Registers, single: bool, observe: Observe | None) -> State:
    """The way back to the state from which `state` came."""
    parts = (state.xbar, *state.aux)
    count = 5 + (float(sigmas[-1]) == 0)
    stranger = (
        f"the state's aux does not belong to {state.kept!r}, which has {count - 1} finite tensors of the shape of "
        "xbar: leave out aux and kept, and the run starts from x̄ alone"
    )
    if len(parts) != count or any(part.shape != state.xbar.shape for part in parts):
        raise InputError(stranger)
    for part in parts:
        bank.require(finite(part), stranger)
    output, other = bank.joined(*parts[:2]), bank.joined(*parts[2:4])
    registers = [output, other] if bank.output == 0 else [other, output]
    del output, other
    asked = Asked()
    bank.run(field, registers, True, asked, _in_dtype(observe, state.xbar.dtype))
    xbar = bank.value(registers[0])
    registers.clear()  # before the field is asked once more
    bank.scratch = None
    if float(sigmas[-1]) == 0:
        sigma, grain = float(sigmas[-2]), bank.grain(sigmas.tolist(), single)
        xbar = bank.rounded(xbar - bank.ask(field, asked, 0, sigma, xbar) * sigma, grain) + parts[-2].double()
    return State((xbar + parts[-1]).to(state.xbar.dtype), float(sigmas[-1]))


def _in_dtype(observe: Observe | None, dtype: torch.dtype) -> Observe | None:
    """The observer of a run, who sees its points in the dtype of its state."""
    return None if observe is None else lambda sigma, xbar: observe(sigma, xbar.to(dtype))


def _positive(nodes: Sequence[float]) -> list[float]:
    """The nodes without σ = 0."""
    return [sigma for sigma in nodes if sigma > 0]


def _kept(name: str, made: Moves, nodes: Sequence[float], single: bool) -> str:
    """The text of `State.kept`: the method, the direction, a digest of nodes and operations, and the dtype."""
    text = repr([(list(nodes), *(operation.key() for operation in made.operations))])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    direction = "up" if nodes[-1] > nodes[0] else "down"
    return f"{name} {direction} {len(nodes) - 1} steps {digest} {'float32' if single else 'float64'}"


def _check(name: str, made: Moves, nodes: Sequence[float], single: bool) -> None:
    """Raise an InputError if rounding errors would spoil the latent, or the image that is decoded from it."""
    up = nodes[-1] > nodes[0]

    def spoils(single: bool) -> tuple[float, str, Growth]:
        growth = _account(made, nodes, single)
        error, what = max((growth.latent, "latents"), (growth.image, "images")) if up else (growth.image, "images")
        return error, what, growth

    error, what, growth = spoils(single)
    if not error <= SPOILED:
        double = "a float64 state (--dtype float64), " if single and spoils(False)[0] <= SPOILED else ""
        raise InputError(
            f"{name} on this grid of {len(nodes) - 1} steps would amplify rounding errors by up to "
            f"{max(growth.encode, growth.decode):.1e}, to {error:.1e} of the {what}: take {double}fewer steps, a grid "
            "with more even steps (log, karras), settings nearer to 1, or another solver (`odeddim explain` shows the "
            "growth)"
        )
