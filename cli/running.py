"""What commands that run a model have in common: loading it, going through images in batches, showing progress."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from odeddim import solvers
from odeddim.api import plan
from odeddim.field import VectorField
from odeddim.grids import ENDS, NAMES, is_named, read_notes
from odeddim.images import ImageSource, check_shape, open_images, sample_images
from odeddim.latents.store import LatentFile, Provenance, provenance_of
from odeddim.models import BUILT_IN, load
from odeddim.types import InputError, Solver, State, pick

DTYPES = ("float32", "float64", "bfloat16")
NAMED = 8  # of images that did not converge, in a warning
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
        return replace(state, xbar=state.xbar.to(self.state), aux=tuple(part.to(self.state) for part in state.aux))


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


def warn(message: str) -> None:
    """A warning on stderr, in one line."""
    click.echo(f"warning: {message}", err=True)


def warn_of_grid(grid: str | None, field: VectorField, row: Solver) -> None:
    """Say on stderr where a grid file names another model or solver than what runs on it (see `odeddim grid`)."""
    notes = {} if grid is None or is_named(grid) else read_notes(Path(grid))
    theirs, ours = notes.get("sha256") or notes.get("model"), field.sha256 if notes.get("sha256") else field.name
    if theirs and theirs != ours:
        warn(
            f"{grid} was computed for the model {notes.get('model', theirs)!r}, not {field.name!r}: "
            "`odeddim grid` computes one for it"
        )
    if notes.get("solver", row.name) != row.name:
        warn(f"{grid} was computed for the solver {notes['solver']!r}, not {row.name!r}")


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


BATCH = 32  # images per evaluation, unless given
WILD = 3.0  # |x| that no image has
QUEUE = 8  # batches that a row with a queue of its own gets at once, to keep its evaluations full


def batches(total: int, size: int | None, row: Solver, encoded: LatentFile | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) of each batch: of the size given, or as encoded: a network's last digits depend on it."""
    if size is None:
        kept = encoded.provenance.details.get("batch_size") if encoded else None
        size = kept if isinstance(kept, int) and kept > 0 else BATCH
    size *= QUEUE if "batch" in row.settings else 1
    for start in range(0, total, size):
        yield start, min(start + size, total)


def warn_of_range(largest: float, what: str = "the images reach ±{:.3g} where data lie within ±1") -> None:
    """Say on stderr where images, or the rms of latents, are so large that the run must have been unstable."""
    if largest > WILD:
        advice = "this solver is unstable on this grid; take more steps, another grid or another solver"
        warn(f"{what.format(largest)}: {advice}")


class Reports:
    """What the batches of a run say of their images, kept to be told at the end of it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.batches: list[Mapping[str, torch.Tensor]] = []

    def add(self, state: State, names: Sequence[str]) -> None:
        """Keep what a batch's run reported of the images of these names."""
        self.names += names
        self.batches.append(state.report)

    def of(self, name: str) -> torch.Tensor | None:
        """One figure of all images, (N,), if every batch reported it."""
        parts = [report[name] for report in self.batches if name in report]
        return torch.cat(parts).cpu() if parts and len(parts) == len(self.batches) else None

    def evaluations(self, rows: int) -> str:
        """How many evaluations an image took, of `rows` in all."""
        counts = self.of("evaluations")
        if counts is None:
            return f"{rows / len(self.names):g} evaluations per image"
        text = f"{float(counts.double().mean()):.4g} evaluations per image ({int(counts.min())} to {int(counts.max())})"
        filling = rows - int(counts.sum())
        return text + (f", {filling / len(self.names):.4g} more to fill batches" if filling > 0 else "")

    def warn(self, end: str) -> None:
        """Name on stderr the images whose iteration did not converge, and what may help."""
        converged, residual = self.of("converged"), self.of("residual")
        if converged is None or residual is None or bool(converged.all()):
            return
        failed = [repr(name) for name, good in zip(self.names, converged.tolist(), strict=True) if not good]
        named = ", ".join(failed[:NAMED]) + (f" and {len(failed) - NAMED} more" if len(failed) > NAMED else "")
        warn(
            f"{len(failed)} of {len(self.names)} images did not converge (residual up to "
            f"{float(residual[~converged].max()):.0e}): {named}; "
            f"{'--end sigma_min, ' if end == 'zero' else ''}more steps, another grid or a higher --max-nfe may help"
        )


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
        if steps is None and its_grid is not None and (grid is None or is_named(grid)):
            steps = made.steps
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
