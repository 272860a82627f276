"""Subject: a model as a user names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from odeddim.api import Model


@dataclass(frozen=True)
class Subject:
    """A model as a user names it, under a condition.

    Attributes:
        name: The model as `odeddim.load` takes it: a name, a path, a VectorField, or a pipeline of diffusers; None for
            the model that the latent file names.
        condition: The arguments of `VectorField.conditioned`: label, prompt, negative_prompt, guidance, interval,
            distilled_guidance, guidance_rescale, guide, low_guidance. The guide is a model as `name` is.
        allow_pickle: Whether to read files that run the code in them.

    Example:
        >>> import odeddim
        >>> odeddim.jobs.Subject("model.pkl", {"label": 3, "guidance": 2.0}, allow_pickle=True).condition["label"]
        3
    """

    name: Model | None = None
    condition: Mapping[str, Any] = field(default_factory=dict)
    allow_pickle: bool = False
