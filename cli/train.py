"""`odeddim train`: a model of one's own images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options

if TYPE_CHECKING:
    from odeddim.train.run import Progress


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The model's folder, MODEL.")
@click.option("--validation", default=None, type=click.Path(path_type=Path), help="Held-out images, for their loss.")
@click.option("--resume", is_flag=True, hidden=True)  # of earlier versions; refuses where there is no run
@click.option(
    "--predicts",
    type=click.Choice(["eps", "flow"]),
    default=None,
    help="eps: DDPM's noise, linear schedule. flow: rectified flow's velocity.  [default: eps]",
)
@click.option("--steps", type=click.IntRange(1), default=None, help="Steps in all.  [default: 20000]")
@click.option(
    "--batch-size", type=click.IntRange(1, options.MOST_AT_ONCE), default=None, help="Images per step.  [default: 64]"
)
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=None, help="Of Adam.  [default: 0.001]"
)
@click.option(
    "--ema", type=click.FloatRange(0, 1, max_open=True), default=None, help="Of the weights.  [default: 0.999]"
)
@click.option(
    "--seed", type=click.IntRange(0, options.MOST_SEED), default=None, help="Of weights, order and noise.  [default: 0]"
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default=None,
    help="Of the arithmetic; the weights stay float32.  [default: bfloat16 on a GPU that has it, else float32]",
)
@click.option("--channels", type=click.IntRange(4), default=None, help="Width of the first level.  [default: 32]")
@click.option(
    "--multipliers",
    type=options.Items(click.IntRange(1)),
    default=None,
    metavar="LIST",
    help="Width of each level over the first.  [default: 1,2,4]",
)
@click.option("--blocks", type=click.IntRange(1), default=None, help="Residual blocks per level.  [default: 2]")
@click.option(
    "--attention",
    type=options.Items(click.IntRange(1)),
    default=None,
    metavar="LIST",
    help="Sizes in pixels whose levels have self-attention.  [default: 7]",
)
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=None, help="[default: 0]")
@click.option("--checkpoint-every", type=click.IntRange(1), default=None, help="In steps.  [default: 1000]")
@click.option("--samples-every", type=click.IntRange(1), default=None, help="In steps.  [default: 5000]")
@click.option("--device", default=None, metavar="cpu|cuda|...", help="Where to train.  [default: a GPU if any]")
def command(data: Path, output: Path, validation: Path | None, resume: bool, device: str | None, **given: Any) -> None:
    """Train a U-Net on the images of DATA: DDPM's loss and linear schedule, or rectified flow's; averaged weights.

    DATA is a folder, .npz, .npy, IDX (MNIST's format, gzip or not) or HDF5; all images of one square size. MODEL gets
    the model, a checkpoint every so many steps, log.csv and sample sheets; `--model MODEL` uses it at any time.
    A run that was stopped, by whatever, goes on with the same command; so does a complete one with a larger --steps.
    Other settings than those it was begun with are refused; those left out are taken from it.

    \b
    Examples:
      odeddim train train-images-idx3-ubyte.gz --validation t10k-images-idx3-ubyte.gz -o MODEL
      odeddim train photos32/ -o MODEL --multipliers 1,2,2 --attention 16 --steps 100000
      odeddim train photos32/ -o FLOW --predicts flow
      odeddim train photos32/ -o MODEL --steps 150000             more steps of the run in MODEL
    """
    import shlex
    import sys
    from dataclasses import fields, replace

    from odeddim.storage.workers import rank

    if rank()[1] > 1:
        raise click.UsageError("several processes would write one model's folder: run `odeddim train` without torchrun")

    import torch

    from odeddim.cli.running import machine
    from odeddim.storage.images import open_images
    from odeddim.train.run import CHECKPOINT, Settings, saved_settings, saved_step, train

    place = machine(device, "float32").device
    given = {name: value for name, value in given.items() if value is not None}
    names = {field.name for field in fields(Settings)}
    fast = place.type == "cuda" and torch.cuda.is_bf16_supported()
    begun = resume or (output / CHECKPOINT).exists()
    base = saved_settings(output) if begun else Settings(precision="bfloat16" if fast else "float32")
    settings = replace(base, **{name: value for name, value in given.items() if name in names})
    architecture = {name: value for name, value in given.items() if name not in names}
    made = saved_step(output) if begun else 0
    if 0 < made < settings.steps:
        options.echo(f"{output}: going on from step {made}", err=True)
    with _reporter(settings.steps) as report:
        train(
            open_images(data),
            output,
            validation=None if validation is None else open_images(validation),
            architecture=architecture,
            settings=settings,
            device=place,
            command=shlex.join(["odeddim", *sys.argv[1:]]),
            report=report,
        )
    if made >= settings.steps:
        options.echo(f"{output} is complete, with {made} steps: a larger --steps goes on")
    else:
        options.echo(f"{output} holds the model: try `odeddim sample --model {output} -o sheet.png`")


@contextlib.contextmanager
def _reporter(steps: int) -> Iterator[Callable[[Progress], None]]:
    """What tells the user how far the run is: a bar on a terminal, elsewhere a line for every row of the log."""
    from datetime import timedelta

    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    from odeddim.cli.running import errors

    def words(progress: Progress) -> str:
        left = timedelta(seconds=round((progress.steps - progress.step) / progress.rate))
        validated = "" if progress.validation_loss is None else f", validation {progress.validation_loss:.5f}"
        return f"loss {progress.loss:.5f}{validated}, {progress.rate:.1f} steps/s, {left} left"

    if not errors.is_terminal:

        def line(progress: Progress) -> None:
            if progress.logged:
                options.echo(f"step {progress.step}: {words(progress)}", err=True)

        yield line
        return
    with Bars(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=errors) as bars:
        task = bars.add_task("starting", total=steps)
        yield lambda progress: bars.update(task, completed=progress.step, description=words(progress))
