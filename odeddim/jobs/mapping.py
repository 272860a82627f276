"""Callables for whoever maps batches himself: `ray.data.Dataset.map_batches`, a DataLoader of torch, a loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odeddim import defaults
from odeddim.api import Model, decode, encode
from odeddim.jobs.machine import Machine, Place
from odeddim.jobs.subject import Subject, subject_on, warn_of_plan
from odeddim.jobs.work import How, the_plan
from odeddim.models import DEFAULT
from odeddim.ode.field import VectorField
from odeddim.plans import Plan, check_encodes
from odeddim.storage.images import from_bytes, prepared_array
from odeddim.storage.preparation import AS_IT_IS
from odeddim.types import InputError, State

Column = NDArray[Any] | Tensor
Batch = Column | Mapping[str, Any]


class Encoder:
    """Encodes batches of images. The model is loaded once, where the Encoder is made.

    A latent has the bits that `odeddim.jobs.encode` gives it on such a machine, unless the solver shares its steps
    among the images of a batch.

    Args:
        model: As of `odeddim.jobs.encode`.
        plan: The plan that encodes, in place of `how`.
        machine: Where to run.
        column: The column of the images.
        **how: solver, steps, grid, end and the solver's settings, as of `odeddim.encode`.

    Raises:
        InputError: If an argument cannot be used.

    Example:
        >>> import numpy, odeddim
        >>> encoder = odeddim.Encoder("exact-samples", solver="euler", steps=4)
        >>> made = encoder({"image": numpy.zeros((2, 28, 28), numpy.uint8), "label": numpy.array([3, 7])})
        >>> sorted(made), made["latent"].shape
        (['label', 'latent', 'sigma'], (2, 1, 28, 28))
    """

    def __init__(
        self,
        model: Model | Subject = DEFAULT,
        *,
        plan: Plan | None = None,
        machine: Machine | None = None,
        column: str = "image",
        **how: Any,
    ) -> None:
        self.column = column
        self._place, self.model, self.plan = _set_up(model, plan, machine, how)
        check_encodes(self.plan.solver)
        if self.plan.start:
            raise InputError(
                "an Encoder does not know the index of an image, which its noise follows: leave out start=..."
            )
        self._place.fit(self.model, self.plan.solver)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Any]:
        """The latents of a batch.

        Args:
            batch: Columns by name, or the images alone: arrays or tensors (B, C, H, W), (B, H, W, C) or (B, H, W) of
                bytes, or (B, C, H, W) of floats in [-1, 1].

        Returns:
            The other columns as they are, and arrays "latent" (B, *), which is x̄, and "sigma" (B,); of a reversible
            solver also "aux/0", ... and "kept", which its way back needs.

        Raises:
            InputError: If the batch has no such images.
        """
        columns, images = _column(batch, self.column)
        sizes = self.model.image_sizes
        pixels = _pixels(images, sizes.own[0] if sizes and sizes.own else None)
        state = encode(pixels.to(self._place.state), model=self.model, plan=self.plan)
        count = len(state)
        made = {"latent": state.xbar.cpu().numpy(), "sigma": np.full(count, state.sigma)}
        made |= {f"aux/{k}": part.cpu().numpy() for k, part in enumerate(state.aux)}
        return columns | made | ({"kept": np.array([state.kept] * count)} if state.aux else {})


class Decoder:
    """Decodes batches of latents, as an `Encoder` with the same arguments has made them.

    Args:
        model, plan, machine, **how: As of `Encoder`.
        column: The column of the images that are made.

    Raises:
        InputError: If an argument cannot be used.

    Example:
        >>> import numpy, odeddim
        >>> how = {"solver": "rk4", "steps": 10}
        >>> latents = odeddim.Encoder("exact-mixture", **how)(numpy.zeros((2, 28, 28), numpy.uint8))
        >>> odeddim.Decoder("exact-mixture", **how)(latents)["image"].shape
        (2, 1, 28, 28)
    """

    def __init__(
        self,
        model: Model | Subject = DEFAULT,
        *,
        plan: Plan | None = None,
        machine: Machine | None = None,
        column: str = "image",
        **how: Any,
    ) -> None:
        self.column = column
        self._place, self.model, self.plan = _set_up(model, plan, machine, how)
        if self.plan.solver.stochastic:
            raise InputError(
                f"a Decoder does not know the index of an image, which the noise of {self.plan.solver.name!r} follows: "
                "use `odeddim.jobs.decode`, or another solver"
            )
        self._place.fit(self.model, self.plan.solver)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The images of a batch.

        Args:
            batch: Columns by name, those of `Encoder` among them.

        Returns:
            The other columns as they are, and the images, (B, C, H, W) floats in [-1, 1], not clipped.

        Raises:
            InputError: If the batch has no latents, or they lie at several noise levels.
        """
        others, latents = _column(batch, "latent")
        if "sigma" not in others:
            raise InputError("the batch has latents without their noise level: give the column 'sigma' too")
        levels = {float(level) for level in others.pop("sigma")}
        if len(levels) != 1:
            raise InputError(f"the latents of a batch lie at one noise level, not at {len(levels)}: decode them apart")
        names = sorted((name for name in others if name.startswith("aux/")), key=lambda name: int(name[4:]))
        parts = [torch.as_tensor(part) for part in (latents, *(others.pop(name) for name in names))]
        kept = others.pop("kept", [""])
        state = State(parts[0], levels.pop(), tuple(parts[1:]), kept=str(kept[0])).to(dtype=self._place.state)
        images = decode(state, model=self.model, plan=self.plan)
        return others | {self.column: images.cpu().numpy()}


def _set_up(
    model: Model | Subject, plan: Plan | None, machine: Machine | None, how: dict[str, Any]
) -> tuple[Place, VectorField, Plan]:
    """Where to run, the model there, and the plan of an Encoder or a Decoder with these arguments."""
    place = (machine or Machine()).at(model=model)
    field = subject_on(place, model)
    made = the_plan(plan, How.of(how, tops=True), field, defaults.ENCODE)
    warn_of_plan(made, field)
    return place, field, made


def _column(batch: Batch, name: str) -> tuple[dict[str, Any], Any]:
    """The other columns of a batch, and one of them; a batch that has no columns is that one."""
    if not isinstance(batch, Mapping):
        return {}, batch
    columns = dict(batch)
    if name not in columns:
        raise InputError(f"the batch has no column {name!r} (it has {', '.join(map(str, columns)) or 'none'})")
    return columns, columns.pop(name)


def _pixels(images: Any, channels: int | None) -> Tensor:
    """Images as (B, C, H, W) floats in [-1, 1], in as many channels as the model takes.

    Whether floats are meant to begin at 0 or at -1 is not guessed, as it is of a whole source: a batch says too little.
    """
    if not isinstance(images, (np.ndarray, Tensor)):
        raise InputError(f"the images of a batch are an array or a tensor, not {type(images).__name__}")
    x = images.detach().cpu() if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    if x.is_floating_point():
        return x
    if x.dtype != torch.uint8:
        raise InputError(f"the images of a batch are bytes or floats in [-1, 1], not {x.dtype}".replace("torch.", ""))
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim in (4, 5) and x.shape[1] not in (1, 3) and x.shape[-1] in (1, 3):
        x = x.movedim(-1, 1)
    return prepared_array(from_bytes(x), channels, AS_IT_IS)
