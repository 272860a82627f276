"""Gradients through runs: reversible ones rebuild their states backwards, others evaluate again at stored states.

A reversible run keeps its two registers as they are at its end, and nothing between. On the way back each operation is
undone, exactly, and its transpose takes the gradient along: a shear's moves a multiple of the gradient of one register
to the other, a kick's is one product of a vector with the Jacobian of ε, from one evaluation that also undoes the kick.
So memory does not grow with the steps. Rounding to integers counts as the identity.

This module loads torch: families import it inside functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from odeddim.solvers._operations import Kick
from odeddim.solvers._registers import Asked, Flip, Push, Registers, Shear, answer
from odeddim.types import Field, InputError, Observe

ONCE = (
    "gradients='reversible' and 'checkpoint' give first derivatives only: for derivatives of gradients "
    "(create_graph=True) take gradients='direct'"
)


class Traced:
    """A field whose evaluations keep their input only, and are made again in a backward pass.

    It lists what they depend on besides x̄: parameters, and whatever else a closure holds.

    Args:
        field: ε(σ, x̄).
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.moments = getattr(field, "moments", None)
        self.leaves: dict[int, Tensor] = {}
        self.places: list[Tensor] = []
        self.allocated = 4

    def value(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        """ε without a gradient, and its leaves listed."""
        if torch.is_grad_enabled() and not xbar.requires_grad:  # where nobody needs gradients, nothing takes time
            eps = self.field(sigma, xbar)
        else:
            with torch.enable_grad():
                eps = self.field(sigma, xbar.detach())
        if not eps.requires_grad:
            return eps
        for leaf in _leaves(eps):
            self.leaves[id(leaf)] = leaf
        return eps.detach()

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        return self.attached(sigma, xbar, self.value(sigma, xbar))

    def attached(self, sigma: Tensor, xbar: Tensor, eps: Tensor) -> Tensor:
        """The ε of an evaluation that was made, with its gradient, which evaluates once more."""
        if not (xbar.requires_grad or self.leaves):
            return eps
        kept, leaves = self._kept(xbar), self.leaves.values()
        out: Tensor = _Evaluation.apply(self.field, sigma, eps, kept, xbar, *leaves)  # type: ignore[no-untyped-call]
        return out

    def _kept(self, xbar: Tensor) -> Tensor:
        """A copy of x̄ beside those before it.

        Small tensors that stay, one after each evaluation, would each spoil one of the large gaps that the evaluation
        before has left in the memory of a process: with glibc that cost more than the tensors by far.
        """
        if not self.places or self.places[-1].shape != xbar.shape:
            self.allocated = min(2 * self.allocated, 256)
            self.places = list(xbar.detach().new_empty((self.allocated, *xbar.shape)).unbind())
        place = self.places.pop().data  # a version of its own: filling the others does not count as a change
        return place.copy_(xbar.detach())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves that a tensor has a gradient for."""
    if tensor.requires_grad and tensor.grad_fn is None:
        yield tensor
    seen, waiting = set[Any](), [tensor.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [parent for parent, _ in node.next_functions]


class _Recorded:
    """What a function of x̄, and of leaves, answers, with what a product with its Jacobian needs."""

    def __init__(self, function: Callable[[Tensor], Tensor], source: Tensor, leaves: Sequence[Tensor]) -> None:
        with torch.enable_grad():
            self.inputs = source.detach().requires_grad_(), *leaves
            self.out = function(self.inputs[0])

    def pulled(self, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the source and of the leaves, from that of the answer."""
        if not self.out.requires_grad:
            return (None,) * len(self.inputs)
        # What lies before the leaves' own use, such as an embedding that the user has computed, must stay.
        return torch.autograd.grad(self.out, self.inputs, gradient.to(self.out), retain_graph=True, allow_unused=True)


def _check_once() -> None:
    if torch.is_grad_enabled():
        raise InputError(ONCE)


class _Evaluation(Function):
    """ε that was computed already; its gradient evaluates the field again."""

    @staticmethod
    def forward(
        ctx: Any, field: Field, sigma: Tensor, eps: Tensor, kept: Tensor, xbar: Tensor, *leaves: Tensor
    ) -> Tensor:
        ctx.field, ctx.sigma = field, sigma
        ctx.save_for_backward(kept, *leaves)  # not x̄ itself, which its owner may change, or which lies elsewhere
        return eps.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        _check_once()
        kept, *leaves = ctx.saved_tensors
        recorded = _Recorded(functools.partial(ctx.field, ctx.sigma), kept, leaves)
        return None, None, None, None, *recorded.pulled(gradients[0])


class _Straight(Function):
    """A value in place of another one that it is up to rounding, whose gradient it gets."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, through: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, gradients[0]


def straight(value: Tensor, through: Tensor) -> Tensor:
    """The value, with the gradient of `through`."""
    out: Tensor = _Straight.apply(value, through)  # type: ignore[no-untyped-call]
    return out


class Reals(Registers):
    """The operations in float64 numbers, for autograd: equal to those in integers up to rounding."""

    exact = False

    def __init__(self, *moves: Any, **single: Any) -> None:
        super().__init__(*moves, **single)
        self.quantum = 1.0

    def grain(self, nodes: Sequence[float], single: bool) -> float:
        """Nothing is rounded."""
        return 0.0

    def rounded(self, values: Tensor, grain: float) -> Tensor:
        """The values in float64."""
        return values.double()

    def _times(self, values: Tensor, factor: float) -> Tensor:
        return values.double() * factor

    def _negated(self, register: Tensor) -> Tensor:
        return -register

    def _added(self, register: Tensor, change: Tensor, sign: int) -> Tensor:
        return register + change * sign

    def _check(self, values: Tensor) -> float:
        return 0.0  # all numbers have room

    def _rounded(self, values: Tensor) -> Tensor:
        return values

    def _integer(self, xbar: Tensor, scale: float) -> Tensor:
        return xbar.double() / scale


Register = tuple[Tensor, Tensor]
"""A register in whole numbers, and its value in float64, which carries the gradient."""


class Rebuilt(Registers):
    """The operations in exact arithmetic, the same bits, with gradients. A register here is a `Register`."""

    def read(self, xbar: Tensor, scale: float = 1.0) -> Any:
        """The register for x̄."""
        return self._integer(xbar.detach(), scale), xbar.double() / scale

    def begun(self, xbar: Tensor) -> Any:
        """Both registers at the beginning of a run."""
        whole, carrier = self.read(xbar)
        return [(whole, carrier), (whole.clone(), carrier)]

    def joined(self, high: Tensor, low: Tensor) -> Any:
        """The register of the two tensors that `show` has made of it."""
        (one, its), (more, their) = self.read(high, self.scale), self.read(low, self.scale)
        return one + more, its + their

    def value(self, register: Any) -> Tensor:
        """A register at the beginning of the run, where its scale is 1, as x̄ (B, *) float64."""
        carrier: Tensor = register[1]
        return carrier

    def show(self, register: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A register at the end of the run as two tensors, of which the first has the gradient."""
        whole, carrier = register
        high, low = super().show(whole, dtype)
        return straight(high, (carrier * self.scale).to(dtype)), low

    def rounded(self, values: Tensor, grain: float) -> Tensor:
        """The nearest multiples of the grain, in float64."""
        return straight(super().rounded(values.detach(), grain), values.double())

    def ask(self, field: Any, asked: Asked, place: int, sigma: float, source: Tensor) -> Tensor:
        """ε of the source; where it was asked, without another evaluation."""
        eps = super().ask(field.value if isinstance(field, Traced) else field, asked, place, sigma, source)
        return field.attached(source.new_tensor(sigma, device="cpu"), source, eps) if isinstance(field, Traced) else eps

    def run(self, field: Any, registers: list[Any], back: bool, asked: Asked, observe: Observe | None = None) -> None:
        """Do all operations, or undo them: see `Registers.run`. The field is a `Traced` one."""
        wholes, carriers = [list(parts) for parts in zip(*registers, strict=True)]
        asked.update({place: (sigma, eps.detach()) for place, (sigma, eps) in asked.items()})
        with torch.no_grad():
            super().run(field.value, wholes, back, asked, observe)
        leaves = tuple(field.leaves.values())
        if any(part.requires_grad for part in (*carriers, *leaves)):
            carriers = _Walk.apply(self, field.field, back, *wholes, *carriers, *leaves)  # type: ignore[no-untyped-call]
        else:
            carriers = [whole.double() * self.quantum for whole in wholes]
        registers[:] = zip(wholes, carriers, strict=True)

    def unwound(
        self, field: Field, registers: list[Tensor], back: bool, gradients: list[Tensor], leaves: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Go back to where a run began, and take the gradients along.

        Args:
            field: ε(σ, x̄).
            registers: The two tensors of whole numbers (B, *) at the end of the run; others take their places.
            back: Whether the run undid the operations.
            gradients: Those of the two registers' values at the end, (B, *) float64; those at the beginning take their
                places.
            leaves: What else the field depends on.

        Returns:
            The gradients of the leaves; None for none.
        """
        found: list[Tensor | None] = [None] * len(leaves)
        pending: dict[int, tuple[Push, _Recorded, Tensor]] = {}  # by the register that was asked

        def settle(place: int) -> None:
            """Take the gradients through what was computed from a register, before it changes."""
            if place not in pending:
                return
            push, recorded, gradient = pending.pop(place)
            of_source, *others = recorded.pulled(gradient)
            if of_source is not None:
                gradients[place] = gradients[place] + of_source * (push.scale * push.kick.ratio)
            for n, other in enumerate(others):
                if other is not None:
                    before = found[n]
                    found[n] = other if before is None else before + other

        sign = -1 if back else 1
        for step in self.steps if back else reversed(self.steps):
            place, source = step.register, 1 - step.register
            settle(place)
            if isinstance(step, Flip):
                registers[place], gradients[place] = self._negated(registers[place]), -gradients[place]
                continue
            gradient = gradients[place] * (sign * step.factor)
            if isinstance(step, Shear):
                change = registers[source].double() * step.factor
                gradients[source] = gradients[source] + gradient
            else:
                if source in pending and _same(pending[source][0].kick, step.kick):
                    _, recorded, gathered = pending[source]
                    gradient = gathered + gradient
                else:
                    settle(source)  # so that no two evaluations are kept at once
                    asked = functools.partial(answer, field, step.kick)
                    recorded = _Recorded(asked, self.source(step, registers), leaves)
                pending[source] = step, recorded, gradient
                change = recorded.out.detach() * (step.factor / self.quantum)
            registers[place] = registers[place].sub(self._whole(change), alpha=sign)
        settle(0)
        settle(1)
        return found


def _same(kick: Kick, other: Kick) -> bool:
    """Whether two kicks of one register ask the field the same, which it is asked once."""
    return (kick.sigma, kick.base, kick.ratio) == (other.sigma, None, 1) and (other.base, other.ratio) == (None, 1)


class _Walk(Function):
    """The values of two registers after a run that was made already; their gradients undo it."""

    @staticmethod
    def forward(ctx: Any, bank: Rebuilt, field: Field, back: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.bank, ctx.field, ctx.back = bank, field, back
        wholes, leaves = tensors[:2], tensors[4:]
        ctx.save_for_backward(*wholes, *leaves)
        return tuple(whole.double() * bank.quantum for whole in wholes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        _check_once()
        ctx.bank.notes = None  # those of the run have been read
        one, other, *leaves = ctx.saved_tensors
        at_start = list(gradients)
        found = ctx.bank.unwound(ctx.field, [one, other], ctx.back, at_start, leaves)
        return None, None, None, None, None, *at_start, *found
