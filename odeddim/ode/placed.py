"""The tensors that a network takes besides x and t, for a condition of all images of a batch or for one of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from odeddim.ode.conditions import Condition, Conditions, Given, filled_up
from odeddim.types import InputError


class Placed:
    """The tensors of a condition, which are put beside the network's input once and not at every evaluation.

    Args:
        given: The tensors for the condition.
        null: Those for no condition; None if the network has no unconditional mode.
    """

    def __init__(self, given: Given, null: Given | None) -> None:
        self.given, self.null = given, null
        self._there: dict[tuple[torch.device, torch.dtype], tuple[Given, Given | None]] = {}

    def beside(self, x: Tensor) -> tuple[Given, Given | None]:
        """Both on the device of x, and in its dtype but for those of whole numbers."""
        where = x.device, x.dtype
        if where in self._there:
            return self._there[where]
        there = _beside(x, self.given), None if self.null is None else _beside(x, self.null)
        if not any(part.requires_grad for part in (*there[0], *(there[1] or ()))):
            self._there[where] = there
        return there

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_there": {}}


def _beside(x: Tensor, given: Given) -> Given:
    """Tensors on the device of x, and in its dtype but for those of whole numbers."""
    wait = x.device.type == "cpu"  # a copy to the CPU would be read before it is there
    return tuple(
        part.to(x.device, x.dtype if part.is_floating_point() else None, non_blocking=not wait) for part in given
    )


class Told(Protocol):
    """A field under a condition."""

    _given: Placed | None


_NO_NULL = (
    "the model {!r} has no unconditional mode, so guidance is not available: leave guidance at 1, or give the model "
    "that guides, guide=..."
)


def given_to_all(model: str, takes: Conditions | None, condition: Condition, guide: Told | None) -> Placed | None:
    """What a network takes for one condition of all images.

    Args:
        model: The name of the model, for messages.
        takes: The conditions that it takes.
        condition: The condition.
        guide: Its guide under the same condition, whose tensors stand in the place of those for none.

    Returns:
        The tensors (1, *); None for a network without conditions and guide.

    Raises:
        InputError: If the network does not take the condition, or cannot be guided.
    """
    guiding = _given_to(guide)
    if takes is None:
        said = condition if guiding is None else condition.unguided()
        if said != Condition():
            raise InputError(f"the model {model!r} has no conditions: leave out {said.words}")
        return None if guiding is None else Placed((), guiding)
    given, null = takes.given(condition)
    null = null if guiding is None else guiding
    if condition.guidance != 1 and null is None:
        raise InputError(_NO_NULL.format(model))
    return Placed(given, null)


def shared_by(conditions: Sequence[Condition], usual: Condition) -> Condition:
    """What the conditions of the images of a batch share.

    Args:
        conditions: One for each image.
        usual: Where there is no image, the condition whose guidance holds.

    Raises:
        InputError: If they differ in more than label and prompt.
    """
    shared = {replace(it, label=None, prompt=None) for it in conditions or [usual]}
    if len(shared) > 1:
        raise InputError("the images of a batch may differ in label and prompt, and not in how they are guided")
    return shared.pop()


def given_to_each(
    model: str, takes: Conditions | None, conditions: Sequence[Condition], guidance: float, guide: Told | None
) -> Placed:
    """What a network takes for a condition of each image.

    Args:
        model: The name of the model, for messages.
        takes: The conditions that it takes.
        conditions: One for each image.
        guidance: The guidance that they share.
        guide: Its guide under the same conditions.

    Returns:
        The tensors (B, *) for them and for none.

    Raises:
        InputError: If the network does not take one of them, or cannot be guided.
    """
    if takes is None:
        raise InputError(f"the model {model!r} has no conditions: leave out those of the images")
    found = [takes.given(it) for it in conditions]
    fills = getattr(takes, "fills", False)  # which conditions of one's own need not have
    given = _stacked([given for given, _ in found], fills)
    if (guiding := _given_to(guide)) is not None:
        return Placed(given, guiding)
    nulls = [null for _, null in found if null is not None]
    if guidance != 1 and len(nulls) < len(found):
        raise InputError(_NO_NULL.format(model))
    return Placed(given, _stacked(nulls, fills) if nulls else None)


def _given_to(guide: Told | None) -> Given | None:
    """What a guide takes for the condition; None without a guide."""
    if guide is None:
        return None
    return () if guide._given is None else guide._given.given


def _stacked(rows: Sequence[Given], fills: bool) -> Given:
    try:
        return tuple(torch.cat(filled_up(parts) if fills else parts) for parts in zip(*rows, strict=True))
    except RuntimeError as error:
        raise InputError("the conditions of the images have tensors of different sizes: run them one by one") from error


def check_each(model: str, count: int | None, batch: int) -> None:
    """Raise an InputError unless a batch has as many images as there are conditions.

    Args:
        model: The name of the model.
        count: The number of conditions, each for one image; None for one for all.
        batch: The number of images.
    """
    if count is not None and count != batch:
        raise InputError(
            f"the model {model!r} has conditions for {count} images, each for one, and was called with {batch}: give "
            "label=... or prompt=... for all images, or a solver with fixed steps"
        )


def together(placed: Placed, x: Tensor) -> Given:
    """The tensors for the conditions of each image and for none, in one row, beside the network's input."""
    given, null = placed.beside(x)
    return (*given, *(null or ()))
