"""`odeddim bridge`: images of one model made images of another."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import click

from odeddim import defaults
from odeddim.cli import options

ERROR = "cycle_error"  # the name of the figure in the files


@click.command("bridge")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder for PNGs, a sheet.png or a file.h5.",
)
@click.option("-n", "--count", type=click.IntRange(1), default=None, help="Only the first so many images.")
@click.option("--to", "target", required=True, metavar="NAME|PATH", help="The model that decodes; --model encodes.")
@click.option("--to-label", type=click.IntRange(0), default=None, help="Its class.")
@click.option("--to-prompt", metavar="TEXT", default=None, help="Its prompt.")
@click.option("--to-negative-prompt", metavar="TEXT", default=None, help="What its guidance leads away from.")
@click.option("--to-guidance", type=float, metavar="W", default=1.0, help="Its guidance.  [default: 1]")
@click.option(
    "--to-guidance-interval", type=options.Interval(), metavar="LOW,HIGH", default=None, help="Where that holds."
)
@click.option("--cycle/--no-cycle", default=True, help="Go back too, for the cycle error: 3 times the evaluations.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the cycle errors of all images as CSV.")
@options.model
@options.solver(defaults.BRIDGE)
@options.steps
@options.grid
@options.end
@options.tolerances
@options.machine
@options.network_batch
@options.overwrite
def command(
    images: Path | None,
    output: Path,
    count: int | None,
    target: str,
    to_label: int | None,
    to_prompt: str | None,
    to_negative_prompt: str | None,
    to_guidance: float,
    to_guidance_interval: tuple[float, float] | None,
    cycle: bool,
    as_csv: bool,
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
    overwrite: bool,
    **settings: Any,
) -> None:
    """Encode IMAGES with one model (--model) and decode them with another (--to): a dual diffusion implicit bridge.

    The state x̄ is handed over at the lower of the two σ_T. Both models may be one under two conditions: --label names
    the source's class and --to-label the target's. A diffusion model and a rectified flow meet as well.

    The cycle error of an image is the rms over its pixels, in [-1, 1], between it and itself there and back. Each PNG
    and a file.h5 keep it (cycle_error), --csv prints them all. A sheet shows each image, what became of it, and what
    came back. IMAGES and resuming are as of `odeddim encode`.

    \b
    Examples:
      odeddim bridge -n 16 --to fashion-mnist-flow -o sheet.png
      odeddim bridge photos/ --model A --to B -o out/ --steps 100
      odeddim bridge photos/ --model A --to B -o out/ --steps 100 --csv > errors.csv
      odeddim bridge photos/ --model M --label 207 --to M --to-label 281 -o out/
    """
    from dataclasses import asdict

    import torch

    from odeddim.bridges import between
    from odeddim.cli.running import (
        at_once,
        details_of,
        evaluated,
        field_on,
        first_names,
        images_for,
        in_blocks,
        lasting,
        machine,
        of_all,
        progress,
        so_far,
        warn_of_range,
    )
    from odeddim.latents.latent_file import provenance_of
    from odeddim.storage.atomic import check_place
    from odeddim.storage.outputs import open_output

    if not output.is_dir():
        check_place(output, images)
    where = machine(device, dtype)
    to = {
        "label": to_label, "prompt": to_prompt, "negative_prompt": to_negative_prompt,
        "guidance": to_guidance, "interval": to_guidance_interval,
    }  # fmt: skip
    source, other = field_on(model, where), field_on(target, where, said=to)
    over = between(source, other, solver or defaults.BRIDGE, steps=steps, grid=grid, end=end, **settings)
    for field in (source, other):
        in_blocks(field, over.row, where, network_batch, threads)
    given = images_for(source, images)
    names = first_names(given, count, images)
    size = at_once(other, over.row, batch_size)
    half = functools.partial(
        provenance_of, solver=over.row.name, grid=grid or over.row.grid, made_by="bridge",
        settings=lasting(settings, over.row),
    )  # fmt: skip
    details = details_of(other, over.row, where, size) | ({"cycle": True} if cycle else {})
    details["images"] = given.identity(images, len(names))
    details["source"] = asdict(half(source, nodes=over.source_nodes))
    made = asdict(half(other, nodes=over.target_nodes, **details))
    is_sheet = output.suffix.lower() == ".png" and not output.is_dir()
    began, largest, here = time.perf_counter(), 0.0, 0
    drawn: list[tuple[str, float]] = []  # of a sheet, which keeps none
    with (
        open_output(output, names, made, overwrite=overwrite, columns=min(len(names), 4) if is_sheet else None) as out,
        progress(len(names), "bridging", out.done) as advance,
    ):
        for start, stop in out.batches(size):
            x_0 = given[start:stop].to(where.state)
            found = over.cross(x_0, cycle=cycle)
            errors = {} if found.error is None else {ERROR: found.error}
            drawn += zip(names[start:stop], errors[ERROR].tolist(), strict=True) if is_sheet and errors else ()
            row = [x_0.to(found.images), found.images, *([] if found.again is None else [found.again])]
            out.write(start, stop, torch.cat(row, dim=3) if is_sheet else found.images, errors)
            largest, here = max(largest, float(found.images.abs().max())), here + stop - start
            advance(stop - start)
    warn_of_range(largest)
    done, total = out.done, len(names)
    options.echo(
        f"{so_far(done, total)} images in {output}{of_all(done, total, here)}: {source.name} to {other.name} at "
        f"σ = {over.sigma:.6g}, {over.row.name}, {evaluated(here, source, other)}, {time.perf_counter() - began:.1f} s",
        err=as_csv,
    )
    if cycle:
        _tell(drawn or out.figures(ERROR), len(names), as_csv=as_csv)


def _tell(found: list[tuple[str, float]], total: int, *, as_csv: bool) -> None:
    """The cycle errors, as CSV or in a line."""
    import csv
    import sys
    from statistics import median

    if as_csv:
        table = csv.writer(sys.stdout)
        table.writerow(["name", "cycle_error"])
        table.writerows(found)
    elif found:
        worst, name = max((error, name) for name, error in found)
        those = "" if len(found) == total else f" of {len(found)} images"
        options.echo(
            f"cycle error{those} (rms, images in [-1, 1]): median {median(error for _, error in found):.3g}, "
            f"worst {worst:.3g} ({name})"
        )
