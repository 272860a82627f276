"""Guides: models that guidance leads another one away from, ε = ε_guide + w·(ε - ε_guide)  (arXiv 2406.02507, eq. 3).

A guide is asked with the same x and label, and its answer is combined with the other's before either is read. So both
were trained with the same noise levels, labels and prediction. It is told the same class or text, if it takes any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from odeddim.ode.codec import Codec
from odeddim.ode.conditions import Condition, Conditions, Guide
from odeddim.ode.schedule import Schedule, Time
from odeddim.storage.errors import axes_of
from odeddim.types import InputError


class Guiding(Protocol):
    """What a VectorField has of it."""

    name: str
    sha256: str
    schedule: Schedule
    predicts: str
    time: Time
    codec: Codec | None
    condition: Condition
    conditions: Conditions | None
    boundary: float | None

    @property
    def shape(self) -> tuple[int, ...] | None: ...
    def on_data(self) -> Any: ...
    def conditioned(
        self, label: int | None = None, *, prompt: str | None = None, distilled_guidance: float = 1.0
    ) -> Any: ...
    def conditioned_each(self, conditions: Sequence[Condition]) -> Any: ...


Model = TypeVar("Model", bound=Guiding)


def named(guide: Guiding | None) -> Guide | None:
    """A guide by name and hash; None for none. Raises an InputError for what is no model."""
    if guide is not None and not hasattr(guide, "conditioned"):
        return Guide.of(guide)
    return None if guide is None else Guide(guide.name, guide.sha256)


def as_guide(guide: Model, model: Guiding, condition: Condition) -> Model:
    """A guide of a model, under the model's condition and without an autoencoder.

    Args:
        guide: The guide.
        model: The model.
        condition: The model's condition.

    Raises:
        InputError: If the guide was trained otherwise, has a condition of its own, or does not take this one.
    """
    _check_alike(guide, model)
    alone = condition.unguided()
    if guide.condition not in (Condition(), alone):
        raise InputError(
            f"the guide {guide.name!r} is told what the model is told ({alone.words or 'nothing'}): give it without "
            f"a condition of its own ({guide.condition.words})"
        )
    if guide.conditions is None:
        told: Model = guide.on_data().conditioned()
        return told
    how = {"prompt": alone.prompt, "distilled_guidance": alone.distilled_guidance}
    return _told(guide, lambda: guide.on_data().conditioned(alone.label, **how))


def each_as_guide(guide: Model | None, shared: Condition, conditions: Sequence[Condition]) -> Model | None:
    """A guide of a model that has a condition for each image of a batch; None if these name none.

    Args:
        guide: The guide of the model.
        shared: What the conditions share.
        conditions: The conditions, one for each image.

    Raises:
        InputError: If the conditions name another guide, or the guide does not take one of them.
    """
    if shared.guide is None:
        return None
    if guide is None or named(guide) != shared.guide:
        raise InputError(f"the conditions name the guide {shared.guide.words}: give the model with guide=... first")
    if guide.conditions is None:
        return guide
    return _told(guide, lambda: guide.conditioned_each([it.unguided() for it in conditions]))


def _told(guide: Model, tell: Callable[[], Model]) -> Model:
    """The guide under a condition; what is wrong with it is said of the guide."""
    try:
        return tell()
    except InputError as error:
        raise InputError(f"the guide {guide.name!r}: {error}") from error


def _check_alike(guide: Guiding, model: Guiding) -> None:
    """Raise an InputError unless the answers of both to the same question can be combined."""
    for what, its, own in (
        ("works on data of", _shape(guide), _shape(model)),
        ("has the schedule", guide.schedule, model.schedule),
        ("predicts", guide.predicts, model.predicts),
        ("has the time labels", guide.time, model.time),
    ):
        if its != own and None not in (its, own):
            raise InputError(
                f"the guide {guide.name!r} {what} {its}, and the model {model.name!r} {own}: give a guide that was "
                "trained as the model was"
            )
    if guide.boundary is not None:
        raise InputError(f"the guide {guide.name!r} has two networks, by the noise level: give a guide that has one")
    if guide.codec and model.codec and guide.codec.sha256 != model.codec.sha256:
        raise InputError(
            f"the guide {guide.name!r} has another autoencoder than the model {model.name!r}, and so other data: give "
            "a guide that was trained as the model was"
        )


def _shape(model: Guiding) -> str | None:
    """The shape of a model's data in words; None for any."""
    return None if model.shape is None else f"{'×'.join(map(str, model.shape))} ({axes_of(model.shape)})"
