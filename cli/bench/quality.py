"""`odeddim bench quality`: how good samples are, DDIM's Tables 1 and 3, for any solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim import defaults
from odeddim.cli import options
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items

ETAS = ("0", "0.2", "0.5", "1", "hat")


class Eta(click.ParamType[str]):
    """A number, or "hat"."""

    name = "eta"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        if text in ("hat", "σ̂", "sigma-hat"):
            return "hat"
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number < 100:
            self.fail(f"{value!r} is no η: give numbers from 0 (the ODE) to 1 (DDPM), or hat for σ̂", param, ctx)
        return f"{number:g}"


@click.command("quality")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(4, options.MOST_NEW),
    default=160,
    show_default=True,
    help="How many samples of each.",
)
@click.option(
    "--eta",
    "etas",
    type=Items(Eta()),
    default=None,
    metavar="LIST",
    help="DDIM's η, and hat for σ̂.  [default: 0,0.2,0.5,1,hat; none with --solvers]",
)
@shared.solvers(None, "  [default: none but DDIM's family]")
@click.option("--grid", default="linear", show_default=True, metavar="NAME|FILE", help="Of the lines of --eta.")
@shared.steps("10,20,50")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    default=None,
    metavar="IMAGES",
    help="Real images to compare with.  [default: of built-in models 2,048 test images of Fashion-MNIST]",
)
@shared.features
@click.option(
    "--paper",
    type=click.Choice(["cifar10", "celeba", "bedroom", "church"]),
    default=None,
    help="Say that the model and --reference are the paper's own of this data set: its FIDs stand beside the rows on "
    "linear and quadratic grids. Refused for another shape of images, another schedule, and features that are not the "
    "FID's.",
)
@options.seed
@options.size
@options.end
@options.tolerances
@shared.common
def command(
    run: shared.Bench,
    count: int,
    etas: list[str] | None,
    solvers: list[str] | None,
    grid: str,
    steps: list[int],
    reference: Path | None,
    features: str | None,
    paper: str | None,
    seed: int,
    size: tuple[int, ...] | None,
    end: str,
    settings: dict[str, Any],
) -> None:
    """Sample by DDIM's family (η from 0 to 1, and σ̂) and by any solver, and compare the samples with real images.

    Fréchet distance, KID, precision and recall of the features of exactly so many samples; sample i depends on the
    seed and i only. For the FID give the Inception network's weights, --features inception:WEIGHTS.pth; the built-in
    model comes with a small classifier of Fashion-MNIST, whose distances are no FID. Needs torchmetrics:
    pip install 'odeddim[metrics]'.

    \b
    Examples:
      odeddim bench quality
      odeddim bench quality -n 1000 --eta 0,1 --steps 10,20,50,100
      odeddim bench quality --solvers euler@quadratic,dpmpp-2m,ab3 --steps 10,20
      odeddim bench quality --model MODEL --reference photos/ --features inception:WEIGHTS.pth -n 50000 --grid quadratic
    """
    from odeddim.bench import quality as bench
    from odeddim.bench.harness import expected
    from odeddim.jobs.sample import shape_for
    from odeddim.jobs.subject import images_for
    from odeddim.models import BUILT_IN
    from odeddim.models.networks.classifier import REFERENCE
    from odeddim.storage.images import check_shape, sample_images

    run.check_folder("quality")
    shape = shape_for(run.field, size)
    if reference is None and run.model.name not in BUILT_IN:
        raise click.UsageError(f"what are the samples of {run.field.name!r} to be compared with? --reference IMAGES")
    image_shape = run.field.image_shape or shape
    network = run.features(features, image_shape)
    if network is None:
        raise click.UsageError(f"which features of {run.field.name!r}'s images? --features NAME or a file")
    lines = []
    for eta in etas or ([] if solvers else ETAS):
        name, its_own = "euler", dict[str, float]()
        if eta == bench.HAT:
            name = "ddpm-sigma-hat"
        elif float(eta):
            name, its_own = defaults.SAMPLE_WITH_ETA, {"eta": float(eta)}
        lines += [bench.Sampled(each, eta) for each in run.runs([f"{name}@{grid}"], steps, end, its_own)]
    lines += [bench.Sampled(each) for each in run.runs(solvers or (), steps, end, settings)]
    real, noted = images_for(run.field, reference or REFERENCE), str(reference or "2,048 test images of Fashion-MNIST")
    check_shape(real, image_shape, reference or "the package")
    others = sample_images() if reference is None else None
    shown = min(bench.SHOWN, count)
    with run.stand((count + shown) * sum(expected(line.run) for line in lines), count) as stand:
        table = bench.quality(
            stand,
            lines,
            count,
            shape,
            network,
            lambda start, stop: real[start:stop],
            len(real),
            seed=seed,
            end=end,
            paper=paper,
            source={"reference": noted},
            others=None if others is None else (lambda start, stop: others[start:stop], len(others)),
        )
    run.deliver(table)
