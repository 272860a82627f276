"""What a network is told besides x and t: a class or a prompt, and classifier-free guidance (arXiv 2207.12598, eq. 6).

    ε = ε(x, t, none) + w·(ε(x, t, condition) - ε(x, t, none))        w = 1: the condition alone

Both terms come from one batch of twice the images. w may hold on an interval of noise levels only (arXiv 2404.07724);
outside it the condition stands alone and costs one evaluation, not two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from odeddim.ode.memo import Memo
from odeddim.types import InputError

Given = tuple[Tensor, ...]
"""What the network takes after x and t, each with one row (1, *), to be repeated for the images of a batch."""


@dataclass(frozen=True)
class Condition:
    """A condition as it is written into files. label: a class; prompt, negative_prompt: texts; guidance: w of the
    module's equation; interval: (σ from, σ to) where w holds, None for everywhere."""

    label: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.label is not None and not _is_whole(self.label):
            raise InputError(f"a label is a whole number, not {self.label!r:.50}: one class for all images of a run")
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise InputError(f"the {name} is a text, not {getattr(self, name)!r:.50}")
        if not _is_number(self.guidance) or not math.isfinite(self.guidance):
            raise InputError(f"the guidance must be a finite number, not {self.guidance!r:.50}")
        if self.interval is not None:
            two = isinstance(self.interval, (tuple, list)) and len(self.interval) == 2
            if not two or not all(map(_is_number, self.interval)) or not 0 <= self.interval[0] < self.interval[1]:
                raise InputError(
                    f"the guidance interval must be two noise levels 0 <= low < high, not {self.interval!r:.50}"
                )
            if self.guidance == 1:
                raise InputError("an interval is where guidance holds: give a guidance other than 1 with it")
            object.__setattr__(self, "interval", (float(self.interval[0]), float(self.interval[1])))

    @property
    def words(self) -> str:
        """For people: "class 3, guidance 2 for σ in 0.3 to 5"; "" for the bare network."""
        words = [] if self.label is None else [f"class {self.label}"]
        words += [] if self.prompt is None else [f"prompt {self.prompt!r}"]
        words += [f"negative prompt {self.negative_prompt!r}"] if self.negative_prompt else []
        where = "" if self.interval is None else " for σ in {:g} to {:g}".format(*self.interval)
        words += [f"guidance {self.guidance:g}{where}"] if self.guidance != 1 else []
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """What `Condition(**...)` needs to be this one, without what is at its default; JSON-able."""
        found = {name: getattr(self, name) for name in ("label", "prompt", "negative_prompt", "interval")}
        found = {name: value for name, value in found.items() if value is not None}
        if "interval" in found:
            found["interval"] = list(found["interval"])
        return found | ({"guidance": self.guidance} if self.guidance != 1 else {})


class Conditions(Protocol):
    """What a network can be told."""

    @property
    def words(self) -> str:
        """For people: what it can be told."""
        ...

    def given(self, condition: Condition) -> tuple[Given, Given | None]:
        """What the network takes for the condition and for none; the latter None if the network knows no none.

        Errors: InputError where the condition is not one of this network's, or is needed and lacks.
        """
        ...


@dataclass(frozen=True)
class Classes:
    """Class labels 0..count-1; `null` is the label that stands for no class, if the network was trained with one."""

    count: int
    null: int | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.count) or self.count < 1:
            raise InputError(f"classes must be a whole number above 0, not {self.count!r:.50}")
        if self.null is not None and (not _is_whole(self.null) or self.null < 0):
            raise InputError(f"null, the label of no class, must be a whole number from 0 on, not {self.null!r:.50}")

    @property
    def words(self) -> str:
        """ "10 classes, 10 stands for none"."""
        return f"{self.count} classes" + ("" if self.null is None else f", {self.null} stands for none")

    def given(self, condition: Condition) -> tuple[Given, Given | None]:
        """Labels (1,) int64."""
        if condition.prompt is not None or condition.negative_prompt is not None:
            raise InputError(f"this model knows classes 0 to {self.count - 1} and no prompts: give a label")
        label = self.null if condition.label is None else condition.label
        if label is None:
            raise InputError(f"this model needs a class: give a label from 0 to {self.count - 1}")
        if label != self.null and not 0 <= label < self.count:
            raise InputError(f"this model knows classes 0 to {self.count - 1}, not {label}")
        null = None if self.null is None else (torch.tensor([self.null]),)
        return (torch.tensor([label]),), null


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def words_of(conditions: Conditions | None) -> str:
    """What a network can be told, for people and for its hash: "" if nothing."""
    return "" if conditions is None else conditions.words


class Prompts:
    """Texts, which `embed` turns into what the network takes: text -> tensors (1, *).

    zeros: whether no text is all zeros to this network, and not the empty text. Whole numbers stay as they are.
    """

    def __init__(self, embed: Callable[[str], Given], *, zeros: bool = False) -> None:
        self._embed = Memo(embed, 8)
        self._zeros = zeros

    @property
    def words(self) -> str:
        """ "prompts", and what none is."""
        return "prompts, none is all zeros" if self._zeros else "prompts"

    def given(self, condition: Condition) -> tuple[Given, Given | None]:
        """What the texts are to the network; none is the negative prompt, or no text."""
        if condition.label is not None:
            raise InputError("this model knows prompts and no classes: give a prompt instead of a label")
        if condition.negative_prompt is not None and condition.guidance == 1:
            raise InputError("a negative prompt is what guidance leads away from: give a guidance other than 1 with it")
        return self._of(condition.prompt), self._of(condition.negative_prompt)

    def _of(self, text: str | None) -> Given:
        parts = self._embed(text or "")
        if text is not None or not self._zeros:
            return parts
        return tuple(torch.zeros_like(part) if part.is_floating_point() else part for part in parts)
