"""Runs over more images than fit into memory at once: in batches, whose results are put together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.plans import Callback, Plan
from odeddim.runs.progress import Progress, shown
from odeddim.types import BudgetExceeded, InputError, State, lacks_memory

BatchSize: TypeAlias = int | Literal["auto"] | None
Result = TypeVar("Result", Tensor, State)
Batch = Callable[[slice, Plan, "Callback | None"], Result]
"""The result of some of the images: batch(rows, plan, callback)."""

ON_A_CPU = 32
"""Where "auto" begins on a CPU: more images at once are hardly faster there, and too many would bring the machine to
swap long before an allocation fails. On other devices it begins with all."""

_FITS: dict[tuple[Any, ...], int] = {}
"""The batch sizes that were found, by all that decides how much memory an image takes."""


@dataclass(frozen=True)
class Batches:
    """How a run over many images is cut into batches, and who watches it.

    Attributes:
        field: The model.
        plan: The plan of the run.
        size: The number of images in a batch; "auto" for as many as fit; None for all.
        progress: Who is shown how far the run is.
        callback: Called after each step of each batch, see `odeddim.plans.integrate`.
    """

    field: VectorField
    plan: Plan
    size: BatchSize = None
    progress: Progress = False
    callback: Callback | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int) and not isinstance(self.size, bool) and self.size >= 1
        if not (whole or self.size is None or self.size == "auto"):
            raise InputError(f"batch_size must be a positive whole number, 'auto' or None, not {self.size!r}")

    def run(self, batch: Batch[Result], total: int, home: torch.device, unit: str, shape: tuple[int, ...]) -> Result:
        """The results of all images.

        Args:
            batch: The run of some of the images.
            total: The number of images.
            home: Where the results of several batches are put together; that of one run of all stays where it is.
            unit: What is done, in a word, for the display.
            shape: The shape of an image.

        Returns:
            What the run of all images at once would give. With noise, its index is that of the image among all.

        Raises:
            InputError, BudgetExceeded: As the run of a batch; the message begins with the images of the batch.
        """
        with shown(self.progress, total, unit) as advance:
            watch = _Watch(self, advance)
            if self.size is None:
                return watch.over(batch, slice(0, total), self.plan)
            gathered, key = _Gathered(total, home), self._key(shape)
            size = _FITS.get(key, ON_A_CPU if self._on_cpu(home) else total) if self.size == "auto" else int(self.size)
            start = 0
            while start < total or gathered.first is None:  # a run of no images says what is wrong with that
                rows = slice(start, min(start + max(size, 1), total))
                made = self._try(watch, batch, rows)
                if made is None:
                    size = _FITS[key] = _smaller(rows.stop - rows.start)
                    continue
                gathered.add(rows, made)
                start = rows.stop
        return gathered.whole()  # type: ignore[return-value]  # a Tensor of Tensors, a State of States

    def _try(self, watch: _Watch, batch: Batch[Result], rows: slice) -> Result | None:
        """The result of a batch; None if it does not fit into memory and may be made smaller."""
        try:
            return watch.over(batch, rows, self._plan_at(rows.start))
        except (InputError, BudgetExceeded) as error:
            raise _located(error, rows) from error
        except (MemoryError, RuntimeError) as error:
            if self.size != "auto" or rows.stop - rows.start <= 1 or not lacks_memory(error):
                raise
        # Here, and not above, where the error would keep all tensors of the run.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()
        return None

    def _plan_at(self, start: int) -> Plan:
        """The plan of the images from this one on: what a stochastic solver adds to an image depends on its index."""
        row = self.plan.solver
        if not row.stochastic or start == 0:
            return self.plan
        first = row.chosen.get("first", row.settings["first"])
        return self.plan.with_solver(row.with_settings(first=first + start))

    def _on_cpu(self, home: torch.device) -> bool:
        return (self.field.device or home).type == "cpu"

    def _key(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """What decides how much memory an image takes."""
        field, row = self.field, self.plan.solver
        model = (field.sha256 or id(field.eps), str(field.device), field.dtype, field.network_batch)
        return (*model, field.condition.guidance != 1, shape, row.name)


class _Watch:
    """Shows how far a run is: whole batches, and of the batch under way the share of its steps."""

    def __init__(self, batches: Batches, advance: Callable[[float], Any]) -> None:
        self.batches, self.advance = batches, advance
        self.done = 0.0

    def over(self, batch: Batch[Result], rows: slice, plan: Plan) -> Result:
        """The result of a batch, watched."""
        callback = self.batches.callback
        steps, count = plan.steps, rows.stop - rows.start

        def step(made: int, sigma: float, xbar: Tensor) -> None:
            if callback is not None:
                callback(made, sigma, xbar)
            if steps is not None and made < steps:
                self._reach(rows.start + count * made / steps)

        watched = callback is not None or bool(self.batches.progress)
        result = batch(rows, plan, step if watched else None)
        self._reach(rows.stop)
        return result

    def _reach(self, done: float) -> None:
        if done > self.done:  # less, where a batch is tried again
            self.advance(done - self.done)
            self.done = done


class _Gathered:
    """The results of batches, put together in the place that they will have."""

    def __init__(self, total: int, home: torch.device) -> None:
        self.total, self.home = total, home
        self.first: Tensor | State | None = None
        self.parts: list[Tensor] = []
        self.reports: dict[str, list[Tensor]] = {}

    def add(self, rows: slice, made: Tensor | State) -> None:
        """Add the result of these images."""
        parts = (made,) if isinstance(made, Tensor) else (made.xbar, *made.aux)
        if self.first is None:
            self.first = made
            self.parts = [part.new_empty((self.total, *part.shape[1:]), device=self.home) for part in parts]
        for whole, part in zip(self.parts, parts, strict=True):
            whole[rows] = part.to(self.home)
        for name, values in made.report.items() if isinstance(made, State) else ():
            self.reports.setdefault(name, []).append(values)

    def whole(self) -> Tensor | State:
        """The result of all images."""
        if not isinstance(self.first, State):
            return self.parts[0]
        report = {name: torch.cat(values) for name, values in self.reports.items()}
        return replace(self.first, xbar=self.parts[0], aux=tuple(self.parts[1:]), report=report)


def _smaller(count: int) -> int:
    """The largest power of two below a number."""
    return 1 << (count - 1).bit_length() - 1


def _located(error: InputError | BudgetExceeded, rows: slice) -> InputError | BudgetExceeded:
    words = f"images {rows.start} to {rows.stop - 1}: {error}"
    return InputError(words) if isinstance(error, InputError) else BudgetExceeded(words, error.state, error.nfe)
