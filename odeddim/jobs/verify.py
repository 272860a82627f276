"""The job that checks the latents of a file and says how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from odeddim.api import Model, to_data, to_images
from odeddim.checks.certificate import BADNESS, CERTIFICATE, certificate, certificate_of_rungs, worst
from odeddim.jobs.decoding import decoding_of
from odeddim.jobs.machine import Machine, Place
from odeddim.jobs.subject import Subject, images_for, subject_of
from odeddim.jobs.work import Progress, log, silent, warn
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.ode.field import VectorField
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of, plain_text
from odeddim.storage.hdf5 import CHUNK
from odeddim.storage.images import SAMPLE, ImageSource
from odeddim.storage.png import MARK, save_sheet
from odeddim.storage.prefetch import ahead
from odeddim.storage.preparation import Preparation
from odeddim.storage.resumable import finish
from odeddim.types import InputError, pick

ENLARGED = 10  # the factor of the difference on the sheet


@dataclass(frozen=True)
class Verified:
    """How good the latents of a file are.

    Attributes:
        path: The latent file.
        names: Where each latent comes from, N names.
        figures: The certificate, (N,) float64 by name (`odeddim.checks.certificate.CERTIFICATE`); empty while other
            processes compute it.
        order: The indices of the latents, the worst first, (N,).
        floor: The error of a latent model's autoencoder for each image, (N,); None for other models.
    """

    path: Path
    names: tuple[str, ...]
    figures: Mapping[str, torch.Tensor]
    order: torch.Tensor
    floor: torch.Tensor | None


def verify(
    latents: str | Path,
    images: str | Path | None = None,
    *,
    by: str = "latent_error",
    sheet: str | Path | None = None,
    shown: int = 10,
    model: Model | Subject | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Verified:
    """Check every latent of a file against its checksum, and say how good each one is.

    The certificate that `encode(certify=True)` has stored is read. If the file has none, it is computed and stored,
    which takes three times the evaluations of encoding. A run that was stopped goes on with the same call.

    Args:
        latents: The latent file, z.h5.
        images: The images that were encoded; None for those that the file names.
        by: The figure of the certificate that sorts the latents.
        sheet: Where to draw the worst, worst.png: each image, the image decoded again, and ten times their difference.
        shown: The number of images to draw.
        model: The model that encoded; None for the one that the file names.
        machine: Where to run; what is not given is as the latents were encoded.
        overwrite: Whether to replace another file at `sheet`.
        progress: A progress display, see `odeddim.jobs.work.Progress`.

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
    """
    latents, images = Path(latents), None if images is None else Path(images)
    sheet = None if sheet is None else Path(sheet)
    pick(by, BADNESS, "figure")
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise InputError(f"sheet {sheet}: a sheet is a PNG, name it worst.png")
        check_place(sheet, latents, images)
    source: ImageSource | Path | None = images
    with LatentFile(latents) as file:
        mark = mark_of("verify", file.fingerprint, by, shown)
        if sheet is not None:
            check_own(sheet, lambda path: has_mark(path, mark), overwrite=overwrite)
        certified = set(CERTIFICATE) <= set(file.figures())
        if certified:
            _check(file, progress)
            if file.is_index and len(file) == file.total:  # a run that was killed before it could make one file
                finish(latents)
        place, field = _set_up(file, model, machine) if not certified or sheet is not None else (None, None)
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
        if sheet is not None and place is not None and field is not None:
            _draw(sheet, file, order[:shown].tolist(), field, replace(place, encoded=file), source, mark)
        return Verified(latents, tuple(file.names), figures, order, file.figures("report").get("floor"))


def _set_up(file: LatentFile, model: Model | Subject | None, machine: Machine | None) -> tuple[Place, VectorField]:
    place = (machine or Machine()).at(file, model)
    field = subject_of(file, place, model)
    row = decoding_of(file, field.schedule).plan.solver
    place.fit(field, row)
    return place, field


def _check(file: LatentFile, progress: Progress) -> None:
    """Read every row, which checks it against its checksum."""
    with progress(len(file), "checking", 0) as advance:
        for start in range(0, len(file), CHUNK):
            stop = min(start + CHUNK, len(file))
            file.rows(start, stop)
            advance(stop - start)


def _originals(file: LatentFile, field: VectorField, images: Path | None) -> ImageSource:
    """The images that were encoded: those at the path, or at the one that the file names; an InputError for others."""
    made = file.provenance
    if made.made_by != "encode":
        raise InputError(
            f"{file.path} was made by {made.made_by!r} and not from images, so it has no certificate: give a file that "
            "`odeddim encode` wrote"
        )
    named = made.details.get("images", {})
    if images is None and named.get("path") not in (None, SAMPLE):
        images = Path(named["path"])
        if not images.exists():
            raise InputError(f"the images of {file.path} are no longer at {images}: give images, verify z.h5 IMAGES")
    if images is None and named.get("path") != SAMPLE:
        raise InputError(f"{file.path} does not name the images that it was made of: give images, verify z.h5 IMAGES")
    source = images_for(field, images, Preparation.of(made.details.get("prepared", {})))
    for start in range(0, len(file), CHUNK):
        stop = min(start + CHUNK, len(file))
        if file.names[start:stop] != [plain_text(name) for name in source.names[start:stop]]:
            raise InputError(f"{images or SAMPLE} does not hold the images of {file.path}, from number {start} on")
    # Other images may have the same names. The hash in older files, without "of", does not cover all images.
    if "of" in named and named.get("sha256") != source.fingerprint(file.total):
        raise InputError(
            f"{images or SAMPLE} does not hold the images of {file.path}, which was made of other ones: give those"
        )
    return source


def _certify(file: LatentFile, source: ImageSource, field: VectorField, place: Place, progress: Progress) -> None:
    """Compute the certificates of a file and store them in it."""
    if len(file) < file.total:
        raise InputError(
            f"{file.path} is unfinished, with {len(file)} of {file.total} latents: encode the others first"
        )
    how = decoding_of(file, field.schedule)
    size = place.at_once(field, how.plan.solver, queued=bool(how.rungs))
    details = {**file.provenance.details, "certified": True, "fingerprint": file.fingerprint}
    made = replace(file.provenance, details=details)
    with (
        LatentRun(file.path, file.names, made, file.nodes, replace=True) as run,
        progress(len(file), "certifying", run.done) as advance,
        closing(ahead(lambda start, stop: (file.read(start, stop), source[start:stop]), run.batches(size))) as batches,
    ):
        for (start, stop), (kept, x_0) in batches:
            state, x_0 = place.cast(kept), to_data(field, x_0.to(place.state))
            if how.rungs:
                figures = certificate_of_rungs(x_0, state, how.rungs, field)
            else:
                counts = kept.report.get("evaluations", torch.full((stop - start,), how.plan.evaluations))
                figures = certificate(x_0, state, how.plan, field, counts)
            run.write(start, stop, kept, figures)
            advance(stop - start)


def _draw(
    sheet: Path,
    file: LatentFile,
    rows: list[int],
    field: VectorField,
    place: Place,
    images: ImageSource | Path | None,
    mark: str,
) -> None:
    """The worst images, side by side: as they were, decoded again, and the difference."""
    try:
        source = images if isinstance(images, ImageSource) else _originals(file, field, images)
    except InputError as error:
        warn(f"the sheet has no originals: {error}")
        source = None
    how = decoding_of(file, field.schedule)
    cells = []
    for i in rows:
        again = to_images(field, how.images(place.cast(file.pick(i)), field.on_data(), i)).cpu()
        if source is None:
            cells.append(again)
            continue
        x_0 = source.read([i]).to(again.dtype)
        cells += [x_0, again, ((again - x_0) * ENLARGED).clamp(-1, 1)]
    save_sheet(torch.cat(cells), sheet, 1 if source is None else 3, {MARK: mark})
    log.info("%d images in %s", len(rows), sheet)
