"""A pipeline as its folder describes it, and what is told of its network: its call and the conditions that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odeddim.models.components import CONFIG
from odeddim.models.networks.text_encoders import TextEncoder
from odeddim.ode.conditions import Conditions
from odeddim.ode.sizes import Sizes
from odeddim.types import InputError


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's folder and its settings.

    Attributes:
        folder: The folder.
        index: The content of model_index.json.
        config: The config of the network.
        where: The folder of the network.
        shape: The shape (c, h, w) of the network's own data.
        image_shape: The shape (C, H, W) of the images of these data.
    """

    folder: Path
    index: Mapping[str, Any]
    config: Mapping[str, Any]
    where: Path
    shape: tuple[int, ...]
    image_shape: tuple[int, ...]

    def refuse(self, why: str) -> InputError:
        """Return an error about the network's config."""
        return InputError(f"{self.where / CONFIG}: {why}")

    def check_width(self, key: str, width: int) -> None:
        """Raise an InputError unless a setting of the network is the width of what its text encoders return."""
        if self.config.get(key) != width:
            raise self.refuse(
                f"the network has {key} {self.config.get(key)}, but its text encoders return width {width}"
            )


Call = Callable[..., Any]


@dataclass(frozen=True)
class Told:
    """How a network is called, and under which conditions.

    Attributes:
        call: The function (network, x, t, *given) -> the network's output, an object of diffusers.
        sizes: The sizes of data that the network takes.
        conditions: The conditions that the network takes; None for an unconditional network.
        encoders: The encoders of texts, whose weights are part of the model's hash.
        assumed: The values that the folder does not state, in words.
        made_by: The class that builds the network, if it is not the class that the config names.
    """

    call: Call
    sizes: Sizes
    conditions: Conditions | None = None
    encoders: Sequence[TextEncoder] = ()
    assumed: Sequence[str] = ()
    made_by: str | None = None
