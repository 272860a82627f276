"""Latent files in Python: open them, decode from them, save a state."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim import defaults
from odeddim.api import Model, to_images
from odeddim.jobs.decoding import NOTHING, decoding_of
from odeddim.jobs.each import for_batch, kept_for
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, subject_of
from odeddim.jobs.work import How, Numbered, the_plan
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.latents.provenance import provenance_of
from odeddim.models import BUILT_IN, DEFAULT, load
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.types import InputError, State


class Latents(LatentFile):
    """An open latent file: `len`, `[i]` and `[a:b]` as a State, names, plan, certificate, summary, decode.

    Use it as a context manager, or `close` it. Rows are read when they are needed, and checked against their checksums.
    """

    @torch.no_grad()
    def decode(
        self,
        rows: int | slice = slice(None),
        *,
        model: Model | Subject | None = None,
        plan: Plan | None = None,
        machine: Machine | None = None,
        **how: Any,
    ) -> Tensor:
        """Decode latents of the file: bit for bit what `odeddim decode` writes.

        Args:
            rows: An index or a slice; by default all. The latents are decoded together, so they must fit in memory.
            model: The model that encoded; None for the one that the file names, under the condition that it names.
            plan: The plan that decodes, in place of `how`.
            machine: Where to run; what is not given is as the latents were encoded.
            **how: solver, steps, grid and the solver's settings; what is not given is as in the file.

        Returns:
            The images, (n, C, H, W), nominally in [-1, 1].

        Raises:
            InputError: If an argument cannot be used, or a row is damaged.
            IndexError: If there is no latent with this index.
        """
        place = (machine or Machine()).at(self, model)
        field = subject_of(self, place, model)
        decoding = decoding_of(self, field, How.of(how, tops=True), plan)
        place.fit(field, decoding.plan.solver)
        first = range(len(self))[rows] if isinstance(rows, int) else rows.indices(len(self))[0]
        state = place.cast(self[rows])
        return to_images(field, decoding.images(state, for_batch(kept_for(self, field), field.on_data(), state), first))


def open(path: str | Path) -> Latents:
    """Open a latent file.

    Args:
        path: The file, z.h5, that `odeddim encode`, `odeddim.jobs.encode` or `odeddim.save` has written.

    Returns:
        The open file; use it as a context manager.

    Raises:
        InputError: If the file is no latent file, or is damaged.

    Example:
        >>> import odeddim, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "z.h5")
        >>> made = odeddim.jobs.encode(None, path, model="exact-samples", count=3, solver="belm", steps=4)
        >>> with odeddim.open(path) as latents:
        ...     print(len(latents), latents[0], latents.plan)
        ...     images = latents.decode(slice(1, 3))
        3 State(1 × (1, 28, 28) float32, σ = 157.407, kept by belm) belm, log grid, 4 steps, end zero
        >>> images.shape
        torch.Size([2, 1, 28, 28])
    """
    return Latents(Path(path))


@torch.no_grad()
def save(
    state: State,
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    model: Model | None = None,
    plan: Plan | None = None,
    overwrite: bool = False,
    **how: Any,
) -> None:
    """Save a state as a latent file that `odeddim.open` and `odeddim decode` read.

    A state of `odeddim.encode` or of a latent file knows its plan and the name of its model (`State.plan`).

    Args:
        state: The latents, as `odeddim.encode` gives them.
        path: The file, z.h5.
        names: Where each latent comes from; by default numbers. `odeddim decode` names the images after them.
        model: The model that encoded; by default the one that the state names.
        plan: The plan that encoded, for a state that does not know it.
        overwrite: Whether to replace a file that is at `path`.
        **how: solver, steps, grid, end and settings in place of `plan`.

    Raises:
        InputError: If the state was encoded by another model or plan, its plan does not end where the latents lie, or
            another file is at `path`.

    Example:
        >>> import odeddim, pathlib, tempfile, torch
        >>> state = odeddim.encode(torch.zeros(2, 1, 4, 4), "ab2", model="exact-mixture", steps=8)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "z.h5")
        >>> odeddim.save(state, path)
        >>> with odeddim.open(path) as latents:
        ...     print(latents[:] == state, latents.plan)
        True ab2, log grid, 8 steps, end zero
    """
    field = load(_model_of(state) if model is None else model)
    plan = _plan_of(state, field, plan, How.of(how, tops=True))
    if names is not None and len(names) != len(state):
        raise InputError(f"names=... has {len(names)} names for {len(state)} latents: give one name for each")
    details = Machine().at(model=field).details(field, plan.solver, len(state))
    # A network's last digits depend on the batch that it saw: whoever decodes the file gives it as many images.
    details["network_batch"] = details["network_batch"] or plan.notes.get("network_batch")
    details |= {"parallel": plan.notes["parallel"]} if "parallel" in plan.notes else {}
    made = provenance_of(field, plan, "interpolate" if state.combined else "encode", **details)
    named = Numbered("", len(state)) if names is None else names
    with LatentRun(Path(path), named, made, plan.nodes, overwrite=overwrite) as run:
        for start, stop in run.batches(len(state)):
            run.write(start, stop, state[start:stop].to("cpu"))


def _model_of(state: State) -> str:
    """The name of the model that encoded a state."""
    name = str(state.plan.notes.get("model", DEFAULT)) if state.plan else DEFAULT
    if name not in BUILT_IN and not os.path.exists(name):
        raise InputError(f"the latents belong to the model {name!r}, which was not found: give it with model=...")
    return name


def _plan_of(state: State, field: VectorField, plan: Plan | None, how: How) -> Plan:
    """The plan that encoded a state: its own, or the one that is given if it has none."""
    own = state.plan
    given = None if own and not plan and how == NOTHING else the_plan(plan, how, field, defaults.ENCODE)
    if own is not None:
        if unlike := own.unlike(field):
            raise InputError(f"the latents were encoded {unlike}: give the model that encoded them, model=...")
        if given is not None and replace(given, notes={}) != replace(own, notes={}):
            raise InputError(f"the latents were encoded by {own}, not by {given}: leave out what says so")
    found = own or given
    assert found is not None
    if not found.ends_at(state.sigma):
        raise InputError(
            f"the latents lie at σ = {state.sigma:.9g}, but the plan ends at σ = {found.top:.9g}: give the plan, or "
            "the arguments, with which they were encoded"
        )
    return found
