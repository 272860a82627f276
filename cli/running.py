"""What commands that run a model have in common: loading it, going through images in batches, showing progress."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from odeddim import solvers
from odeddim.api import plan
from odeddim.field import VectorField
from odeddim.grids import ENDS, NAMES
from odeddim.images import ImageSource, check_shape, open_images, sample_images
from odeddim.latents.store import LatentFile, Provenance, provenance_of
from odeddim.models import BUILT_IN, load
from odeddim.types import InputError, Solver, State, pick

DTYPES = ("float32", "float64", "bfloat16")
errors = Console(stderr=True)


@dataclass(frozen=True)
class Machine:
    """Where and how to run: device and dtype of the network."""

    device: torch.device
    dtype: torch.dtype

    @property
    def state(self) -> torch.dtype:
        """The state's dtype: float64 with a float64 network, otherwise float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def dtype_name(self) -> str:
        """The network's dtype, as --dtype has it."""
        return str(self.dtype).removeprefix("torch.")

    def cast(self, state: State) -> State:
        """A State in this machine's state dtype."""
        return State(state.xbar.to(self.state), state.sigma, tuple(part.to(self.state) for part in state.aux))


def steps_of(row: Solver, nodes: torch.Tensor) -> str:
    """How many steps a run has, in words."""
    return "adaptive" if row.adaptive else f"{len(nodes) - 1} steps"


def machine(device: str | None, dtype: str | None, encoded: LatentFile | None = None) -> Machine:
    """The machine of --device and --dtype; latents that were encoded bring their dtype along."""
    if dtype is None:
        dtype = encoded.provenance.details.get("dtype", "float32") if encoded else "float32"
        dtype = pick(str(dtype), DTYPES, "dtype")
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError) as error:  # NotImplementedError, of devices without data, is the former
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"the device {name!r} cannot be used here ({reason}): try --device cpu") from None
    return Machine(place, getattr(torch, dtype))


def field_on(model: str, where: Machine) -> VectorField:
    """The model on this machine."""
    return load(model, device=where.device, dtype=where.dtype)


def field_of(file: LatentFile, model: str | None, where: Machine) -> VectorField:
    """The model of a latent file: the one it names, or the one given; checked against its weights' hash."""
    named = file.provenance.model
    if model is None and named not in BUILT_IN and not os.path.exists(named):
        raise InputError(f"{file.path} belongs to the model {named!r}, which is not there: give it with --model")
    field = field_on(model or named, where)
    file.provenance.check_model(field, str(file.path))
    return field


def images_for(field: VectorField, path: Path | None) -> ImageSource:
    """The images of a path, or the package's own without one, in as many channels as the model takes."""
    source = sample_images() if path is None else open_images(path, channels=field.shape[0] if field.shape else None)
    if field.shape is not None:
        check_shape(source, field.shape, path or "the package")
    return source


@contextlib.contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[int], Any]]:
    """A progress bar on stderr; yields a function that moves it on by so many."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        task = bars.add_task(unit, total=total)
        yield lambda count: bars.advance(task, count)


def batches(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each batch."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


def decoding_plan(
    file: LatentFile,
    field: VectorField,
    solver: str | None,
    steps: int | None,
    grid: str | None,
    settings: dict[str, Any],
) -> tuple[Solver, torch.Tensor, Provenance]:
    """What decodes a latent file: the nodes of the file, unless steps or a grid are given, by its solver or another.

    Settings such as rtol are the file's, as long as the solver is. With it comes the provenance of the images.
    """
    made = file.provenance
    if solver in (None, made.solver):
        settings = {**made.settings, **{key: value for key, value in settings.items() if value is not None}}
    row = solvers.get(solver or made.solver)
    its_grid = None if solvers.get(made.solver).adaptive else made.grid
    if steps is None and grid is None and (row.adaptive or its_grid is not None):
        grid = made.grid
        row, nodes = plan(field.schedule, row, None, file.nodes, settings=settings)
    elif made.end not in ENDS:
        raise InputError(f"{file.path}: its images lie at σ = {float(file.nodes[0]):.6g}: only its own nodes decode it")
    else:
        if grid is None and its_grid is not None and its_grid.partition(":")[0] in NAMES:
            grid = its_grid
        row, nodes = plan(field.schedule, row, steps, grid, made.end, settings)
    images = provenance_of(
        field,
        solver=row.name,
        grid=grid or row.grid,
        nodes=nodes,
        made_by="decode",
        settings=settings,
        latents=str(file.path),
        encoded=asdict(made),
        dtype=str(field.dtype).removeprefix("torch."),
    )
    return row, nodes, images


def image_shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) from "C,H,W"."""
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--size {text!r}: give channels, height and width, as in 3,32,32")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width
