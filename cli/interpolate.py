"""`odeddim interpolate`: lines between two latents, grids between four, loops through any number."""

from __future__ import annotations

from pathlib import Path

import click

from odeddim.cli import options


@click.command("interpolate")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option("--pair", type=int, nargs=2, default=None, help="Two latents, by index: the line between them.")
@click.option("--corners", type=int, nargs=4, default=None, help="Four latents: the n × n grid between them.")
@click.option(
    "--loop", type=options.Items(click.INT), default=None, metavar="A,B,...", help="Latents: through all and back."
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, options.MOST_NEW),
    default=11,
    show_default=True,
    help="Points per line, or leg of a loop.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="Latent file of the path, path.h5.")
@click.option("--sheet", type=click.Path(path_type=Path), default=None, help="Decode the path and draw it, path.png.")
@options.for_sheet
def command(
    latents: Path,
    pair: tuple[int, int] | None,
    corners: tuple[int, int, int, int] | None,
    loop: list[int] | None,
    count: int,
    output: Path | None,
    sheet: Path | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Interpolate between LATENTS on great circles (slerp), as in DDIM's appendix D.5.

    --pair gives a line, --corners a grid, --loop a closed loop. The path is a latent file like any other: `odeddim
    decode` it.

    \b
    Examples:
      odeddim interpolate z.h5 --pair 0 1 -o path.h5 --sheet path.png
      odeddim interpolate z.h5 --corners 0 1 2 3 -n 8 --sheet grid.png
      odeddim interpolate z.h5 --loop 0,1,2,3 -n 30 -o loop.h5
    """
    import dataclasses

    from odeddim.cli.running import (
        Numbered,
        check_amount,
        check_places,
        combined,
        draw,
        field_of,
        machine,
        write_latents,
    )
    from odeddim.latents.interpolate import LatentPath
    from odeddim.latents.latent_file import LatentFile

    if sum(given is not None for given in (pair, corners, loop)) != 1:
        raise click.UsageError("give --pair A B for a line, --corners A B C D for a grid or --loop A,B,... for a loop")
    if count < 2 and loop is None:
        raise click.UsageError(f"-n {count}: a line has two ends at least")
    if output is None and sheet is None:
        raise click.UsageError("give -o path.h5, --sheet path.png or both: there is nothing to write to")
    check_places(output, sheet, latents)
    ends = list(pair or corners or loop or ())
    with LatentFile(latents) as file:
        where = machine(device, dtype, file)
        states = [where.cast(file.pick(index)) for index in ends]
        labels = [file.names[index] for index in ends]
        points = count if pair else count * (count if corners else len(ends))
        check_amount(output or Path(), points, sum(part.nbytes for part in (states[0].xbar, *states[0].aux)), "latents")
        if pair:
            path = LatentPath.line(states[0], states[1], count)
        else:
            path = (LatentPath.grid if corners else LatentPath.loop)(states, count)
        names = Numbered(f"{'-'.join(map(str, ends))}-", len(path))
        # The model comes first: without it, nothing is to be written.
        field = None if sheet is None else field_of(file, model, where)
        of = {"path": str(latents), "sha256": file.fingerprint, "indices": ends, "between": labels}
        details = {**file.provenance.details, "of": of}
        made = dataclasses.replace(file.provenance, made_by="interpolate", details=details)
        if output is not None:
            write_latents(output, path, names, *combined(file, made), batch_size, overwrite)
            options.echo(f"{len(path)} latents between {', '.join(labels)} in {output}")
        if sheet is not None and field is not None:
            draw(
                sheet, path, names, file, field, where, made, batch_size, network_batch, threads,
                columns=count, overwrite=overwrite,
            )  # fmt: skip
            options.echo(f"{len(path)} images in {sheet}")
