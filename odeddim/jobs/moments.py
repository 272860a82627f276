"""The job that computes the Gaussian of a model's data, and measures how far its flow holds."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim import defaults
from odeddim.api import Model, sample, to_data
from odeddim.checks.gaussian_errors import measured, most_evaluations
from odeddim.jobs.machine import Machine
from odeddim.jobs.naming import Subject
from odeddim.jobs.subject import images_for, recorded, subject_on, tell_skipped, warn_of_count
from odeddim.jobs.work import Outcome, Progress, shown
from odeddim.models import BUILT_IN, DEFAULT, hub, place_of_moments
from odeddim.ode.covariance import Images as Data
from odeddim.ode.field import VectorField
from odeddim.ode.gaussian import RANK, Gaussian
from odeddim.storage.atomic import check_own, check_place, plain_text
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of
from odeddim.types import InputError

SUFFIXES = (".safetensors",)
SAMPLE_STEPS = 25


@dataclass(frozen=True)
class Found(Outcome):
    """The outcome of the job `moments`.

    Attributes:
        moments: The Gaussian, with its measured errors.
    """

    moments: Gaussian


@torch.no_grad()
def moments(
    images: Images = None,
    output: str | Path | None = None,
    *,
    samples: int | None = None,
    count: int | None = None,
    rank: int = RANK,
    model: Model | Subject = DEFAULT,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
) -> Found:
    """Compute the Gaussian of a model's data, measure how far its flow holds, and write both to a file.

    Beside the model, where it is written unless `output` says otherwise, `odeddim.load` finds it: moments.safetensors
    in a model's folder, NAME.moments.safetensors beside a model file NAME.*. `top="gaussian"` and the rows `gauss-ab2`
    and `gauss-ab3` use it. Of a latent model it is the Gaussian of the autoencoder's data.

    Args:
        images: As of `odeddim.jobs.encode`; None for the 256 sample images of the package.
        output: The file; by default beside the model.
        samples: The number of images to sample from the model, in place of images.
        count: The number of images to take, the first ones; by default all.
        rank: The number of eigenvectors that are kept.
        model: A name, a path, a VectorField, a pipeline of diffusers, or a Subject with its condition.
        prepare: What is done to the images, as of `odeddim.Preparation`; nothing if the model takes their size.
        machine: Where to run.
        overwrite: Whether to replace what is at the place of the file.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.

    Returns:
        The outcome; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "moments.safetensors")
        >>> odeddim.jobs.moments(None, path, count=40, rank=4, model="exact-samples").moments.basis.shape
        torch.Size([4, 784])
    """
    given = place_of(images)
    if samples is not None and (given is not None or images is not None):
        raise InputError("the Gaussian is that of images or of samples=...: give one of the two")
    place = (machine or Machine()).at(model=model)
    field = subject_on(place, model)
    output = Path(output) if output is not None else _beside(model, field)
    check_place(output, given, suffixes=SUFFIXES)
    check_own(output, lambda path: False, overwrite=overwrite)
    place.fit(field, _sampler())
    began, size = time.perf_counter(), place.at_once(field, _sampler())
    ode, skipped = field.on_data(), ""
    if samples is not None:
        wanted: Data = _samples(ode, samples, size, place.state)
        of: dict[str, Any] = {"of": f"{samples} samples of the model"}
    else:
        source = images_for(field, images, prepare)
        if count is not None:
            warn_of_count(count, len(source), given)
        wanted = _Encoded(field, source, min(count or len(source), len(source)), place.state)
        of = {"of": f"{len(wanted)} images: {plain_text(str(given or 'the sample images'))}", **recorded(source)}
        skipped = tell_skipped(source)
    held = _held(len(wanted))
    own = _Part(wanted, len(wanted) - held)
    found = Gaussian.of(own, rank=rank, **of, model=field.name, sha256=field.sha256, condition=field.condition.words)
    tests = wanted[len(own) : len(wanted)].to(place.state)
    tests = tests if field.device is None else tests.to(field.device)
    with shown(progress, most_evaluations(ode), "evaluations", 0) as advance:
        found = found.with_errors(measured(ode, found, tests, advance), measured_on=held)
    found.save(output)
    seconds = time.perf_counter() - began
    words = f"the Gaussian of {len(own)} images of the model {field.name!r} in {output}: {found.explained()}"
    return Found(output, 1, 1, f"{words}, {seconds:.1f} s{skipped}", found)


def _sampler() -> Any:
    from odeddim import solvers

    return solvers.get(defaults.SAMPLE)


def _beside(model: Model | Subject, field: VectorField) -> Path:
    """Where the file lies beside the model."""
    name = model.name if isinstance(model, Subject) else model
    if isinstance(name, (str, Path)) and not hub.is_named(name) and str(name) not in BUILT_IN and os.path.exists(name):
        return place_of_moments(Path(name))
    raise InputError(
        f"the model {field.name!r} is no file or folder of yours, so there is no place beside it: say where to write "
        "with output=..., a file NAME.safetensors"
    )


def _held(count: int) -> int:
    """How many images are kept for the measurement."""
    return max(1, min(defaults.GRID_IMAGES, count // 4))


def _samples(field: VectorField, count: int, size: int, dtype: torch.dtype) -> Tensor:
    """So many samples of a model's data."""
    parts = []
    for start in range(0, count, size):
        number = min(size, count - start)
        parts.append(sample(number, model=field, steps=SAMPLE_STEPS, end="sigma_min", seed=1, start=start).cpu())
    return torch.cat(parts).to(dtype)


class _Encoded:
    """Images as the data that the ODE moves, made when they are needed; of a latent model kept, for they are small."""

    def __init__(self, field: VectorField, source: Data, count: int, dtype: torch.dtype) -> None:
        self.field, self.source, self.count, self.dtype = field, source, count, dtype
        self.kept: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.count)
        if self.field.codec is None:
            return self.source[start:stop].to(self.dtype)
        if (start, stop) not in self.kept:
            blocks = [self.source[at : min(at + 8, stop)].to(self.dtype) for at in range(start, stop, 8)]
            self.kept[start, stop] = torch.cat([to_data(self.field, block).cpu() for block in blocks])
        return self.kept[start, stop]


class _Part:
    """The first images of some."""

    def __init__(self, images: Data, count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.count)
        return self.images[start:stop]
