"""A pipeline as its folder describes it, and what is told of its network: its call and the conditions that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odeddim.models.components import CONFIG, class_of
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

    @property
    def second(self) -> Path:
        """The folder of the second network, where there is one."""
        return second_of(self.where)

    @property
    def factor(self) -> int:
        """How many pixels of an image make a side of its data."""
        return self.image_shape[1] // self.shape[1]

    @property
    def own_size(self) -> str:
        """What is assumed where the config names no size, in words."""
        return "images of {}×{} as its own size".format(*self.image_shape[1:])

    def patches(self, default: int, largest: int | None = None) -> Sizes:
        """The sizes of a transformer that computes its positions: multiples of its patches.

        Args:
            default: The side of a patch of a config that names none.
            largest: The largest side of the data, if there is one.
        """
        patch = self.config.get("patch_size", default)
        if type(patch) is not int or patch < 1 or self.shape[1] % patch or self.shape[2] % patch:
            raise self.refuse(f"patch_size must be a whole number that divides sample_size, not {patch!r:.50}")
        return Sizes(self.shape, patch, largest)

    def check_width(self, key: str, width: int) -> None:
        """Raise an InputError unless a setting of the network is the width of what its text encoders return."""
        if self.config.get(key) != width:
            raise self.refuse(
                f"the network has {key} {self.config.get(key)}, but its text encoders return width {width}"
            )


def second_of(where: Path) -> Path:
    """The folder of the second network of a pipeline whose first one lies in `where`."""
    return where.with_name(f"{where.name}_2")


Call = Callable[..., Any]


@dataclass(frozen=True)
class Told:
    """How a network is called, and under which conditions.

    Attributes:
        call: The function (network, x, t, *given) -> the network's output, an object of diffusers, or its tensor.
        sizes: The sizes of data that the network takes.
        conditions: The conditions that the network takes; None for an unconditional network.
        encoders: The encoders of texts, whose weights are part of the model's hash.
        assumed: The values that the folder does not state, in words.
        made_by: The class that builds the network, if it is not the class that the config names.
        adds: What the pipeline adds to texts, which is part of the model's hash.
        boundary: The time t in (0, 1) below which the pipeline's second network takes the place of the first; None for
            one network.
        predicts, time: What the network predicts and what its labels are, as of `VectorField`, if it is not what its
            scheduler says.
    """

    call: Call
    sizes: Sizes
    conditions: Conditions | None = None
    encoders: Sequence[TextEncoder] = ()
    assumed: Sequence[str] = ()
    made_by: str | None = None
    adds: str = ""
    boundary: float | None = None
    predicts: str | None = None
    time: str | None = None


def empty_pipeline(name: str) -> Any:
    """A pipeline of the installed diffusers without any parts, which knows what it adds to texts.

    Raises:
        InputError: If the installed diffusers is too old to have this class.
    """
    kind = class_of("diffusers", name)
    parts = inspect.signature(kind).parameters.values()
    return kind(**{part.name: None for part in parts if part.default is part.empty})
