"""The job that checks the latents of a file and says how good they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from odeddim.api import Model, to_data, to_images
from odeddim.checks.certificate import BADNESS, CERTIFICATE, certificate, certificate_of_rungs, worst
from odeddim.jobs.combining import sheet_at
from odeddim.jobs.comparing import FIGURES as APART
from odeddim.jobs.comparing import Comparison, compare
from odeddim.jobs.decoding import Decoding, decoding_of
from odeddim.jobs.each import Each, for_batch, kept_for
from odeddim.jobs.machine import Machine, Place
from odeddim.jobs.subject import Subject, images_for, subject_of
from odeddim.jobs.waiting import wait_for
from odeddim.jobs.work import Progress, log, shown, warn
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.ode.field import VectorField
from odeddim.storage.atomic import check_own, has_mark, mark_of, plain_text
from odeddim.storage.hdf5 import CHUNK
from odeddim.storage.images import SAMPLE, ImageSource
from odeddim.storage.outputs import Pictures
from odeddim.storage.png import MARK
from odeddim.storage.prefetch import ahead
from odeddim.storage.preparation import Preparation
from odeddim.storage.resumable import finish
from odeddim.storage.sheets import Captions, Layout, save_sheet, title_of
from odeddim.storage.sources import SAVED, Images, place_of
from odeddim.storage.write_behind import behind
from odeddim.types import InputError, State, pick

ENLARGED = 10  # the factor of the difference on the sheet
FIGURES = {"round_trip": "round trip", "latent_error": "latent error"}  # those on the sheet, and what they are called


@dataclass(frozen=True)
class Verified:
    """How good the latents of a file are.

    Attributes:
        path: The latent file.
        names: Where each latent comes from, N names.
        figures: The certificate, (N,) float64 by name (`odeddim.checks.certificate.CERTIFICATE`); empty while other
            processes compute it. Against another file, how far apart the latents are: "rms" and "largest".
        order: The indices of the latents, the worst first, (N,).
        floor: The error of a latent model's autoencoder for each image, (N,); None for other models.
        against: The comparison with another file, of the images in both; None without one.
    """

    path: Path
    names: tuple[str, ...]
    figures: Mapping[str, torch.Tensor]
    order: torch.Tensor
    floor: torch.Tensor | None
    against: Comparison | None = None

    @property
    def medians(self) -> dict[str, float]:
        """The median of each figure over the latents that have it."""
        known = {name: values[~values.isnan()] for name, values in self.figures.items()}
        return {name: float(torch.median(values)) for name, values in known.items() if len(values)}


@torch.no_grad()
def verify(
    latents: str | Path,
    images: Images = None,
    *,
    against: str | Path | None = None,
    by: str | None = None,
    sheet: str | Path | Pictures | None = None,
    shown: int = 10,
    model: Model | Subject | None = None,
    machine: Machine | None = None,
    wait: bool = False,
    overwrite: bool = False,
    progress: Progress = False,
) -> Verified:
    """Check every latent of a file against its checksum, and say how good each one is.

    The certificate that `encode(certify=True)` has stored is read. If the file has none, it is computed and stored,
    which takes three times the evaluations of encoding. A run that was stopped goes on with the same call.

    Args:
        latents: The latent file, z.h5.
        images: The images that were encoded, as of `odeddim.jobs.encode`; None for those that the file names.
        against: Another latent file of the same images, to compare the latents with in place of all that: how far they
            are apart, and what differs in how they were made. Nothing is computed, and no model is needed.
        by: The figure that sorts the latents: by default "latent_error", or "rms" against another file.
        sheet: Where to draw the worst, worst.png: each image, the image decoded again, and ten times their difference.
            Pictures say how it is drawn, too.
        shown: The number of images to draw.
        model: The model that encoded; None for the one that the file names.
        machine: Where to run; what is not given is as the latents were encoded.
        wait: Whether to wait for a latent file that another process is still writing.
        overwrite: Whether to replace another file at `sheet`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.

    Returns:
        The figures of all latents, and their order.

    Raises:
        InputError: If an argument cannot be used, or a latent is damaged.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "z.h5")
        >>> made = odeddim.jobs.encode(None, path, model="exact-samples", count=2, steps=4, certify=True)
        >>> odeddim.jobs.verify(path).figures["latent_error"].shape
        torch.Size([2])
        >>> same = odeddim.jobs.verify(path, against=path).against
        >>> same.same, dict(same.why)
        (2, {})
    """
    latents = Path(latents)
    if against is not None:
        if images is not None or sheet is not None:
            raise InputError("against=... compares two files of latents: leave out images and sheet=...")
        return _against(latents, Path(against), by or APART[0], wait, progress)
    by = pick(by or "latent_error", BADNESS, "figure")
    drawn = None if sheet is None else sheet_at(sheet, latents, place_of(images))
    if wait:
        wait_for(latents)
    source: ImageSource | None = None
    with LatentFile(latents) as file:
        mark = mark_of("verify", file.fingerprint, by, shown)
        if drawn is not None:
            check_own(drawn.path, lambda path: has_mark(path, mark), overwrite=overwrite)
        certified = set(CERTIFICATE) <= set(file.figures())
        if certified:
            _check(file, progress)
            if file.is_index and len(file) == file.total:  # a run that was killed before it could make one file
                finish(latents)
        place, field = _set_up(file, model, machine) if not certified or drawn is not None else (None, None)
        if not certified:
            assert place is not None
            assert field is not None
            source = _originals(file, field, images)
            _certify(file, source, field, place, progress)
    with LatentFile(latents) as file:
        known = file.figures()
        if not set(CERTIFICATE) <= set(known):
            return Verified(latents, (), {}, torch.empty(0, dtype=torch.int64), None)
        figures = {name: known[name] for name in CERTIFICATE}
        order = worst(figures, by)
        if drawn is not None and place is not None and field is not None:
            place = replace(place, encoded=file)
            _draw(drawn, file, order[:shown].tolist(), figures, field, place, source, images, mark)
        return Verified(latents, tuple(file.names), figures, order, file.figures("report").get("floor"))


def _against(latents: Path, other: Path, by: str, wait: bool, progress: Progress) -> Verified:
    """The latents compared with those of another file."""
    pick(by, APART, "figure")
    for path in (latents, other) if wait else ():
        wait_for(path)
    with LatentFile(latents) as file, LatentFile(other) as its:
        made = compare(file, its, progress)
    order = torch.argsort(made.figures[by], descending=True, stable=True)
    return Verified(latents, made.names, made.figures, order, None, made)


def _set_up(file: LatentFile, model: Model | Subject | None, machine: Machine | None) -> tuple[Place, VectorField]:
    place = (machine or Machine()).at(file, model, shared=True)
    field = subject_of(file, place, model)
    row = decoding_of(file, field).plan.solver
    place.fit(field, row)
    return place, field


def _check(file: LatentFile, progress: Progress) -> None:
    """Read every row, which checks it against its checksum."""
    with shown(progress, len(file), "checking", 0) as advance:
        for start in range(0, len(file), CHUNK):
            stop = min(start + CHUNK, len(file))
            file.rows(start, stop)
            advance(stop - start)


def _originals(file: LatentFile, field: VectorField, images: Images) -> ImageSource:
    """The images that were encoded: those given, or at the path that the file names; an InputError for others."""
    made = file.provenance
    if made.made_by != "encode":
        raise InputError(
            f"{file.path} was made by {made.made_by!r} and not from images, so it has no certificate: give a file that "
            "`odeddim encode` wrote"
        )
    named = made.details.get("images", {})
    if images is None and named.get("path") not in (None, SAMPLE):
        images = Path(named["path"])
        if not images.exists() and not str(images).startswith(SAVED):
            raise InputError(f"the images of {file.path} are no longer at {images}: give images, verify z.h5 IMAGES")
    if images is None and named.get("path") != SAMPLE:
        raise InputError(f"{file.path} does not name the images that it was made of: give images, verify z.h5 IMAGES")
    prepare = Preparation.of(made.details.get("prepared", {}))
    source, where = images_for(field, images, prepare), place_of(images) or SAMPLE
    for start in range(0, len(file), CHUNK):
        stop = min(start + CHUNK, len(file))
        if file.names[start:stop] != [plain_text(name) for name in source.names[start:stop]]:
            raise InputError(f"{where} does not hold the images of {file.path}, from number {start} on")
    # Other images may have the same names. The hash in older files, without "of", does not cover all images.
    if "of" in named and named.get("sha256") != source.fingerprint(file.total):
        raise InputError(f"{where} does not hold the images of {file.path}, which was made of other ones: give those")
    return source


def _certify(file: LatentFile, source: ImageSource, field: VectorField, place: Place, progress: Progress) -> None:
    """Compute the certificates of a file and store them in it."""
    if len(file) < file.total:
        raise InputError(
            f"{file.path} is unfinished, with {len(file)} of {file.total} latents: encode the others first"
        )
    how, each = decoding_of(file, field), kept_for(file, field)
    size = place.at_once(field, how.plan.solver, queued=bool(how.rungs))
    details = {**file.provenance.details, "certified": True, "fingerprint": file.fingerprint}
    made = replace(file.provenance, details=details)
    work = _Certifying(field, how, each, place.state)
    with (
        LatentRun(file.path, file.names, made, file.nodes, replace=True) as run,
        shown(progress, len(file), "certifying", run.done) as advance,
        closing(ahead(lambda start, stop: (file.read(start, stop), source[start:stop]), run.batches(size))) as batches,
        closing(place.over(work, batches)) as found,
    ):
        for (start, stop), _ in behind(lambda result: run.write(*result[0], *result[1]), found, run.together):
            advance(stop - start)


@dataclass
class _Certifying:
    """The work on each batch of latents.

    Attributes:
        model: The model.
        how: What decodes them.
        each: The condition of each image, if they have their own.
        dtype: The dtype of states.
    """

    model: VectorField
    how: Decoding
    each: Each | None
    dtype: torch.dtype

    def __call__(
        self, start: int, stop: int, given: tuple[State, torch.Tensor]
    ) -> tuple[State, dict[str, torch.Tensor]]:
        """The latents start, ..., stop-1, given with their images, and their certificates."""
        kept, images = given
        state, x_0 = kept.to(dtype=self.dtype), to_data(self.model, images.to(self.dtype))
        if self.how.rungs:
            return kept, certificate_of_rungs(x_0, state, self.how.rungs, self.model)
        plan = self.how.plan
        counts = kept.report.get("evaluations", torch.full((stop - start,), plan.evaluations))
        return kept, certificate(x_0, state, plan, for_batch(self.each, self.model, state), counts)


def _draw(
    sheet: Pictures,
    file: LatentFile,
    rows: list[int],
    figures: Mapping[str, torch.Tensor],
    field: VectorField,
    place: Place,
    source: ImageSource | None,
    images: Images,
    mark: str,
) -> None:
    """The worst images, side by side: as they were, decoded again, and the difference."""
    try:
        source = source or _originals(file, field, images)
    except InputError as error:
        warn(f"the sheet has no originals: {error}")
        source = None
    how, each = decoding_of(file, field), kept_for(file, field)

    def cells() -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        for i in rows:
            state = place.cast(file.pick(i))
            again = to_images(field, how.images(state, for_batch(each, field.on_data(), state), i)).cpu()[0]
            known = {name: float(values[i]) for name, values in figures.items()}
            if source is None:
                yield again, known
            else:
                x_0 = source.read([i])[0].to(again.dtype)
                yield torch.cat([x_0, again, ((again - x_0) * ENLARGED).clamp(-1, 1)], dim=2), known

    def under(i: int, known: Mapping[str, float]) -> list[str]:
        return [title_of(file.names[rows[i]]), *(f"{words} {known[name]:#.2g}" for name, words in FIGURES.items())]

    heads = ["decoded"] if source is None else ["image", "decoded", f"{ENLARGED} x difference"]
    captions = Captions(under, lines=1 + len(FIGURES), heads=heads, panes=len(heads))
    drawn = cells()
    first = next(drawn)
    layout = Layout.of(len(rows), first[0].shape, captions, sheet.scale, sheet.labels)
    save_sheet(itertools.chain([first], drawn), sheet.path, layout, captions, {MARK: mark})
    log.info("%d images in %s", len(rows), sheet)
