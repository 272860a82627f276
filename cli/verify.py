"""`odeddim verify`: how good the latents of a file are."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from odeddim.api import decode, to_data, to_images
from odeddim.checks.certificate import (
    BADNESS,
    CERTIFICATE,
    certificate,
    certificate_of_rungs,
    decode_as_encoded,
    evaluations,
)
from odeddim.checks.certificate import worst as in_order
from odeddim.cli import options
from odeddim.cli.running import (
    Machine,
    at_once,
    decoding_plan,
    field_of,
    images_for,
    in_blocks,
    machine,
    progress,
    warn,
)
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.ode.field import VectorField
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of, plain_text, printable
from odeddim.storage.hdf5 import CHUNK
from odeddim.storage.images import SAMPLE, ImageSource
from odeddim.storage.png import MARK, save_sheet
from odeddim.storage.prefetch import ahead
from odeddim.storage.resumable import finish
from odeddim.storage.workers import rank
from odeddim.types import InputError, pick

ENLARGED = 10  # times, the difference on the sheet
NAME = 24  # letters of a name in the table, its last
WIDE = 110  # columns where nobody looks
HEADINGS = {
    "round_trip": "trip",
    "latent_error": "error",
    "evaluations": "evals",
    "variance": "var",
    "kurtosis": "kurt",
    "autocorrelation": "corr",
    "normality": "p",
}


@click.command("verify")
@click.argument("latents", type=click.Path(path_type=Path))
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "--by", default="latent_error", show_default=True, metavar="FIGURE", help="What sorts the worst to the top."
)
@click.option("--worst", type=click.IntRange(1), default=10, show_default=True, help="How many to show.")
@click.option("--sheet", type=click.Path(path_type=Path), default=None, help="Draw the worst, worst.png.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures of all latents as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the figures of all latents as CSV.")
@options.its_model
@options.machine
@options.network_batch
@options.replace
def command(
    latents: Path,
    images: Path | None,
    by: str,
    worst: int,
    sheet: Path | None,
    as_json: bool,
    as_csv: bool,
    model: str | None,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Check every latent of a file against its checksum, and show how good each one is, the worst first.

    What `odeddim encode --certify` has stored is shown; of a file without it, it is computed and stored, which takes
    the IMAGES that were encoded (by default those at the path that the file names) and three times the evaluations
    of encoding. Stopped, it goes on with the same command.

    round_trip is the rms over pixels of the image decoded again minus the image, in [-1, 1]. latent_error estimates
    how far x_T is from the ODE's: the distance (rms) to the x_T that unipc-3 finds with twice the evaluations, 40 at
    least, over even steps in log σ. norm, mean, variance, kurtosis, autocorrelation and normality (the p-value of
    Kolmogorov's and Smirnov's test) say whether x_T is white noise, of which they are 1, 0, 1, 3, 0 and anything above
    0.001. Of a latent model, "the image" is what its autoencoder makes of it, and what
    that loses is said apart.

    The sheet has a row for each image: the image, decoded again, and their difference ten times enlarged.

    \b
    Examples:
      odeddim verify z.h5
      odeddim verify z.h5 photos/ --by round_trip --worst 20 --sheet worst.png
      odeddim verify z.h5 --csv > figures.csv
    """
    pick(by, BADNESS, "figure")
    if as_json and as_csv:
        raise click.UsageError("give --json or --csv, not both")
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise click.UsageError(f"--sheet {sheet}: a sheet is a PNG, name it worst.png")
        check_place(sheet, latents, images)
    with LatentFile(latents) as file:
        mark = mark_of("verify", file.fingerprint, by, worst)
        if sheet is not None:
            check_own(sheet, lambda path: has_mark(path, mark), overwrite=overwrite)
        certified = set(CERTIFICATE) <= set(file.figures())
        if certified:
            _check(file)
            if file.is_index and len(file) == file.total:  # it was killed before it could make one file of them
                finish(latents)
        if not certified or sheet is not None:
            where = machine(device, dtype, file)
            field = field_of(file, model, where)
            in_blocks(field, decoding_plan(file, field).row, where, network_batch, threads, file)
        source = None
        if not certified:
            source = _originals(file, field, images)
            _certify(file, source, field, where, batch_size)
    with LatentFile(latents) as file:
        if not set(CERTIFICATE) <= set(file.figures()):
            options.echo(f"{latents}: others are at work on the rest of its certificates, or run it again", err=True)
            # torchrun would end the others for a process that fails.
            sys.exit(0 if rank()[1] > 1 else 1)
        figures = {name: file.figures()[name] for name in CERTIFICATE}
        rows = in_order(figures, by)
        if as_json or as_csv:
            _print(file, figures, rows, as_json)
        else:
            _show(file, figures, rows[:worst], by)
            if (floors := file.figures("report").get("floor")) is not None:
                options.echo(
                    "all in the units of the latent model's data; its autoencoder alone loses "
                    f"{float(floors.median()):.3g} of an image (rms, the median), {float(floors.max()):.3g} at most"
                )
        if sheet is not None:
            _draw(sheet, file, rows[:worst].tolist(), field, where, source or images, mark)


def _check(file: LatentFile) -> None:
    """Read every row, against its checksum."""
    with progress(len(file), "checking") as advance:
        for start in range(0, len(file), CHUNK):
            stop = min(start + CHUNK, len(file))
            file.rows(start, stop)
            advance(stop - start)


def _originals(file: LatentFile, field: VectorField, images: Path | None) -> ImageSource:
    """The images that were encoded, which must be those at the path given, or at the one that the file names."""
    made = file.provenance
    if made.made_by != "encode":
        raise InputError(f"{file.path} was made by {made.made_by!r}, not from images: there is nothing to compare with")
    named = made.details.get("images", {})
    if images is None and named.get("path") not in (None, SAMPLE):
        images = Path(named["path"])
        if not images.exists():
            raise InputError(f"the images of {file.path} are not at {images} any more: say where, verify z.h5 IMAGES")
    if images is None and named.get("path") != SAMPLE:
        raise InputError(f"{file.path} does not say which images it was made of: say so, verify z.h5 IMAGES")
    source = images_for(field, images)
    for start in range(0, len(file), CHUNK):
        stop = min(start + CHUNK, len(file))
        if file.names[start:stop] != [plain_text(name) for name in source.names[start:stop]]:
            raise InputError(f"{images or SAMPLE} does not hold the images of {file.path}, from number {start} on")
    # Others may have the same names. Files from before there was "of" have a hash that tells less.
    if "of" in named and named.get("sha256") != source.fingerprint(file.total):
        raise InputError(f"{images or SAMPLE} does not hold the images of {file.path}: it was made of others")
    return source


def _certify(file: LatentFile, source: ImageSource, field: VectorField, where: Machine, batch_size: int | None) -> None:
    """Compute the certificates of a file and store them in it."""
    if len(file) < file.total:
        raise InputError(
            f"{file.path} is unfinished, {len(file)} of {file.total} latents are there: encode the others first"
        )
    how = decoding_plan(file, field)
    size = at_once(field, how.row, batch_size, file, queued=bool(how.rungs))
    details = {**file.provenance.details, "certified": True, "fingerprint": file.fingerprint}
    made = replace(file.provenance, details=details)
    spent = evaluations(how.row, how.nodes)
    with (
        LatentRun(file.path, file.names, made, file.nodes, replace=True) as run,
        progress(len(file), "certifying", run.done) as advance,
        closing(ahead(lambda start, stop: (file.read(start, stop), source[start:stop]), run.batches(size))) as batches,
    ):
        for (start, stop), (kept, x_0) in batches:
            state, x_0 = where.cast(kept), to_data(field, x_0.to(where.state))
            if how.rungs:
                figures = certificate_of_rungs(x_0, state, how.row, dict(how.rungs).__getitem__, field)
            else:
                counts = kept.report.get("evaluations", torch.full((stop - start,), spent))
                figures = certificate(x_0, state, how.row, how.nodes, field, counts)
            run.write(start, stop, kept, figures)
            advance(stop - start)


def _print(file: LatentFile, figures: dict[str, torch.Tensor], rows: torch.Tensor, as_json: bool) -> None:
    lines = (
        {"index": i, "name": file.names[i], **{name: float(values[i]) for name, values in figures.items()}}
        for i in rows.tolist()
    )
    if as_json:
        known = [{key: None if value != value else value for key, value in line.items()} for line in lines]  # no NaN
        options.echo_json(json.dumps({"file": str(file.path), "latents": known}, indent=1, ensure_ascii=False))
        return
    table = csv.DictWriter(sys.stdout, ["index", "name", *figures])
    table.writeheader()
    table.writerows({**line, "name": printable(line["name"])} for line in lines)


def _show(file: LatentFile, figures: dict[str, torch.Tensor], rows: torch.Tensor, by: str) -> None:
    # Brackets in names are no markup.
    title = Text(printable(f"{file.path}: {len(file)} latents, the worst by {by} first"))
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("name", no_wrap=True)
    for name in figures:
        table.add_column(HEADINGS.get(name, name), justify="right", no_wrap=True, min_width=7)
    for i in rows.tolist():
        table.add_row(
            str(i), Text(printable(file.names[i])[-NAME:]), *(f"{float(values[i]):.3g}" for values in figures.values())
        )
    table.add_section()
    known = {name: values[~values.isnan()] for name, values in figures.items()}
    middle = {name: float(torch.median(values)) for name, values in known.items() if len(values)}
    last = {name: float(known[name][in_order(known, name)[0]]) for name in middle}
    for words, of_all in (("median", middle), ("worst", last)):
        table.add_row("", words, *(f"{of_all[name]:.3g}" if name in of_all else "-" for name in figures))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def _draw(
    sheet: Path,
    file: LatentFile,
    rows: list[int],
    field: VectorField,
    where: Machine,
    images: ImageSource | Path | None,
    mark: str,
) -> None:
    """The worst images, side by side: as they were, decoded again, and the difference."""
    try:
        source = images if isinstance(images, ImageSource) else _originals(file, field, images)
    except InputError as error:
        warn(f"the sheet has no originals: {error}")
        source = None
    how = decoding_plan(file, field)
    cells = []
    for i in rows:
        state = where.cast(file.pick(i))
        if how.rungs:
            again = to_images(field, decode_as_encoded(state, how.row, dict(how.rungs).__getitem__, field)).cpu()
        else:
            again = decode(state, how.row, model=field, grid=how.nodes).cpu()
        if source is None:
            cells.append(again)
            continue
        x_0 = source.read([i]).to(again.dtype)
        cells += [x_0, again, ((again - x_0) * ENLARGED).clamp(-1, 1)]
    save_sheet(torch.cat(cells), sheet, 1 if source is None else 3, {MARK: mark})
    options.echo(f"{len(rows)} images in {sheet}", err=True)
