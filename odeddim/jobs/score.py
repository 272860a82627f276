"""The job that scores images: how far the path of each image is from those of reference images."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from odeddim import defaults
from odeddim.api import Model
from odeddim.checks.scores import (
    Reference,
    asked_for,
    check_run,
    check_share,
    measured,
    names_of,
    of_samples,
    plan_by,
    scored,
    short_plan,
)
from odeddim.jobs.machine import Machine, Place
from odeddim.jobs.subject import Subject, images_for, recorded, subject_on, tell_skipped, warn_of_plan
from odeddim.jobs.work import How, Progress, shown
from odeddim.latents.provenance import provenance_of
from odeddim.models import DEFAULT
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.atomic import check_own, check_place, found_mark, has_mark, mark_of, plain_text, replacing
from odeddim.storage.hdf5 import SUFFIXES, is_hdf5, opened, text, words
from odeddim.storage.images import ImageSource
from odeddim.storage.prefetch import ahead
from odeddim.storage.preparation import Preparation
from odeddim.storage.resumable import Run
from odeddim.storage.row_files import comparable, run_of, text_column, width_of
from odeddim.storage.sources import Images, place_of
from odeddim.storage.workers import cut, rank
from odeddim.storage.write_behind import behind
from odeddim.types import InputError

FORMAT = "odeddim scores"
_UNIT = "the distance to the nearest profile of the reference"
Rows = Callable[[int, int, Mapping[str, Tensor], Tensor], Any]
"""What takes the statistics of the images start, ..., stop-1, and their profiles."""


@dataclass(frozen=True)
class Calibration:
    """Images that are as they should be, and what is to be made of them: a reference.

    Attributes:
        images: The images, as of `odeddim.jobs.encode`.
        false_positives: The share of such images that is to be called strange.
        keep: The file that the reference is written to, reference.json; None for none. The reference that the same
            images have made before is taken from it.

    Example:
        >>> import odeddim
        >>> odeddim.jobs.Calibration("photos/", keep="reference.json").false_positives
        0.05
    """

    images: Images
    false_positives: float = 0.05
    keep: str | Path | None = None


@dataclass(frozen=True)
class Scored:
    """The scores of images.

    Attributes:
        path: The file that was written; None for none.
        names: Where the images come from, N names; empty while other processes are at work on the rest.
        score: The scores, (N,) float64.
        strange: Whether each is above the threshold, (N,) bool.
        reference: The reference.
        words: A line about the job.

    Example:
        >>> import numpy, odeddim
        >>> pixels = numpy.random.default_rng(0).integers(0, 256, (44, 4, 4), dtype=numpy.uint8)
        >>> found = odeddim.jobs.score(
        ...     pixels[40:], model="exact-gaussian", reference=odeddim.jobs.Calibration(pixels[:40])
        ... )
        >>> len(found.names), found.order.shape
        (4, torch.Size([4]))
    """

    path: Path | None
    names: tuple[str, ...]
    score: Tensor
    strange: Tensor
    reference: Reference
    words: str

    @property
    def order(self) -> Tensor:
        """The indices of the images, the strangest first, (N,) int64."""
        return torch.argsort(self.score, descending=True, stable=True)

    def __str__(self) -> str:
        return self.words


def score(
    images: Images,
    output: str | Path | None = None,
    *,
    model: Model | Subject = DEFAULT,
    reference: str | Path | Reference | Calibration | None = None,
    plan: Plan | None = None,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    round_trip: bool = False,
    density: bool = False,
    overwrite: bool = False,
    progress: Progress = False,
    **how: Any,
) -> Scored:
    """Score images by the path of one short encode. A run that was stopped goes on with the same call.

    Args:
        images: The images, as of `odeddim.jobs.encode`; None for the 256 sample images of the package.
        output: The file of scores: .csv, .json, or .h5, which has the profiles too; None for none.
        model: A name, a path, a VectorField, a pipeline of diffusers, or a Subject with its condition.
        reference: What the images are compared with: a reference or its file, or a `Calibration`, which makes it; None
            for the sample images of the package, for the built-in models of clothes.
        plan: The plan that encodes, in place of `how`; by default that of the reference, or 10 steps of DDIM on
            the karras grid.
        prepare: What is done to all images, as of `odeddim.Preparation`; nothing if the model takes their size.
        machine: Where to run.
        round_trip, density: Whether to measure the statistics "round_trip" and "bits_per_dim" too, as of
            `odeddim.score`.
        overwrite: Whether to begin anew, whatever is at `output` and in the file of a calibration.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.
        **how: solver, steps, grid, end and the solver's settings, as of `odeddim.score`.

    Returns:
        The scores; `print` them for one line.

    Raises:
        InputError: If an argument cannot be used. No scores are written then.

    Example:
        >>> import odeddim
        >>> good = odeddim.jobs.Calibration(odeddim.open_images()[:40])
        >>> odeddim.jobs.score(None, model="exact-samples", reference=good, steps=3).score.shape
        torch.Size([256])
    """
    given, output = place_of(images), None if output is None else Path(output)
    if output is not None:
        read = Path(reference) if isinstance(reference, (str, Path)) else None
        check_place(output, given, read, suffixes=(".csv", ".json", *SUFFIXES))
        keep = getattr(reference, "keep", None)
        if keep is not None and Path(keep).resolve() == output.resolve():
            raise InputError(f"{output} is to be the file of the reference: give the scores another name")
        # Which scores they are shows when the reference is known; that they are none shows before that is made.
        check_own(output, _may_be_scores, overwrite=overwrite)
    place = (machine or Machine()).at(model=model, shared=True)
    field = subject_on(place, model)
    if isinstance(reference, (str, Path)):
        reference = Reference.load(reference)
    plan = _plan(field, reference, plan, How.of(how))
    check_run(plan, round_trip)
    warn_of_plan(plan, field)
    place.fit(field, plan.solver)
    source, more = images_for(field, images, prepare), asked_for(round_trip, density)
    paths = _Paths(field, plan, place, progress)
    if reference is None:
        reference = of_samples(field, plan, place.state, paths.size, progress)
    elif isinstance(reference, Calibration):
        reference = _calibrated(paths, reference, prepare, overwrite)
    settings = paths.settings(source, given, reference=reference.fingerprint, more=list(more))
    began = time.perf_counter()
    table = _Table(source.names, reference, more)
    if output is None:
        paths.each(source, None, "scoring", table.keep, more)
    else:
        table.write(paths, source, output, settings, overwrite)
    return table.told(output, paths, time.perf_counter() - began, tell_skipped(source))


def _plan(field: VectorField, reference: Reference | Calibration | None, plan: Plan | None, how: How) -> Plan:
    """The plan of the run: that of a reference, which what was said must not contradict."""
    given = (plan, *how[:4], *how.settings.values())
    solver, end = how.solver or defaults.SCORE, how.end or "zero"
    if not isinstance(reference, Reference):
        return short_plan(field, plan, solver, how.steps, how.grid, end, how.settings)
    said = None
    if any(value is not None for value in given):
        said = short_plan(field, plan, solver, how.steps, how.grid, end, how.settings)
    return plan_by(reference, field, said)


class _Paths:
    """The work on images: the statistics of their paths, batch by batch."""

    def __init__(self, field: VectorField, plan: Plan, place: Place, progress: Progress) -> None:
        self.field, self.plan, self.place, self.progress = field, plan, place, progress
        self.size = place.at_once(field, plan.solver)

    def settings(self, source: ImageSource, given: Path | None, **more: Any) -> dict[str, Any]:
        """What a run over images is, as JSON can hold it."""
        about = {"images": source.identity(given), **recorded(source), **more}
        about |= self.place.details(self.field, self.plan.solver, self.size)
        return asdict(provenance_of(self.field, self.plan, "score", **about))

    def each(self, source: ImageSource, run: Run | None, unit: str, keep: Rows, more: tuple[str, ...] = ()) -> None:
        """Have `keep` take the statistics of all images, or of those that a run has not done yet."""
        total = len(source)
        spans: Iterator[tuple[int, int]] = run.batches(self.size) if run else cut([(0, total)], self.size)
        work = _Measuring(self.field, self.plan, self.place.state, more)
        together = run.together if run else nullcontext
        with (
            shown(self.progress, total, unit, run.done if run else 0) as advance,
            closing(ahead(lambda start, stop: source[start:stop], spans)) as batches,
            closing(self.place.over(work, batches)) as found,
        ):
            for (start, stop), _ in behind(lambda result: keep(*result[0], *result[1]), found, together):
                advance(stop - start)


@dataclass
class _Measuring:
    """The work on each batch of images.

    Attributes:
        model, plan, more: As of `odeddim.checks.scores.measured`.
        dtype: The dtype of states.
    """

    model: VectorField
    plan: Plan
    dtype: torch.dtype
    more: tuple[str, ...]

    def __call__(self, start: int, stop: int, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The statistics and the profiles of the images start, ..., stop-1, (B, C, H, W)."""
        return measured(self.model, pixels.to(self.dtype), self.plan, self.more, start=start)


class _Rows(Run):
    """A run whose rows become a file: HDF5, or what `make` makes of them."""

    def __init__(
        self,
        output: Path,
        names: Sequence[str],
        settings: Mapping[str, Any],
        make: Callable[[_Rows], None] | None,
        overwrite: bool,
    ) -> None:
        self._names, self._width = names, width_of(names)
        more: dict[str, Any] = {}
        if make is not None:
            more = {"index": False, "own": lambda run: has_mark(run.output, run.mark), "finish": make}
        super().__init__(output, len(names), settings, _head, overwrite=overwrite, **more)

    def write(self, start: int, stop: int, columns: Mapping[str, Tensor]) -> None:
        """Write the rows start, ..., stop-1."""
        names = text_column(self._names[start:stop], self._width)
        self.commit(start, stop, {"names": names, **{name: values.numpy() for name, values in columns.items()}})


def _head(file: h5py.File, notes: Mapping[str, Any]) -> None:
    file.attrs["format"], file.attrs["score"] = text(FORMAT), text(_UNIT)


def _may_be_scores(path: Path) -> bool:
    """Whether a file has scores, as far as that shows without their settings."""
    if not is_hdf5(path):
        return bool(found_mark(path))
    with opened(path, "a file of scores") as file:
        return words(file.attrs.get("format", "")) == FORMAT


def _is_made(output: Path, settings: Mapping[str, Any], total: int, overwrite: bool) -> bool:
    """Whether a file that is no HDF5 is there, whole, from a run with these settings."""
    return not overwrite and has_mark(output, mark_of(run_of(comparable(total, settings))))


def _calibrated(paths: _Paths, calibration: Calibration, prepare: Preparation | None, overwrite: bool) -> Reference:
    """The reference of a calibration."""
    given, share = place_of(calibration.images), calibration.false_positives
    source = images_for(paths.field, calibration.images, prepare)
    check_share(share, len(source))
    about = {"images": f"{len(source)} of {plain_text(str(given or 'the sample images'))}", **recorded(source)}
    noted = paths.plan.noted(paths.field, **about)
    if calibration.keep is None:
        profiles: list[Tensor] = []
        paths.each(source, None, "calibrating", lambda start, stop, figures, profile: profiles.append(profile))
        return Reference(torch.cat(profiles), noted, share)
    path = Path(calibration.keep)
    check_place(path, given, suffixes=(".json",))
    if rank()[1] > 1:
        raise InputError("several processes cannot share a calibration: make the reference by one process first")
    settings = paths.settings(source, given, false_positives=share)

    def make(run: _Rows) -> None:
        profile = torch.from_numpy(np.concatenate([piece["profile"] for piece in run.pieces()]))
        Reference(profile, paths.plan.noted(paths.field, **about, run=run.mark), share).save(path)

    if not _is_made(path, settings, len(source), overwrite):
        with _Rows(path, source.names, settings, make, overwrite) as run:
            paths.each(
                source, run, "calibrating",
                lambda start, stop, figures, profile: run.write(start, stop, {"profile": profile}),
            )  # fmt: skip
    if not path.exists():
        raise InputError(f"another process is still making {path}: give the same command again when it has ended")
    return Reference.load(path)


class _Table:
    """The scores of all images, in memory or in a file."""

    def __init__(self, names: Sequence[str], reference: Reference, more: tuple[str, ...]) -> None:
        self.names, self.reference, self.more = names, reference, more
        self.kept: list[Tensor] = []
        self.path: Path | None = None

    def keep(self, start: int, stop: int, statistics: Mapping[str, Tensor], profile: Tensor) -> None:
        """Keep the scores of a batch in memory."""
        self.kept.append(scored(statistics, profile, self.reference).score)

    def write(
        self, paths: _Paths, source: ImageSource, output: Path, settings: Mapping[str, Any], overwrite: bool
    ) -> None:
        """Score images and write the scores to a file."""
        self.path = output
        make = {".csv": self._csv, ".json": self._json}.get(output.suffix.lower())
        if make is not None and _is_made(output, settings, len(source), overwrite):
            return
        with ExitStack() as stack:
            run = stack.enter_context(_Rows(output, source.names, settings, make, overwrite))

            def keep(start: int, stop: int, statistics: Mapping[str, Tensor], profile: Tensor) -> None:
                found = scored(statistics, profile, self.reference)
                columns = {"score": found.score, "strange": found.strange.to(torch.uint8), "profile": profile}
                run.write(start, stop, columns | {f"statistics/{name}": each for name, each in statistics.items()})

            paths.each(source, run, "scoring", keep, self.more)

    def lines(self, run: _Rows) -> Iterator[dict[str, Any]]:
        """What a text file has of each image."""
        figures = names_of(self.more)
        for piece in run.pieces():
            for i, name in enumerate(piece["names"].tolist()):
                head = {"file": name.decode(), "score": float(piece["score"][i]), "strange": bool(piece["strange"][i])}
                yield head | {key: float(piece[f"statistics/{key}"][i]) for key in figures}

    def _csv(self, run: _Rows) -> None:
        with (
            replacing(run.output, run.temporary("table")) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            file.write(f"# {run.mark}\n")
            table = csv.DictWriter(file, ["file", "score", "strange", *names_of(self.more)])
            table.writeheader()
            for line in self.lines(run):
                table.writerow(line | {"strange": int(line["strange"])})

    def _json(self, run: _Rows) -> None:
        with replacing(run.output, run.temporary("table")) as temporary:
            content = {
                "format": FORMAT,
                "run": run.mark,
                "model": run.settings["model"],
                "threshold": self.reference.threshold,
                "false_positives": self.reference.false_positives,
                "images": [_finite(line) for line in self.lines(run)],
            }
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def told(self, output: Path | None, paths: _Paths, seconds: float, skipped: str) -> Scored:
        """The outcome."""
        found = torch.cat(self.kept) if output is None else _scores_in(output, len(self.names))
        where = "" if output is None else f" in {output}"
        if found is None:
            words = f"others are at work on the rest of the scores{where}, or run it again"
            return Scored(output, (), torch.empty(0), torch.empty(0, dtype=torch.bool), self.reference, words)
        strange = found > self.reference.threshold
        by = self.reference
        words = (
            f"{int(strange.sum())} of {len(found)} images are strange{where}: above {by.threshold:.4g}, the threshold "
            f"for {100 * by.false_positives:.3g}% of images like the {len(by)} of the reference; {paths.plan}, "
            f"{seconds:.1f} s{skipped}"
        )
        return Scored(output, tuple(self.names), found, strange, self.reference, words)


def _finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """Values that JSON can hold: NaN becomes null."""
    return {key: None if value != value else value for key, value in line.items()}


def _scores_in(output: Path, total: int) -> Tensor | None:
    """The scores in a file; None if it does not have all of them yet."""
    if not output.exists():
        return None
    if output.suffix.lower() == ".csv":
        with open(output, encoding="utf-8", newline="") as file:
            next(file)
            values = [float(line["score"]) for line in csv.DictReader(file)]
    elif output.suffix.lower() == ".json":
        values = [line["score"] for line in json.loads(output.read_text(encoding="utf-8"))["images"]]
    else:
        with opened(output, "a file of scores") as file:
            values = file["score"][:].tolist()
    return torch.tensor(values, dtype=torch.float64) if len(values) == total else None
