"""`odeddim decode`: a latent file to images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from odeddim.cli import options


@click.command("decode")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder for PNGs, a sheet.png or a file.h5.",
)
@options.its_model
@click.option("--solver", type=options.SolverName(), default=None, help="[default: the one that encoded]")
@click.option("--steps", type=click.IntRange(1, options.MOST_STEPS), default=None, help="[default: as encoded]")
@click.option("--grid", default=None, metavar="NAME|FILE", help="[default: the nodes of the file]")
@options.tolerances
@options.preset
@click.option(
    "--seed",
    type=click.IntRange(0, options.MOST_SEED),
    default=None,
    help="Of stochastic solvers' noise.  [default: 0]",
)
@click.option("--eta", type=click.FloatRange(0), default=None, help="DDIM's η, of ddim-eta.  [default: 0.5]")
@options.machine
@options.network_batch
@options.tol
@options.overwrite
def command(
    latents: Path,
    output: Path,
    model: str | None,
    solver: str | None,
    steps: int | None,
    grid: str | None,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    tol: float | None,
    overwrite: bool,
    preset: Any,
    **settings: Any,
) -> None:
    """Decode LATENTS to images by integrating the ODE from σ_T down, with the solver that encoded or another.

    A folder gets a PNG for each image, out/cat/1.png of photos/cat/1.jpg. No file is replaced that the same command has
    not written, unless --overwrite says so.

    Without options the noise levels of the file are walked in reverse, by the same solver. The model must be the
    one that encoded: its weights' hash is compared. A run that was stopped goes on with the same command; a PNG that is
    damaged, or another than it has written, it names.

    Latents that were encoded with --tol are decoded with the steps of each. --tol here doubles the steps for each image
    until it is no further (rms) than the tolerance from the image of a more accurate run, of twice the
    evaluations; of a latent model it is not the image but its data that count.

    \b
    Examples:
      odeddim decode z.h5 -o out/
      odeddim decode z.h5 -o sheet.png
      odeddim decode z.h5 -o images.h5 --solver rk4 --steps 100
      odeddim decode z.h5 -o fine/ --tol 1e-3
      odeddim decode z.h5 -o noisy/ --solver ddpm --seed 1
    """
    from contextlib import closing
    from dataclasses import asdict

    from odeddim.api import decode, to_images
    from odeddim.checks.certificate import decode_as_encoded, decode_to
    from odeddim.cli.running import (
        Tally,
        at_once,
        decoding_plan,
        details_of,
        evaluated,
        field_of,
        in_blocks,
        machine,
        of_all,
        progress,
        so_far,
        warn,
        warn_of_grid,
        warn_of_preset,
        warn_of_range,
    )
    from odeddim.latents.latent_file import LatentFile
    from odeddim.storage.atomic import check_place
    from odeddim.storage.outputs import open_output
    from odeddim.storage.prefetch import ahead

    with LatentFile(latents) as file:
        where = machine(device, dtype, file)
        field = field_of(file, model, where)
        how = decoding_plan(file, field, solver, steps, grid, settings, tol)
        row = how.row
        warn_of_grid(grid, field, row)
        warn_of_preset(preset, field)
        in_blocks(field, row, where, network_batch, threads, file)
        ode = field.on_data()
        if len(file) < file.total:
            warn(f"{latents} is unfinished: {len(file)} of {file.total} latents are there")
        total, size = len(file), at_once(field, row, batch_size, file, queued=bool(how.rungs))
        made = how.provenance(
            file, field, **({} if tol is None else {"tol": tol}), **details_of(field, row, where, size)
        )
        if not output.is_dir():
            check_place(output, latents)
        began, largest, here, tally = time.perf_counter(), 0.0, 0, Tally(tol or 0.0)
        with (
            open_output(output, file.names, asdict(made), overwrite=overwrite) as out,
            progress(total, "decoding", out.done) as advance,
            closing(ahead(file.read, out.batches(size))) as batches,
        ):
            for (start, stop), state in batches:
                # The noise of an image belongs to its place in the file, whatever the batch.
                its_row = row.with_settings(first=start) if row.stochastic else row
                state = where.cast(state)
                if tol is not None:
                    x_0, taken, change = decode_to(tol, state, row, how.rungs, ode)
                    tally.add(taken, change, file.names[start:stop])
                elif how.rungs:
                    x_0 = decode_as_encoded(state, row, dict(how.rungs).__getitem__, ode)
                else:
                    x_0 = decode(state, its_row, model=ode, grid=how.nodes)
                x_0 = to_images(field, x_0)
                out.write(start, stop, x_0)
                largest, here = max(largest, float(x_0.abs().max())), here + stop - start
                advance(stop - start)
    warn_of_range(largest)
    taken_steps = tally.tell() if tol is not None and here else how.steps
    options.echo(
        f"{so_far(out.done, total)} images in {output}{of_all(out.done, total, here)}: {row.name}, {taken_steps}, "
        f"{evaluated(here, ode)}, {time.perf_counter() - began:.1f} s"
    )
