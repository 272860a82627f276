"""The job that measures the log density of images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import torch

from odeddim.api import Model
from odeddim.checks.density import Density, LogDensity, density_plan
from odeddim.checks.density_path import ERRORS, TERMS
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, first_names, images_for, recorded, subject_on, tell_skipped, warn_of_plan
from odeddim.jobs.telling import of_all, so_far
from odeddim.jobs.work import How, Outcome, Progress, shown
from odeddim.latents.provenance import Provenance, provenance_of
from odeddim.models import DEFAULT
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import SUFFIXES, opened, text, words
from odeddim.storage.prefetch import ahead
from odeddim.storage.preparation import Preparation
from odeddim.storage.resumable import Run
from odeddim.storage.row_files import columns_of, read_rows, settings_of, text_column, width_of
from odeddim.storage.sources import Images, place_of
from odeddim.storage.workers import rank
from odeddim.storage.write_behind import behind
from odeddim.types import InputError

FORMAT, VERSION = "odeddim densities", 1


@dataclass(frozen=True)
class Densities(Outcome):
    """The outcome of `density`; `print` shows its words.

    Attributes:
        path: The file that was written.
        done: The number of its images that are done.
        total: The number of images when the job is complete.
        words: A line about the job.
        names: Where each image comes from, N names; empty while other processes are at work.
        figures: bits_per_dim, standard_error and nats, terms/NAME in nats and errors/NAME in bits per dimension, (N,)
            float64 each.

    Example:
        >>> import odeddim, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "d.h5")
        >>> made = odeddim.jobs.density(None, path, model="exact-mixture", count=2, draws=1)
        >>> made.names, sorted(made.figures)[:2]
        (('000000', '000001'), ['bits_per_dim', 'errors/dequantisation'])
    """

    names: Sequence[str]
    figures: Mapping[str, torch.Tensor]


def density(
    images: Images,
    output: str | Path,
    *,
    model: Model | Subject = DEFAULT,
    plan: Plan | None = None,
    count: int | None = None,
    probes: int | str | None = None,
    dequantise: str | None = None,
    bits: int = 8,
    draws: int | None = None,
    seed: int = 0,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
    **how: Any,
) -> Densities:
    """Measure the log density of images, into a file. A run that was stopped, even by a kill, goes on with the call.

    Args:
        images, model, count, prepare, machine, overwrite, progress: As of `odeddim.jobs.encode`. A finished file is
            extended by a call with more images.
        output: The file, d.h5: an HDF5 file with a row for each image, whose columns are those of `Densities`.
        plan: The plan of the run, in place of `how`.
        probes, dequantise, bits, draws, seed: As of `odeddim.log_density`.
        **how: solver, steps, grid and the solver's settings, as of `odeddim.log_density`.

    Returns:
        The outcome, with all figures; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "d.h5")
        >>> made = odeddim.jobs.density(None, path, model="exact-mixture", count=2, draws=1)
        >>> made.figures["bits_per_dim"].shape
        torch.Size([2])
    """
    given, output = place_of(images), Path(output)
    check_place(output, given, suffixes=SUFFIXES)
    if given == Path("-") and rank()[1] > 1:
        raise InputError("several processes cannot share a list on standard input: give a folder or a file of images")
    place = (machine or Machine()).at(model=model, shared=True)
    field = subject_on(place, model)
    said = How.of(how)
    if said.end not in (None, "sigma_min"):
        raise InputError(f"a density is taken at σ_1: leave out end={said.end!r}")
    plan = density_plan(field, plan, said.solver, said.steps, said.grid, said.settings)
    warn_of_plan(plan, field)
    place.fit(field, plan.solver)
    source = images_for(field, images, prepare)
    names = first_names(source, count, given)
    size = place.at_once(field, plan.solver)
    made = Density.of(field, plan, probes, dequantise, bits, draws, seed)
    told = {
        "probes": made.probes_of(field.shape_of_data(source.shape)), "dequantise": made.noise.kind, "bits": bits,
        "draws": made.draws, "seed": seed, **place.details(field, plan.solver, size),
    }  # fmt: skip

    def of_first(total: int) -> dict[str, Any]:
        about = {"images": source.identity(given, total), **recorded(source), **told}
        return asdict(_provenance(made, about))

    began, here = time.perf_counter(), 0
    run = _Densities(output, names, of_first(len(names)), overwrite=overwrite, of_first=of_first)
    with (
        run as file,
        shown(progress, len(names), "measuring", file.done) as advance,
        closing(ahead(lambda start, stop: source[start:stop], file.batches(size))) as batches,
        closing(place.over(_Measuring(made, place.state), batches)) as found,
    ):
        for (start, stop), _ in behind(lambda result: file.write(*result[0], result[1]), found, file.together):
            here += stop - start
            advance(stop - start)
    figures = _read(output) if run.done == len(names) else {}
    line = (
        f"{so_far(run.done, len(names))} log densities in {output}{of_all(run.done, len(names), here)}: "
        f"{_summary(figures)}{made.words}; {plan.solver.name}, {plan.grid} grid, "
        f"{time.perf_counter() - began:.1f} s{tell_skipped(source)}"
    )
    return Densities(output, run.done, len(names), line, tuple(names) if figures else (), figures)


def figures_of(density: LogDensity) -> dict[str, torch.Tensor]:
    """The columns of a file of densities."""
    return {
        "bits_per_dim": density.bits_per_dim,
        "standard_error": density.standard_error,
        "nats": density.nats,
        **{f"terms/{name}": density.terms[name] for name in TERMS},
        **{f"errors/{name}": density.errors[name] for name in ERRORS},
    }


def figures_of_report(density: LogDensity) -> dict[str, torch.Tensor]:
    """What is stored beside latents and samples of their density."""
    return {"bits_per_dim": density.bits_per_dim, "bits_per_dim_error": density.standard_error}


def _provenance(made: Density, about: Mapping[str, Any]) -> Provenance:
    return provenance_of(made.model, made.plan, "density", **about)


def _summary(figures: Mapping[str, torch.Tensor]) -> str:
    """The mean over the images and the median error, in words; "" while others are at work."""
    if not figures:
        return ""
    bits = figures["bits_per_dim"]
    spread = f" ± {float(bits.std()) / len(bits) ** 0.5:.3f}" if len(bits) > 1 else ""
    return (
        f"{float(bits.mean()):.3f}{spread} bits/dim in the mean, an image known to "
        f"{float(figures['standard_error'].median()):.2g}, "
    )


@dataclass
class _Measuring:
    """The work on each batch of images.

    Attributes:
        how: What measures densities.
        dtype: The dtype of states.
    """

    how: Density
    dtype: torch.dtype

    @property
    def model(self) -> VectorField:
        """The model whose evaluations are counted."""
        return self.how.model

    def __call__(self, start: int, stop: int, pixels: torch.Tensor) -> LogDensity:
        """The densities of the images start, ..., stop-1, (B, C, H, W)."""
        x_0 = pixels.to(self.dtype)
        self.how.noise.check(x_0, start)
        return self.how.density(self.how.columns(x_0, start))


class _Densities(Run):
    """The run that makes a file of densities."""

    def __init__(self, output: Path, names: Sequence[str], settings: Mapping[str, Any], **more: Any) -> None:
        self._names, self._width = names, width_of(names)
        super().__init__(output, len(names), settings, _head, **more)

    def write(self, start: int, stop: int, density: LogDensity) -> None:
        """Write the densities of the images start, ..., stop-1."""
        columns = {name: values.numpy() for name, values in figures_of(density).items()}
        self.commit(start, stop, {**columns, "names": text_column(self._names[start:stop], self._width)})


def _head(file: h5py.File, notes: Mapping[str, Any]) -> None:
    file.attrs["format"], file.attrs["version"] = text(FORMAT), VERSION


def _read(path: Path) -> dict[str, torch.Tensor]:
    """All figures of a finished file."""
    with opened(path, "a file of densities") as file:
        if words(file.attrs.get("format", "")) != FORMAT:
            raise InputError(f"{path} holds no densities: give another name, or overwrite=True")
        rows = read_rows(file, columns_of(file), 0, settings_of(file, path)["total"], path)
    return {name: torch.from_numpy(values) for name, values in rows.items() if values.dtype.kind == "f"}
