"""`odeddim interpolate`: lines between two latents, grids between four."""

from __future__ import annotations

from pathlib import Path

import click

from odeddim.cli import options


@click.command("interpolate")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option("--pair", type=int, nargs=2, default=None, help="Two latents, by index: the line between them.")
@click.option("--corners", type=int, nargs=4, default=None, help="Four latents: the n × n grid between them.")
@click.option("-n", "--count", type=click.IntRange(2), default=11, show_default=True, help="Points per line.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="Latent file of the path, path.h5.")
@click.option("--sheet", type=click.Path(path_type=Path), default=None, help="Decode the path and draw it, path.png.")
@click.option(
    "--model", default=None, metavar="NAME|PATH", help="For --sheet.  [default: the one that the latents name]"
)
@options.machine
def command(
    latents: Path,
    pair: tuple[int, int] | None,
    corners: tuple[int, int, int, int] | None,
    count: int,
    output: Path | None,
    sheet: Path | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
) -> None:
    """Interpolate between LATENTS on great circles (slerp), as in DDIM's appendix D.5.

    --pair gives a line, --corners a grid. The path is a latent file like any other: `odeddim decode` it.

    \b
    Examples:
      odeddim interpolate z.h5 --pair 0 1 -o path.h5 --sheet path.png
      odeddim interpolate z.h5 --corners 0 1 2 3 -n 8 --sheet grid.png
    """
    import dataclasses

    import torch

    from odeddim.api import decode
    from odeddim.cli.running import batches, decoding_plan, field_of, machine, progress, warn_of_range
    from odeddim.files import check_place
    from odeddim.hdf5 import SUFFIXES
    from odeddim.images import save_sheet
    from odeddim.latents.interpolate import interpolate, interpolate_grid
    from odeddim.latents.store import LatentFile, write_latents

    if (pair is None) == (corners is None):
        raise click.UsageError("give --pair A B for a line or --corners A B C D for a grid")
    if output is None and sheet is None:
        raise click.UsageError("give -o path.h5, --sheet path.png or both: there is nothing to write to")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise click.UsageError(f"--sheet {sheet}: a sheet is a PNG, name it path.png")
    ends = pair or corners or ()
    if sheet is not None:
        check_place(sheet, latents)
    if output is not None:
        check_place(output, latents, suffixes=SUFFIXES)
    with LatentFile(latents) as file:
        where = machine(device, dtype, file)
        states = [where.cast(file.pick(index)) for index in ends]
        labels = [file.names(index, index + 1)[0] for index in ends]
        path = interpolate(states[0], states[1], count) if pair else interpolate_grid(states, count)
        total = path.xbar.shape[0]
        # The model comes first: without it, nothing is to be written.
        field = None if sheet is None else field_of(file, model, where)
        if output is not None:
            details = {**file.provenance.details, "between": labels, "indices": list(ends), "of": str(latents)}
            provenance = dataclasses.replace(file.provenance, made_by="interpolate", details=details)
            with write_latents(output, provenance, file.nodes, total) as writer:
                writer.append(path, [f"{'-'.join(map(str, ends))}-{i:04d}" for i in range(total)])
            click.echo(f"{total} latents between {', '.join(labels)} in {output}")
        if sheet is not None and field is not None:
            row, nodes, _ = decoding_plan(file, field, None, None, None, {})
            images = []
            with progress(total, "decoding") as advance:
                for start, stop in batches(total, batch_size, row, file):
                    aux = tuple(aux[start:stop] for aux in path.aux)
                    part = dataclasses.replace(path, xbar=path.xbar[start:stop], aux=aux)
                    images.append(decode(part, row, model=field, grid=nodes).cpu())
                    advance(stop - start)
            warn_of_range(max(float(part.abs().max()) for part in images))
            save_sheet(torch.cat(images), sheet, columns=count)
            click.echo(f"{total} images in {sheet}")
