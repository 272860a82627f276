"""`odeddim train`: a model of one's own images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options, preparation
from odeddim.cli.kinds import Assignment, Items
from odeddim.cli.telling import telling

if TYPE_CHECKING:
    from odeddim.train.run import Progress


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder of the model, MODEL.")
@click.option(
    "--validation", default=None, type=click.Path(path_type=Path), help="Held-out images, whose loss is logged."
)
@click.option(
    "--reference",
    default=None,
    type=click.Path(path_type=Path),
    help="Held-out images, whose Fréchet distance from samples is logged at each sample sheet.",
)
@click.option(
    "--features",
    default=None,
    metavar="NAME|FILE",
    help="What the distance is of, as in `odeddim bench quality`: inception:WEIGHTS.pth gives the FID.  [default: the "
    "built-in classifier, for images of 28×28]",
)
@preparation.prepare
@click.option("--resume", is_flag=True, hidden=True)  # of earlier versions; refuses where there is no run
@click.option(
    "--predicts",
    type=click.Choice(["eps", "v", "flow", "edm"]),
    default=None,
    help="What the network predicts. eps: DDPM's noise, linear schedule. v: √α·ε - √(1-α)·x0, the same schedule. flow: "
    "the velocity of a rectified flow. edm: the image, by EDM's loss and preconditioning.  [default: eps]",
)
@click.option("--steps", type=click.IntRange(1), default=None, help="The number of steps in all.  [default: 20000]")
@click.option(
    "--batch-size", type=click.IntRange(1, options.MOST_AT_ONCE), default=None, help="Images per step.  [default: 64]"
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="The learning rate of Adam.  [default: 0.001]",
)
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, max_open=True),
    default=None,
    help="The decay of the averaged weights.  [default: 0.999]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, options.MOST_SEED),
    default=None,
    help="The seed of weights, order of images and noise.  [default: 0]",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default=None,
    help="The dtype of the arithmetic; weights are float32.  [default: bfloat16 on a GPU that has it, else float32]",
)
@click.option("--flips", is_flag=True, default=None, help="Mirror half of the images, chosen at random at each step.")
@click.option(
    "--microbatches",
    type=click.IntRange(1),
    default=None,
    help="Pieces that a batch is cut into, one after another or on the processes of torchrun.  "
    "[default: the number of processes]",
)
@click.option("--compile", is_flag=True, default=None, help="Compile the network by torch.compile.")
@click.option(
    "--tensorboard", is_flag=True, default=None, help="Write the log for TensorBoard too, in MODEL/tensorboard."
)
@click.option(
    "--set",
    "assignments",
    type=Assignment(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Another setting, such as weight_decay=0.01, decay_shape=cosine, decay=1, warmup=500, clip=1, or "
    "ema_half_life=500000 (in images). Can be repeated.",
)
@click.option("--channels", type=click.IntRange(4), default=None, help="Width of the first level.  [default: 32]")
@click.option(
    "--multipliers",
    type=Items(click.IntRange(1)),
    default=None,
    metavar="LIST",
    help="Width of each level, in multiples of --channels.  [default: 1,2,4]",
)
@click.option("--blocks", type=click.IntRange(1), default=None, help="Residual blocks per level.  [default: 2]")
@click.option(
    "--attention",
    type=Items(click.IntRange(1)),
    default=None,
    metavar="LIST",
    help="Sizes in pixels whose levels have self-attention.  [default: 7]",
)
@click.option(
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    default=None,
    help="The share of features that are dropped.  [default: 0]",
)
@click.option(
    "--checkpoint-every", type=click.IntRange(1), default=None, help="Steps between checkpoints.  [default: 1000]"
)
@click.option(
    "--samples-every", type=click.IntRange(1), default=None, help="Steps between sample sheets.  [default: 5000]"
)
@click.option(
    "--device", default=None, metavar="cpu|cuda|...", help="Where to train.  [default: a GPU if there is one]"
)
def command(data: Path, output: Path, validation: Path | None, resume: bool, device: str | None, **given: Any) -> None:
    """Train a U-Net on the images of DATA, by DDPM's loss or another one. The model has averaged weights.

    DATA is a folder, .npz, .npy, IDX (MNIST's format, gzip or not) or HDF5. All images have the same square size, or
    --resize S gives it to them; the other options about images are as in `odeddim encode`. The folder MODEL gets the
    model, checkpoints, log.csv and sample sheets; `--model MODEL` can use it at any time.

    A run that was stopped, for whatever reason, goes on with the same command. A complete run goes on with a larger
    --steps. Settings that are left out are those that the run was begun with; other values are refused. Under torchrun
    the processes share each batch.

    \b
    Examples:
      odeddim train train-images-idx3-ubyte.gz --validation t10k-images-idx3-ubyte.gz -o MODEL
      odeddim train photos32/ -o MODEL --multipliers 1,2,2 --attention 16 --steps 100000
      odeddim train photos/ -o MODEL --resize 64 --skip-bad
      odeddim train photos32/ -o CIFAR --reference cifar10-test/ --features inception:WEIGHTS.pth
      odeddim train photos32/ -o FLOW --predicts flow
      odeddim train photos32/ -o EDM --predicts edm --flips --set ema_half_life=500000
      odeddim train photos32/ -o ADAMW --set weight_decay=0.01 --set decay_shape=cosine --set decay=1
      odeddim train photos32/ -o MODEL --steps 150000             more steps of the run in MODEL
      torchrun --nproc-per-node 4 -m odeddim train photos/ -o FOUR --resize 64 --device cuda
    """
    import shlex
    import sys

    from odeddim.jobs.train import train
    from odeddim.storage.workers import rank
    from odeddim.train.checkpoint import saved_step

    if resume:
        saved_step(output)
    with _reporter(output) as progress:
        run = train(
            data,
            output,
            validation=validation,
            device=device,
            command=shlex.join(["odeddim", *sys.argv[1:]]),
            progress=progress,
            **_settings(given),
        )
    if rank()[0] > 0:
        return
    if run.was_complete:
        options.echo(f"{output} is complete, with {run.steps} steps: a larger --steps goes on")
    else:
        skipped = f" ({run.skipped} file{'s' if run.skipped > 1 else ''} skipped)" if run.skipped else ""
        options.echo(f"{output} holds the model{skipped}: try `odeddim sample --model {output} -o sheet.png`")


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, those of --set among them."""
    assigned = dict(given.pop("assignments"))
    for name in assigned.keys() & given.keys():
        raise click.UsageError(f"--set {name}=...: {name} is an option of its own, --{name.replace('_', '-')}")
    return {name: value for name, value in {**given, **assigned}.items() if value is not None}


@contextlib.contextmanager
def _reporter(output: Path) -> Iterator[Callable[[Progress], None]]:
    """What tells the user how far the run is: a bar on a terminal, elsewhere a line for every row of the log."""
    from datetime import timedelta

    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    from odeddim.cli.progress import errors

    def words(progress: Progress) -> str:
        left = timedelta(seconds=round((progress.steps - progress.step) / progress.rate))
        validated = "" if progress.validation_loss is None else f", validation {progress.validation_loss:.5f}"
        measured = "" if progress.distance is None else f", distance {progress.distance:.3f}"
        return f"loss {progress.loss:.5f}{validated}{measured}, {progress.rate:.1f} steps/s, {left} left"

    drawn = errors.is_terminal and telling.shows
    with contextlib.ExitStack() as stack:
        bars = Bars(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=errors)
        task = bars.add_task("starting", total=None)

        def tell(progress: Progress) -> None:
            if not progress.rate:
                if progress.step:
                    options.echo(f"{output}: going on from step {progress.step}", err=True)
                if drawn:
                    bars.update(task, completed=progress.step, total=progress.steps)
                    stack.enter_context(bars)
                return
            if progress.logged:
                telling.write("progress", unit="training", done=progress.step, total=progress.steps, loss=progress.loss,
                              validation_loss=progress.validation_loss, rate=progress.rate,
                              **({} if progress.distance is None else {"distance": progress.distance}))  # fmt: skip
            if drawn:
                bars.update(task, completed=progress.step, description=words(progress))
            elif progress.logged and telling.shows:
                click.echo(f"step {progress.step}: {words(progress)}", err=True)

        yield tell
