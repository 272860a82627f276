"""What a network is told besides x and t: a class or a prompt, and classifier-free guidance (arXiv 2207.12598, eq. 6).

    ε = ε(x, t, none) + w·(ε(x, t, condition) - ε(x, t, none))        w = 1: the condition alone

Both terms come from one batch of twice the images. A second network, the guide, may answer in place of ε(x, t, none):
one without conditions, or a smaller or less trained one (arXiv 2406.02507). w may hold on an interval of noise levels
only (arXiv 2404.07724); outside the interval the network is evaluated under the condition alone, which costs one
evaluation and not two. The guided answer may be scaled towards the standard deviation of the answer under the condition
(arXiv 2305.08891).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from odeddim.ode.memo import Memo
from odeddim.types import InputError

Given = tuple[Tensor, ...]
"""What the network takes after x and t: tensors of one row, (1, *), which are repeated for the images of a batch."""


_WEIGHTS = ("guidance", "distilled_guidance")
HOW_GUIDED = ("interval", "guidance_rescale", "guide", "low_guidance")
"""What a condition says of its guidance, and only with a guidance other than 1."""


@dataclass(frozen=True, eq=False)
class Guide:
    """The model that guides another one, as latent files store it. Models of the same hash are equal.

    Args:
        model: Its name.
        sha256: Its hash; "" for exact fields.

    Raises:
        InputError: If one of the two is no text.
    """

    model: str
    sha256: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not isinstance(self.sha256, str):
            raise InputError(f"guide must have the name of a model and its hash, not {self.to_dict()!r:.80}")

    @classmethod
    def of(cls, kept: Any) -> Guide:
        """The guide that a file keeps, as `to_dict` gives it. Raises an InputError for anything else."""
        if not isinstance(kept, dict) or "model" not in kept or not kept.keys() <= {"model", "sha256"}:
            raise InputError(f"guide must be a model, a VectorField, not {kept!r:.50}: give guide=odeddim.load(...)")
        return cls(**kept)

    @property
    def words(self) -> str:
        """The guide in words, without the folders that a model with a hash lies in."""
        return f"{PurePath(self.model).name} ({self.sha256[:12]})" if self.sha256 else self.model

    def to_dict(self) -> dict[str, str]:
        """Name and hash by the names of the arguments; no hash if there is none."""
        return {"model": self.model, **({"sha256": self.sha256} if self.sha256 else {})}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Guide) and (self.sha256 or self.model) == (other.sha256 or other.model)

    def __hash__(self) -> int:
        return hash(self.sha256 or self.model)


@dataclass(frozen=True)
class Condition:
    """A condition, as latent files store it.

    Args:
        label: The class.
        prompt: The text.
        negative_prompt: The text that guidance leads away from.
        guidance: The weight w of the module's equation; 1 is the condition alone.
        interval: The noise levels (low, high) between which guidance holds; None for all of them.
        distilled_guidance: The weight that a guidance-distilled network takes as an input (arXiv 2210.03142); 1 is the
            condition alone.
        guidance_rescale: How far the guided answer is scaled to the standard deviation of the answer under the
            condition: φ of `odeddim.ode.guidance.rescaled`, 0 (not at all) to 1.
        guide: The model that guidance leads away from; None for the network itself under no condition.
        low_guidance: The weight w of the network for the lower noise levels, of a model that has two; None for
            `guidance`.

    Raises:
        InputError: If a value is of the wrong type or outside its range.
    """

    label: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    distilled_guidance: float = 1.0
    guidance_rescale: float = 0.0
    guide: Guide | None = None
    low_guidance: float | None = None

    def __post_init__(self) -> None:
        if self.label is not None and not _is_whole(self.label):
            raise InputError(f"label must be a whole number, one class for all images of a run, not {self.label!r:.50}")
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise InputError(f"{name} must be a text, not {getattr(self, name)!r:.50}")
        for name in (*_WEIGHTS, *(() if self.low_guidance is None else ("low_guidance",))):
            if not _is_number(getattr(self, name)) or not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} must be a finite number, not {getattr(self, name)!r:.50}")
        if self.interval is not None:
            two = isinstance(self.interval, (tuple, list)) and len(self.interval) == 2
            if not two or not all(map(_is_number, self.interval)) or not 0 <= self.interval[0] < self.interval[1]:
                raise InputError(f"interval must be two noise levels 0 <= low < high, not {self.interval!r:.50}")
            if self.guidance == 1:
                raise InputError("interval says where guidance holds: give it with a guidance other than 1")
            object.__setattr__(self, "interval", (float(self.interval[0]), float(self.interval[1])))
        if not _is_number(self.guidance_rescale) or not 0 <= self.guidance_rescale <= 1:
            raise InputError(f"guidance_rescale must be a number from 0 to 1, not {self.guidance_rescale!r:.50}")
        if self.guidance_rescale and self.guidance == 1:
            raise InputError("guidance_rescale scales what is guided: give it with a guidance other than 1")
        if self.low_guidance is not None and self.guidance == 1:
            raise InputError("low_guidance is a second weight: give it with a guidance other than 1")
        if self.guide is not None:
            self._check_guide()

    def _check_guide(self) -> None:
        if not isinstance(self.guide, Guide):
            object.__setattr__(self, "guide", Guide.of(self.guide))
        if self.guidance == 1:
            raise InputError("guide is the model that guidance leads away from: give it with a guidance other than 1")
        if self.negative_prompt is not None:
            raise InputError("guidance leads away from negative_prompt or from the guide: leave out one of the two")

    @property
    def words(self) -> str:
        """The condition in words: "class 3, guidance 2 for σ in 0.3 to 5"; "" for none."""
        words = [] if self.label is None else [f"class {self.label}"]
        words += [] if self.prompt is None else [f"prompt {self.prompt!r}"]
        words += [f"negative prompt {self.negative_prompt!r}"] if self.negative_prompt else []
        where = "" if self.interval is None else " for σ in {:g} to {:g}".format(*self.interval)
        scaled = f" rescaled by {self.guidance_rescale:g}" if self.guidance_rescale else ""
        by = "" if self.guide is None else f" by {self.guide.words}"
        low = "" if self.low_guidance is None else f" ({self.low_guidance:g} of the network for low noise levels)"
        words += [f"guidance {self.guidance:g}{low}{by}{scaled}{where}"] if self.guidance != 1 else []
        words += [f"distilled guidance {self.distilled_guidance:g}"] if self.distilled_guidance != 1 else []
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """The arguments of `Condition` that differ from their defaults, as values that JSON can hold."""
        names = ("label", "prompt", "negative_prompt", "interval", "low_guidance")
        found = {name: getattr(self, name) for name in names}
        found = {name: value for name, value in found.items() if value is not None}
        if "interval" in found:
            found["interval"] = list(found["interval"])
        found |= {"guidance_rescale": self.guidance_rescale} if self.guidance_rescale else {}
        found |= {} if self.guide is None else {"guide": self.guide.to_dict()}
        return found | {name: getattr(self, name) for name in _WEIGHTS if getattr(self, name) != 1}

    def unguided(self) -> Condition:
        """The condition alone, which the guide is told too."""
        return replace(
            self, negative_prompt=None, guidance=1.0, interval=None, guidance_rescale=0.0, guide=None, low_guidance=None
        )

    def check_networks(self, model: str, boundary: float | None) -> None:
        """Raise an InputError if this condition has a weight for a second network, and the model has one only.

        Args:
            model: The name of the model.
            boundary: The noise level below which it has a second network; None for none.
        """
        if self.low_guidance is not None and boundary is None:
            raise InputError(f"the model {model!r} has one network for all noise levels: leave out low_guidance=...")

    def check_undistilled(self) -> None:
        """Raise an InputError if this condition has a weight that only a guidance-distilled network takes."""
        if self.distilled_guidance != 1:
            raise InputError(
                "this model does not take guidance as an input of its network: give guidance=... instead of "
                "distilled_guidance=..."
            )


class Conditions(Protocol):
    """The conditions that a network takes: classes, prompts, or conditions of your own."""

    @property
    def words(self) -> str:
        """The conditions in words."""
        ...

    def given(self, condition: Condition) -> tuple[Given, Given | None]:
        """The tensors that the network takes for a condition.

        Args:
            condition: The condition.

        Returns:
            The tensors for the condition, and those for no condition: None if the network has no unconditional mode.

        Raises:
            InputError: If the network does not take this condition, or needs a condition and none is given.
        """
        ...


@dataclass(frozen=True)
class Classes:
    """Classes as conditions.

    Args:
        count: The number of classes; labels are 0 to count - 1.
        null: The label that stands for no class, if the network was trained with one.

    Raises:
        InputError: If the count is below 1, or one of the two is not a whole number.
    """

    count: int
    null: int | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.count) or self.count < 1:
            raise InputError(f"classes must be a whole number above 0, not {self.count!r:.50}")
        if self.null is not None and (not _is_whole(self.null) or self.null < 0):
            raise InputError(f"null, the label for no class, must be a whole number, at least 0, not {self.null!r:.50}")

    @property
    def words(self) -> str:
        """The classes in words: "10 classes, 10 stands for none"."""
        return f"{self.count} classes" + ("" if self.null is None else f", {self.null} stands for none")

    def given(self, condition: Condition) -> tuple[Given, Given | None]:
        """The labels for the condition and for no class, (1,) int64 each; see `Conditions.given`."""
        if condition.prompt is not None or condition.negative_prompt is not None:
            raise InputError(f"this model takes classes 0 to {self.count - 1} and no prompts: give label=... instead")
        condition.check_undistilled()
        label = self.null if condition.label is None else condition.label
        if label is None:
            raise InputError(f"this model needs a class: give label=... from 0 to {self.count - 1}")
        if label != self.null and not 0 <= label < self.count:
            raise InputError(f"this model takes classes 0 to {self.count - 1}, not {label}")
        null = None if self.null is None else (torch.tensor([self.null]),)
        return (torch.tensor([label]),), null


def classes_of(count: int | None, null: int | None) -> Classes | None:
    """The classes of a network; None for a network without any.

    Raises:
        InputError: If a label stands for no class, and there are no classes.
    """
    if count is None and null is not None:
        raise InputError(f"null={null} stands for no class, but the model has no classes: give classes=... too")
    return None if count is None else Classes(count, null)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def words_of(conditions: Conditions | None) -> str:
    """The conditions in words, which are also a part of the model's hash; "" for a model without conditions."""
    return "" if conditions is None else conditions.words


class Prompts:
    """Prompts as conditions.

    Args:
        embed: A function from a text to the tensors (1, *) that the network takes for it.
        negative: The same of a text that guidance leads away from, and of no text; by default `embed`.
        zeros: Whether zeros stand for no text, in place of the empty text. Tensors of whole numbers stay as they are.
        distilled: Whether the network also takes the weight of a guidance that it was distilled from, (1,).
        length: A length of a network's answers (B, *) that guidance keeps: the guided answer is scaled to that of the
            answer for the prompt. By default it keeps none.
        fills: Whether the tensors (1, n, *) of two texts of different n can be filled up with zeros, because one of
            them is a mask.
    """

    def __init__(
        self,
        embed: Callable[[str], Given],
        *,
        negative: Callable[[str], Given] | None = None,
        zeros: bool = False,
        distilled: bool = False,
        length: Callable[[Tensor], Tensor] | None = None,
        fills: bool = False,
    ) -> None:
        self._embed = Memo(embed, 8)
        self._negative = self._embed if negative is None else Memo(negative, 8)
        self._zeros, self._distilled, self.length, self.fills = zeros, distilled, length, fills

    @property
    def words(self) -> str:
        """The conditions in words: "prompts", and what stands for no text if it is not the empty text."""
        words = ["prompts", *(["none is all zeros"] if self._zeros else [])]
        words += ["guidance is an input too"] if self._distilled else []
        words += ["guidance keeps the length of the answer"] if self.length else []
        return ", ".join(words)

    def given(self, condition: Condition) -> tuple[Given, Given | None]:
        """The tensors for the prompt, and those for the negative prompt or no text; see `Conditions.given`."""
        if condition.label is not None:
            raise InputError("this model takes prompts and no classes: give prompt=... instead of label=...")
        if condition.negative_prompt is not None and condition.guidance == 1:
            raise InputError("negative_prompt is what guidance leads away from: give it with a guidance other than 1")
        if not self._distilled:
            condition.check_undistilled()
        both = self._of(condition.prompt, self._embed), self._of(condition.negative_prompt, self._negative)
        given, null = zip(*map(filled_up, zip(*both, strict=True)), strict=True) if self.fills else both
        weight = (torch.tensor([float(condition.distilled_guidance)]),) if self._distilled else ()
        return (*given, *weight), (*null, *weight)

    def _of(self, text: str | None, embed: Callable[[str], Given]) -> Given:
        parts = (self._negative if text is None else embed)(text or "")
        if text is not None or not self._zeros:
            return parts
        return tuple(torch.zeros_like(part) if part.is_floating_point() else part for part in parts)


def filled_up(parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (1, n, *) of different n, filled up with zeros to the largest of them."""
    if parts[0].ndim < 2:
        return list(parts)
    longest = max(part.shape[1] for part in parts)
    return [pad(part, (*[0, 0] * (part.ndim - 2), 0, longest - part.shape[1])) for part in parts]
