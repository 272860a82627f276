"""Runs on a GPU without waits: what must hold is noted there, and read once, at the end of the run.

Reading a value makes the host wait until the GPU has done all that it was told, and the GPU then waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.types import Field, Observe, Solver, State


def unwaiting(field: Field, state: State, solver: Solver, observe: Observe | None, run: Callable[[], State]) -> State:
    """The result of a run whose checks are noted on the device, where that saves a wait and nobody looks on.

    If a check fails, the run is made again with each of them read at once. So the error is the one that a run on a CPU
    raises, at the first evaluation that is wrong; it comes late, and only then.

    Args:
        field: The field of the run.
        state: The start of the run.
        solver: The row. One that chooses its own steps would lose its way on values that are not finite, but for those
            that look at each image by itself.
        observe: Who observes the run, if anybody: what is shown must be checked before.
        run: The run, which can be made twice.

    Returns:
        The state at the end of the run, the same bits as without notes.

    Raises:
        Exception: What the run raises.
    """
    lost = solver.adaptive and not solver.queued
    if not isinstance(field, VectorField) or state.xbar.device.type == "cpu" or observe is not None or lost:
        return run()
    before, field.notes = field.counts, []
    notes = field.notes
    try:
        reached = run()
        held = _all(notes)
    except Exception:
        held = _all(notes)
        if held:
            raise
    finally:
        field.notes = None
    if held:
        return reached
    watch, field.watch, field.counts = field.watch, None, before
    try:
        return run()
    finally:
        field.watch = watch


def _all(notes: list[Tensor]) -> bool:
    """Whether all that was noted holds: one wait."""
    return not notes or bool(torch.stack(notes).all())
