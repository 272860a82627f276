"""`odeddim encode`: images to a latent file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options

if TYPE_CHECKING:
    from torch import Tensor


@click.command("encode")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The latent file, z.h5.")
@click.option("-n", "--count", type=click.IntRange(1), default=None, help="Only the first so many images.")
@options.run(f"{defaults.ENCODE}; with --tol {defaults.TOLERANCE}")
@options.preset
@options.machine
@options.network_batch
@options.tol
@click.option("--certify", is_flag=True, help="Store with each latent how good it is; 4 times the evaluations.")
@options.overwrite
def command(
    images: Path | None,
    output: Path,
    count: int | None,
    model: str,
    solver: str | None,
    steps: int | None,
    grid: str | None,
    end: str,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    tol: float | None,
    certify: bool,
    overwrite: bool,
    preset: Any,
    **settings: Any,
) -> None:
    """Encode IMAGES to latents by integrating the ODE from the image up to σ_T.

    IMAGES is a folder, an image file, .npz, .npy, IDX (MNIST's format, gzip or not) or HDF5, or - for a list of image
    files on standard input; without it, the 256 sample images of the package. The file holds all that decoding needs.

    --certify decodes each image again and encodes it by a more accurate run: round trip and distance to the ODE's
    latent, besides statistics of the latent, are stored with it (`odeddim verify`). --tol finds the steps that
    each image needs; unless told otherwise, images then lie at σ_1: the step at 0 has an error that no steps reduce.

    Of a latent model, images go through its autoencoder first. What that loses of each image, whatever the solver, is
    stored as report/floor (rms over pixels); all other errors are of the data that it makes, in their units.

    A run that was stopped, by whatever, goes on with the same command, as long as the images have the same names and
    every byte of them is the same. Several processes share the work: start the command under torchrun, or as often as
    you like.

    What is transparent in an image is laid on white, and of a file with several pictures, an animation say, the first
    is taken; a warning says of how many images that is true.

    \b
    Examples:
      odeddim encode -o z.h5                              the sample images, the built-in model
      odeddim encode photos/ -o z.h5 --model MODEL
      odeddim encode -o z.h5 --solver euler --grid linear --steps 100     DDIM, as in the paper
      odeddim encode -o z.h5 --solver dopri5 --rtol 1e-5
      odeddim encode photos/ -o z.h5 --model MODEL --certify
      odeddim encode photos/ -o z.h5 --model MODEL --tol 1e-3
      odeddim encode photos/ -o z.h5 --model MODEL --preset bench/preset.json
      find photos -name '*.png' | odeddim encode - -o z.h5 --model MODEL
      torchrun --nproc-per-node 4 -m odeddim encode photos/ -o z.h5 --model MODEL
    """
    from contextlib import closing
    from dataclasses import replace

    from click.core import ParameterSource

    from odeddim.api import check_encodes, encode, plan
    from odeddim.checks.certificate import certificate_of_rungs, encode_to
    from odeddim.checks.certificate import certify as certify_batch
    from odeddim.cli.running import (
        Reports,
        Tally,
        at_once,
        data_and_floor,
        details_of,
        field_on,
        first_names,
        images_for,
        in_blocks,
        lasting,
        machine,
        of_all,
        progress,
        rungs_of,
        so_far,
        warn_of_grid,
        warn_of_preset,
        warn_of_range,
    )
    from odeddim.latents.latent_file import LatentRun, provenance_of
    from odeddim.storage.atomic import check_place
    from odeddim.storage.hdf5 import SUFFIXES
    from odeddim.storage.prefetch import ahead
    from odeddim.storage.workers import rank

    check_place(output, images, suffixes=SUFFIXES)
    if images == Path("-") and rank()[1] > 1:
        raise click.UsageError("several processes cannot share a list on standard input: give a folder or a file")
    where = machine(device, dtype)
    field = field_on(model, where)
    rungs: list[tuple[int, Tensor]] = []
    if tol is None:
        row, nodes = plan(field.schedule, solver or defaults.ENCODE, steps, grid, end, settings)
    else:
        if click.get_current_context().get_parameter_source("end") is ParameterSource.DEFAULT:
            end = "sigma_min"
        row, rungs = rungs_of(field.schedule, solver or defaults.TOLERANCE, steps, grid, end, settings)
        nodes = rungs[-1][1]
    warn_of_grid(grid, field, row)
    warn_of_preset(preset, field)
    check_encodes(row)
    in_blocks(field, row, where, network_batch, threads)
    ode = field.on_data()
    source = images_for(field, images)
    names = first_names(source, count, images)
    total, size = len(names), at_once(field, row, batch_size, queued=tol is not None)
    provenance = provenance_of(
        field,
        solver=row.name,
        grid=grid or row.grid,
        nodes=nodes,
        made_by="encode",
        settings=lasting(settings, row),
        images=source.identity(images, total),
        **({} if tol is None else {"tol": tol, "ladder": [count for count, _ in rungs]}),
        **({"certified": True} if certify else {}),
        **details_of(field, row, where, size),
    )
    reports, rms, tally = Reports(), 0.0, Tally(tol or 0.0)
    began = time.perf_counter()
    with (
        LatentRun(output, names, provenance, nodes, overwrite=overwrite) as run,
        progress(total, "encoding", run.done) as advance,
        closing(ahead(lambda start, stop: source[start:stop], run.batches(size))) as batches,
    ):
        for (start, stop), pixels in batches:
            x_0, floor = data_and_floor(field, pixels.to(where.state))
            if tol is not None:
                state, figures = encode_to(tol, x_0, row, rungs, ode)
                tally.add(state.report["steps"], figures["round_trip"], names[start:stop])
                if certify:
                    figures = certificate_of_rungs(x_0, state, row, dict(rungs).__getitem__, ode)
            elif certify:
                state, figures = certify_batch(x_0, row, model=ode, grid=nodes)
            else:
                state, figures = encode(x_0, row, model=ode, grid=nodes), {}
            state = replace(state, report={**state.report, **floor})
            run.write(start, stop, state, figures)
            reports.add(state, names[start:stop])
            rms = max(rms, float(state.x.square().mean().sqrt()))
            advance(stop - start)
    reports.warn(end)
    steps_taken = f", {tally.tell()}" if tol is not None and reports.images else ""
    warn_of_range(rms, "the latents x_T have rms {:.3g} where 1 is expected")
    spent = f"{reports.evaluations(ode, certified=certify)}, {time.perf_counter() - began:.1f} s"
    options.echo(
        f"{so_far(run.done, total)} latents at σ = {float(nodes[-1]):.6g} in {output}"
        f"{of_all(run.done, total, reports.images)}: {row.name}, {provenance.grid} grid{steps_taken}"
        f"{reports.floor()}, {spent}"
    )
