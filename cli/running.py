"""What commands that run a model have in common: loading it, going through images in batches, showing progress."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import click
import torch
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from odeddim import defaults, solvers
from odeddim.api import decode, plan, to_data, to_images
from odeddim.checks.certificate import LADDER, Rung
from odeddim.cli.options import MOST_NEW, echo, of_model
from odeddim.cli.words import in_options
from odeddim.fitting.preset import Preset
from odeddim.latents.arithmetic import Readable, check_alike, rms
from odeddim.latents.latent_file import (
    MADE_OF_OTHERS,
    MOST_ROW,
    LatentFile,
    LatentRun,
    Provenance,
    digest,
    provenance_of,
)
from odeddim.models import BUILT_IN, load
from odeddim.ode.conditions import Condition
from odeddim.ode.devices import DTYPES, device_of, dtype_of, set_tf32
from odeddim.ode.field import VectorField
from odeddim.ode.grids import ENDS, NAMES, is_named, note_of, read_notes
from odeddim.ode.schedule import Schedule
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import SUFFIXES
from odeddim.storage.images import SAMPLE, ImageSource, check_shape, open_images, sample_images
from odeddim.storage.outputs import open_output
from odeddim.storage.workers import local_rank, rank
from odeddim.types import InputError, Solver, State, pick

NAMED = 8  # of images that did not converge, in a warning
errors = Console(stderr=True)


@dataclass(frozen=True)
class Machine:
    """Where and how to run: device and dtype of the network."""

    device: torch.device
    dtype: torch.dtype
    asked: bool = False  # whether the user named the dtype
    tf32: bool = False

    @property
    def state(self) -> torch.dtype:
        """The state's dtype: float64 with a float64 network, otherwise float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def dtype_name(self) -> str:
        """The network's dtype, as --dtype has it."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    def cast(self, state: State) -> State:
        """A State in this machine's state dtype."""
        return replace(state, xbar=state.xbar.to(self.state), aux=tuple(part.to(self.state) for part in state.aux))


def machine(device: str | None, dtype: str | None, encoded: LatentFile | None = None) -> Machine:
    """The machine of --device and --dtype; latents that were encoded bring their dtype along."""
    place = _place(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    asked = dtype is not None
    if dtype is None:
        dtype = pick(str(encoded.provenance.details.get("dtype", "float32") if encoded else "float32"), DTYPES, "dtype")
        if dtype == "tf32" and place.type != "cuda":
            dtype = "float32"
    kind, tf32 = dtype_of(dtype)
    return Machine(place, kind, asked, tf32)


def _place(name: str) -> torch.device:
    """The device of this name, and torch set up for it: for the same digits from the same run."""
    if name == "cuda":  # of several processes on one machine each takes its own GPU, as long as there are enough
        name = f"cuda:{local_rank() % max(torch.cuda.device_count(), 1)}"
    if name.startswith("cuda"):
        # Not torch.use_deterministic_algorithms: that refuses networks in the middle of a run for operations which some
        # of them have (cumsum of positions), and what it would change in those that run is their backward passes.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins, a moment later
        set_tf32(False)  # also for what is no VectorField: features of images, training
    return device_of(name)


def field_on(
    model: str, where: Machine, condition: dict[str, Any] | None = None, *, said: dict[str, Any] | None = None
) -> VectorField:
    """The model on this machine, told of on stderr; under the condition given but for what is said: by the options of
    the command line, unless of another model."""
    made_under, options = Condition(**(condition or {})), of_model()
    allow_pickle = options.pop("allow_pickle", False)
    field = load(model, device=where.device, allow_pickle=allow_pickle)
    if where.asked or where.tf32 or not field.keeps_dtype:
        field.to(where.device, where.dtype_name)
    told = {**made_under.to_dict(), **(options if said is None else said)}
    if said is None and told.get("guidance", 1) == 1 and "interval" not in options:
        told.pop("interval", None)  # that of the latents, whose guidance is taken back
    field = field.conditioned(**told)
    if condition is not None and field.condition != made_under:
        words = [it.words or "no condition" for it in (field.condition, made_under)]
        warn(f"under {words[0]}, where the latents were made under {words[1]}: other images than those encoded")
    if model not in BUILT_IN and rank()[0] == 0:
        echo(f"{model}: {field.describe()}", err=True)
    return field


def field_of(file: LatentFile, model: str | None, where: Machine) -> VectorField:
    """The model of a latent file: the one it names, or the one given; checked against its weights' hash."""
    named = file.provenance.model
    if model is None and named not in BUILT_IN and not os.path.exists(named):
        raise InputError(f"{file.path} belongs to the model {named!r}, which is not there: give it with --model")
    field = field_on(model or named, where, file.provenance.condition)
    file.provenance.check_model(field, str(file.path))
    return field


def images_for(field: VectorField, path: Path | None) -> ImageSource:
    """The images of a path, or the package's own without one, in as many channels as the model takes."""
    shape = field.image_shape
    source = sample_images() if path is None else open_images(path, channels=shape[0] if shape else None)
    if shape is not None:
        check_shape(source, shape, path or "the package")
    return source


def data_and_floor(field: VectorField, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the ODE begins at, and the report of what a latent model's autoencoder alone loses: "floor" (B,).

    floor: rms over pixels of the image that went through the autoencoder and back minus the image, in [-1, 1].
    """
    data = to_data(field, images)
    if field.codec is None:
        return data, {}
    again = to_images(field, data)
    return data, {"floor": rms(again - images.to(again.device))}


def warn(message: str) -> None:
    """A warning on stderr, in one line."""
    echo(f"warning: {in_options(message, sys.argv[1:])}", err=True)


def warn_of_grid(grid: str | None, field: VectorField, row: Solver) -> None:
    """Say on stderr where a grid file names another model or solver than what runs on it (see `odeddim grid`)."""
    notes = {} if grid is None or is_named(grid) else read_notes(Path(grid))
    theirs, ours = notes.get("sha256") or notes.get("model"), field.sha256 if notes.get("sha256") else field.name
    if theirs and theirs != ours:
        warn(
            f"{grid} was computed for the model {notes.get('model', theirs)!r}, not {field.name!r}: "
            "`odeddim grid` computes one for it"
        )
    elif theirs and notes.get("condition", "") != note_of(field.condition.words):
        warn(f"{grid} was computed under {notes.get('condition', 'no condition')}, not {_under(field)}")
    if notes.get("solver", row.name) != row.name:
        warn(f"{grid} was computed for the solver {notes['solver']!r}, not {row.name!r}")


def warn_of_preset(preset: Preset | None, field: VectorField) -> None:
    """Say on stderr where a preset was found for another model than what runs with it."""
    if preset is not None and (preset.sha256 or preset.model) != (field.sha256 or field.name):
        weights = f" with other weights ({preset.sha256[:12]})" if preset.model == field.name else ""
        warn(
            f"the preset was found for the model {preset.model!r}{weights}, not {field.name!r}: "
            "`odeddim bench work-precision --find` finds one for it"
        )
    elif preset is not None and preset.condition != field.condition.words:
        warn(f"the preset was found under {preset.condition or 'no condition'}, not {_under(field)}")


def _under(field: VectorField) -> str:
    return field.condition.words or "without condition"


@contextlib.contextmanager
def progress(total: int, unit: str, done: int = 0, *, still: bool = False) -> Iterator[Callable[[int], Any]]:
    """A progress bar on stderr, begun at `done`; yields a function that moves it on by so many.

    still: it is drawn when it is moved on, and not by a thread besides.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = not errors.is_terminal or rank()[0] > 0
    with Progress(*columns, console=errors, transient=True, disable=hidden, auto_refresh=not still) as bars:
        task = bars.add_task(unit, total=total, completed=done)
        yield lambda count: bars.update(task, advance=count, refresh=still)


BATCH = 32  # images in work at once, unless given or the network sees more
WILD = 3.0  # |x| that no image has
QUEUE = 8  # batches at once where images leave a run one by one, to keep its evaluations full
NETWORK_BATCH = {"cpu": 8}  # images that the network sees at once: fewer cost more each, more gain nothing here
NETWORK_BATCH_ELSEWHERE = 64


def rungs_of(
    schedule: Schedule, row: str | Solver, steps: int | None, grid: str | None, end: str, settings: dict[str, Any]
) -> tuple[Solver, list[Rung]]:
    """What --tol tries: the same run with more and more steps, as many as the grid has room for."""
    row = solvers.get(row) if isinstance(row, str) else row
    if row.adaptive:
        raise InputError(f"--tol chooses the steps, and solver {row.name!r} does so itself: give --rtol and --atol")
    if steps is not None or (grid is not None and not is_named(grid)):
        raise InputError("--tol chooses the steps: leave out --steps, and name the grid")
    row, nodes = plan(schedule, row, LADDER[0], grid, end, settings)
    rungs = [(LADDER[0], nodes)]
    for count in LADDER[1:]:
        with contextlib.suppress(InputError):  # grids of whole labels have no room for more than the model has
            rungs.append((count, plan(schedule, row, count, grid, end)[1]))
    if len({float(nodes[-1]) for _, nodes in rungs}) > 1:
        raise InputError(
            f"--tol compares numbers of steps, and the grid {grid!r} ends at another noise level for each of them: "
            "take trailing or linear"
        )
    return row, rungs


class Tally:
    """How many images took how many steps to keep a tolerance, and which did not keep it."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._steps: Counter[int] = Counter()
        self._worst: list[tuple[float, str]] = []
        self._missed = 0

    def add(self, steps: torch.Tensor, error: torch.Tensor, names: Sequence[str]) -> None:
        """Count images, (B,) each."""
        self._steps.update(steps.tolist())
        missed = [(e, name) for e, name in zip(error.tolist(), names, strict=True) if not e <= self._tolerance]
        self._missed += len(missed)
        self._worst = sorted([*self._worst, *missed], reverse=True)[:NAMED]

    def tell(self) -> str:
        """What the last line says; the images that did not keep the tolerance are named on stderr, the worst first."""
        if self._missed:
            named = ", ".join(f"{name!r} ({error:.1e})" for error, name in self._worst)
            more = f" and {self._missed - NAMED} more" if self._missed > NAMED else ""
            warn(
                f"{self._missed} of {self._steps.total()} images do not keep {self._tolerance:g} "
                f"with {max(self._steps)} steps: {named}{more}"
            )
        return ", ".join(f"{steps} steps for {count}" for steps, count in sorted(self._steps.items()))


def shares_steps(row: Solver) -> bool:
    """Whether the images of a batch are given common steps, so that the batch belongs to the run's settings."""
    return row.family == "torchdiffeq adaptive"


def at_once(
    field: VectorField,
    row: Solver,
    batch_size: int | None = None,
    encoded: LatentFile | None = None,
    *,
    queued: bool = False,
) -> int:
    """How many images to work on together: memory and speed, not the result, unless the row gives them common steps.

    Whole batches of the field's network, so that none has to be filled up but the last.
    """
    size = batch_size
    if size is None and encoded is not None and shares_steps(row):
        size = _positive(encoded.provenance.details.get("batch_size"))
    return (size or in_work(field.network_batch or 1)) * (QUEUE if queued or "batch" in row.settings else 1)


def in_work(network_batch: int) -> int:
    """How many images to work on together with a network that sees so many at once: whole batches, of about BATCH."""
    return network_batch * max(1, BATCH // network_batch)


def in_blocks(
    field: VectorField,
    row: Solver,
    where: Machine,
    network_batch: int | None,
    threads: int | None,
    encoded: LatentFile | None = None,
) -> VectorField:
    """The field with batch and threads of its network fixed: as given, as encoded, or as suits device and row."""
    kept = encoded.provenance.details if encoded else {}
    network_batch = network_batch or _positive(kept.get("network_batch"))
    if where.device.type == "cpu":
        torch.set_num_threads(threads or _positive(kept.get("threads")) or 1)
    if network_batch is None and row.family == "scipy":
        network_batch = 1  # these go image by image
    field.network_batch = network_batch or network_batch_on(where)
    if encoded is not None:
        warn_of_exactness(encoded, field, row, where)
    return field


def network_batch_on(where: Machine) -> int:
    """How many images the network sees at once, unless given."""
    return NETWORK_BATCH.get(where.device.type, NETWORK_BATCH_ELSEWHERE)


def warn_of_exactness(file: LatentFile, field: VectorField, row: Solver, where: Machine) -> None:
    """Say on stderr where images do not come back exactly, for the network does not answer as it did, and how far off.

    Of another solver, other nodes and settings and another dtype of the state, the run itself warns.
    """
    made = file.provenance
    if not row.reversible or row.name != made.solver or made.made_by in MADE_OF_OTHERS:
        return
    then = {**made.details, "PyTorch": made.versions.get("torch")}
    now = {**details_of(field, row, where, 0), "PyTorch": str(torch.__version__)}
    differ = [key for key, value in now.items() if then.get(key, value) != value]
    if differ:
        told = ", ".join(f"{key.replace('_', ' ')} {now[key]} where it was {then[key]}" for key in differ)
        warn(
            f"{file.path} does not come back exactly by {row.name}, for the network does not answer as when it was "
            f"encoded ({told}){_off(row, file.nodes, str(then.get('dtype')), where.dtype_name)}"
        )


def _off(row: Solver, nodes: torch.Tensor, *dtypes: str) -> str:
    """How far off images are by what the network rounds, to its coarser dtype, as the row's coefficients carry it."""
    levels = [sigma for sigma in nodes.tolist() if sigma > 0]
    if row.growth is None or len(levels) < 2:
        return ""
    unit = max(2**-10 if name == "tf32" else torch.finfo(DTYPES[name]).eps for name in dtypes if name in DTYPES)
    off = row.growth(levels, True).image * unit / torch.finfo(torch.float32).eps
    return f": expect images to be {off:.0e} off (rms, in [-1, 1]), and single pixels ten times that"


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 100_000 else None


def details_of(field: VectorField, row: Solver, where: Machine, size: int) -> dict[str, Any]:
    """What of the machine belongs into the provenance: whatever changes a digit of the result."""
    details = {"dtype": where.dtype_name, "device": where.device.type, "network_batch": field.network_batch}
    if where.device.type == "cpu":
        details["threads"] = torch.get_num_threads()
    if where.device.type == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        details |= {"gpu": torch.cuda.get_device_name(where.device), "cudnn": cudnn}
    if shares_steps(row):
        details["batch_size"] = size
    return details


def lasting(settings: dict[str, Any], row: Solver) -> dict[str, Any]:
    """The settings that change a result: not where an adaptive run gives up."""
    return {key: value for key, value in settings.items() if key != "max_nfe" or not row.adaptive}


def combined(file: LatentFile, made: Provenance) -> tuple[Provenance, torch.Tensor]:
    """How latents made of those of a file are decoded: of latents with steps of their own, with the most of these."""
    taken = file.figures("report").get("steps")
    if "ladder" not in made.details or taken is None:
        return made, file.nodes
    steps = int(taken.max())
    nodes = plan(Schedule.from_dict(made.schedule), made.solver, steps, made.grid, made.end)[1]
    details = {key: value for key, value in made.details.items() if key not in ("ladder", "tol", "certified")}
    return replace(made, steps=steps, nodes=digest(nodes), details=details), nodes


def so_far(done: int, total: int) -> str:
    """How many images there are, as the last line begins."""
    return f"{total}" if done == total else f"{done} of {total}"


def of_all(done: int, total: int, here: int) -> str:
    """What the last line says of the images that this process has not made itself."""
    if done < total:
        return (
            f" so far, {here} by this process (another process is at work on the other {total - done}, and goes on; "
            "if it is stopped, the same command makes them)"
        )
    return f" ({here} now, the rest was there already)" if here < total else ""


def first_names(source: ImageSource, count: int | None, path: Path | None) -> Sequence[str]:
    """The names of the first `count` images of a path, or of all without it."""
    if count is None:
        return source.names
    warn_of_count(count, len(source), path)
    return source.names[:count]


def warn_of_count(count: int, there: int, path: Path | None) -> None:
    """Say on stderr where -n asks for more images than there are; without a word where -n is not given."""
    given = click.get_current_context().get_parameter_source("count") is not ParameterSource.DEFAULT
    if given and count > there:
        warn(f"-n {count}: {path or SAMPLE} holds {there} images, and all of them are taken")


def warn_of_range(largest: float, what: str = "the images reach ±{:.3g} where data lie within ±1") -> None:
    """Say on stderr where images, or the rms of latents, are so large that the run must have been unstable."""
    if largest > WILD:
        advice = "this solver is unstable on this grid; take more steps, another grid or another solver"
        warn(f"{what.format(largest)}: {advice}")


def evaluated(images: int, *fields: VectorField) -> str:
    """What the last line says of the evaluations that these fields have made for so many images."""
    if not images:
        return "nothing left to do"
    rows, filled = sum(field.rows for field in fields), sum(field.filled for field in fields)
    return f"{rows / images:g} evaluations per image{_filling(filled, images)}"


def _filling(filled: int, images: int, what: str = "to fill batches") -> str:
    return f", {filled / images:.4g} more {what}" if filled > 0 else ""


class Reports:
    """What the batches of a run say of their images, summed up to be told at the end of it."""

    def __init__(self) -> None:
        self.images = 0
        self._told: list[str] = []  # the first that did not converge
        self._failed, self._residual = 0, 0.0
        self._evaluations, self._fewest, self._most, self._reported = 0, 0, 0, 0
        self._floors = 0.0

    def add(self, state: State, names: Sequence[str]) -> None:
        """Take note of what a batch's run reported of the images of these names."""
        self.images += len(names)
        counts = state.report.get("evaluations")
        if counts is not None:
            self._fewest = min(int(counts.min()), self._fewest if self._reported else int(counts.min()))
            self._most = max(self._most, int(counts.max()))
            self._evaluations += int(counts.sum())
            self._reported += len(names)
        self._floors += float(state.report.get("floor", torch.zeros(1)).sum())
        converged, residual = state.report.get("converged"), state.report.get("residual")
        if converged is not None and residual is not None and not bool(converged.all()):
            failed = [repr(name) for name, good in zip(names, converged.tolist(), strict=True) if not good]
            self._told += failed[: NAMED - len(self._told)]
            self._failed += len(failed)
            self._residual = max(self._residual, float(residual[~converged].max()))

    def evaluations(self, field: VectorField, *, certified: bool = False) -> str:
        """How many evaluations an image took, of all that this field has made, those of certificates among them."""
        if not self._reported:
            return evaluated(self.images, field)
        mean = self._evaluations / self._reported
        text = f"{mean:.4g} evaluations per image ({self._fewest} to {self._most})"
        what = "for certificates and to fill batches" if certified else "to fill batches"
        return text + _filling(field.rows + field.filled - self._evaluations, self.images, what)

    def floor(self) -> str:
        """What a latent model's autoencoder alone lost of an image, on average; "" of other models."""
        return f", the autoencoder alone loses {self._floors / self.images:.3g} (rms)" if self._floors else ""

    def warn(self, end: str) -> None:
        """Name on stderr the images whose iteration did not converge, and what may help."""
        if not self._failed:
            return
        more = f" and {self._failed - NAMED} more" if self._failed > NAMED else ""
        warn(
            f"{self._failed} of {self.images} images did not converge (residual up to {self._residual:.0e}): "
            f"{', '.join(self._told)}{more}; "
            f"{'--end sigma_min, ' if end == 'zero' else ''}more steps, another grid or a higher --max-nfe may help"
        )


@dataclass(frozen=True)
class Decoding:
    """What decodes a latent file: a row with its settings, over the nodes of a grid, or of rungs with their steps."""

    row: Solver
    nodes: torch.Tensor
    grid: str
    settings: dict[str, Any]
    rungs: Sequence[Rung] = ()

    @property
    def steps(self) -> str:
        """How many steps that are, in words."""
        if self.rungs:
            return "steps as encoded"
        return "adaptive" if self.row.adaptive else f"{len(self.nodes) - 1} steps"

    def provenance(self, file: LatentFile, field: VectorField, **details: Any) -> Provenance:
        """How the images of this file come about."""
        return provenance_of(
            field,
            solver=self.row.name,
            grid=self.grid,
            nodes=self.nodes,
            made_by="decode",
            settings=lasting(self.settings, self.row),
            latents={"path": str(file.path), "sha256": file.fingerprint},
            encoded=asdict(file.provenance),
            **details,
        )


def decoding_plan(
    file: LatentFile,
    field: VectorField,
    solver: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    settings: dict[str, Any] | None = None,
    tol: float | None = None,
    *,
    made_by: str | None = None,
) -> Decoding:
    """What decodes a latent file: the nodes of the file, unless steps or a grid are given, by its solver or another.

    Settings such as rtol are the file's, as long as the solver is. Latents with steps of their own are decoded with
    those, unless something else is asked for. made_by: what has made the latents, if not what has made the file.
    """
    made, settings = file.provenance, settings or {}
    named = solvers.get(made.solver)
    its_grid = None if named.adaptive else made.grid
    if tol is not None:
        _check_end(file)
        if solver is None:  # what comes back exactly does so over the nodes of the file only
            solver = defaults.TOLERANCE if named.to_zero or named.adaptive else made.solver
        if grid is None and solver == made.solver and its_grid is not None and is_named(its_grid):
            grid = its_grid
        row, rungs = rungs_of(field.schedule, solver, steps, grid, made.end, settings)
        return Decoding(row, rungs[-1][1], grid or row.grid, settings, rungs)
    ladder = made.details.get("ladder") if "steps" in file.figures("report") else None
    if ladder is not None and solver is None and steps is None and grid is None:
        rungs = [(count, plan(field.schedule, named, count, made.grid, made.end)[1]) for count in ladder]
        row = named.with_settings(**made.settings)
        return Decoding(row, file.nodes, made.grid, made.settings, rungs)
    if solver in (None, made.solver):
        settings = {**made.settings, **{key: value for key, value in settings.items() if value is not None}}
    if solver is None and named.reversible and (made_by or made.made_by) in MADE_OF_OTHERS:
        solver, settings = defaults.COMBINED, {}
    row = solvers.get(solver or made.solver)
    if steps is None and grid is None and (row.adaptive or its_grid is not None):
        grid = made.grid
        row, nodes = plan(field.schedule, row, None, file.nodes, settings=settings)
    else:
        _check_end(file)
        if grid is None and its_grid is not None and its_grid.partition(":")[0] in NAMES:
            grid = its_grid
        if steps is None and its_grid is not None and (grid is None or is_named(grid)):
            steps = made.steps
        row, nodes = plan(field.schedule, row, steps, grid, made.end, settings)
    return Decoding(row, nodes, grid or row.grid, settings)


def _check_end(file: LatentFile) -> None:
    if file.provenance.end not in ENDS:
        raise InputError(f"{file.path}: its images lie at σ = {float(file.nodes[0]):.6g}: only its own nodes decode it")


def draw(
    sheet: Path,
    latents: Readable,
    names: Sequence[str],
    file: LatentFile,
    field: VectorField,
    where: Machine,
    made: Provenance,
    batch_size: int | None = None,
    network_batch: int | None = None,
    threads: int | None = None,
    columns: int | None = None,
    overwrite: bool = False,
) -> None:
    """Decode latents as those of `file` are, and draw them on a sheet, sheet.png. made: how the latents came about."""
    how = decoding_plan(file, field, made_by=made.made_by)
    nodes = combined(file, made)[1]
    in_blocks(field, how.row, where, network_batch, threads, file)
    size = at_once(field, how.row, batch_size, file)
    settings = {**asdict(made), "drawn": details_of(field, how.row, where, size)}
    largest = 0.0
    with (
        open_output(sheet, names, settings, overwrite=overwrite, columns=columns) as out,
        progress(len(names), "decoding", out.done) as advance,
    ):
        for start, stop in out.batches(size):
            x_0 = decode(where.cast(latents.read(start, stop)), how.row, model=field, grid=nodes)
            out.write(start, stop, x_0)
            largest = max(largest, float(x_0.abs().max()))
            advance(stop - start)
    warn_of_range(largest)


class Numbered(Sequence[str]):
    """The names PREFIX000000, PREFIX000001, ..., made when they are asked for."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix, self._rows = prefix, range(count)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        rows = self._rows[i]
        return [f"{self._prefix}{row:06d}" for row in rows] if isinstance(rows, range) else f"{self._prefix}{rows:06d}"


def image_shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) from "C,H,W"."""
    parts = [part.strip() for part in text.replace("x", ",").split(",")]
    if len(parts) != 3 or not all(part.isdecimal() and part.strip("0") for part in parts):
        raise InputError(f"--size {text!r:.80}: give channels, height and width, as in 3,32,32")
    if any(len(part) > 9 for part in parts) or 4 * math.prod(map(int, parts)) > MOST_ROW:
        raise InputError(f"--size {text!r:.80}: an image has at most {MOST_ROW // 4:,} values: give less")
    channels, height, width = map(int, parts)
    return channels, height, width


def check_amount(output: Path, count: int, size: int, what: str) -> None:
    """Refuse so many images or latents of so many bytes as no run ends with, before the first is made."""
    if count > MOST_NEW:
        raise InputError(f"{count:,} {what} are too many for one run: ask for {MOST_NEW:,} at most")
    room = shutil.disk_usage(output.parent).total if output.suffix.lower() in SUFFIXES and output.parent.is_dir() else 0
    if room and count * size > room:
        raise InputError(
            f"{count:,} {what} take {count * size / 1e9:,.3g} GB, and all of the disk of {output} is "
            f"{room / 1e9:,.3g} GB: ask for fewer"
        )


def shape_for(field: VectorField, size: str | None) -> tuple[int, ...]:
    """The shape of noise to begin at: the model's, or --size for models that take any."""
    if size and field.codec is not None and image_shape(size) != field.codec.image_shape:
        made = "×".join(map(str, field.codec.image_shape))
        raise InputError(f"the model {field.name!r} makes images of {made} (channels×height×width): leave out --size")
    shape = image_shape(size) if size and field.codec is None else field.shape
    if shape is None:
        raise click.UsageError(f"the model {field.name!r} takes any shape: say which one, --size C,H,W")
    return shape


def check_places(output: Path | None, sheet: Path | None, *inputs: Path | None) -> None:
    """Refuse -o and --sheet where a latent file and a sheet cannot be, or which would replace what is being read."""
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise click.UsageError(f"--sheet {sheet}: a sheet is a PNG, name it sheet.png")
    if sheet is not None:
        check_place(sheet, *inputs)
    if output is not None:
        check_place(output, *inputs, suffixes=SUFFIXES)


def check_same_model(file: LatentFile, other: LatentFile) -> None:
    """Raise an InputError unless the latents of both files belong to one model."""
    ours, theirs = ((made.model, made.sha256) for made in (file.provenance, other.provenance))
    if ours[1] != theirs[1] or (not ours[1] and ours != theirs):
        words = [f"{name!r} (weights {sha256[:12]})" if sha256 else repr(name) for name, sha256 in (theirs, ours)]
        raise InputError(
            f"{other.path} holds latents of the model {words[0]}, {file.path} of {words[1]}: give files of one model"
        )
    told = {"predicts": "prediction", "time": "time labels", "schedule": "schedule", "condition": "condition"}
    for name, called in told.items():
        if getattr(file.provenance, name) != getattr(other.provenance, name):
            raise InputError(f"{other.path} was made with another {called} of the model {ours[0]!r} than {file.path}")


def check_combinable(file: LatentFile, other: LatentFile) -> None:
    """Raise an InputError unless latents of both files can be combined, and decoded by the same run."""
    check_same_model(file, other)
    if file.provenance.nodes != other.provenance.nodes:
        raise InputError(f"{other.path} was made on other nodes than {file.path}: encode both on one grid")
    check_alike(file.read(0, 1), other.read(0, 1))


def write_latents(
    output: Path,
    latents: Readable,
    names: Sequence[str],
    made: Provenance,
    nodes: torch.Tensor,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write latents that are read as they are asked for to a latent file. made: how they came about."""
    with LatentRun(output, names, made, nodes, overwrite=overwrite) as run:
        for start, stop in run.batches(batch_size or BATCH):
            run.write(start, stop, latents.read(start, stop))
