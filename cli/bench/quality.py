"""`odeddim bench quality`: how good samples are, DDIM's Tables 1 and 3, for any solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared

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
@click.option("-n", "--count", type=click.IntRange(4), default=160, show_default=True, help="How many samples of each.")
@click.option(
    "--eta",
    "etas",
    type=options.Items(Eta()),
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
    default="cifar10",
    show_default=True,
    help="Which of the paper's columns stands beside.",
)
@options.seed
@options.size
@options.end
@options.tolerances
@shared.common
def command(
    count: int,
    etas: list[str] | None,
    solvers: list[str] | None,
    grid: str,
    steps: list[int],
    reference: Path | None,
    features: str | None,
    paper: str,
    seed: int,
    size: str | None,
    end: str,
    model: str,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    output: Path,
    overwrite: bool,
    as_csv: bool,
    as_json: bool,
    **settings: Any,
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
    from odeddim.bench.stand import Entry, planned
    from odeddim.cli.running import field_on, images_for, machine, shape_for, warn_of_grid
    from odeddim.images import sample_images
    from odeddim.models import BUILT_IN
    from odeddim.models.classifier import REFERENCE

    where = machine(device, dtype)
    field = field_on(model, where)
    shared.check_folder(output, "quality", field, overwrite=overwrite)
    shape = shape_for(field, size)
    if reference is None and model not in BUILT_IN:
        raise click.UsageError(f"what are the samples of {field.name!r} to be compared with? --reference IMAGES")
    network = shared.features_for(features, model, shape, where)
    if network is None:
        raise click.UsageError(f"which features of {field.name!r}'s images? --features inception:WEIGHTS.pth or a file")
    given, lines = shared.settings_given(settings), []
    for eta in etas or ([] if solvers else ETAS):
        name = "ddpm-sigma-hat" if eta == bench.HAT else "ddim-eta" if float(eta) else "euler"
        its_own = {**given, **({"eta": float(eta)} if name == "ddim-eta" else {})}
        runs = planned(field, [Entry(name, grid)], steps, end, its_own)
        lines += [bench.Sampled(run, eta) for run in runs]
    entries = [Entry.parse(text) for text in solvers or ()]
    lines += [bench.Sampled(run) for run in planned(field, entries, steps, end, given)]
    for key, row in {(line.run.grid, line.run.solver.name): line.run.solver for line in lines}.items():
        warn_of_grid(key[0] if key[0] != "-" else None, field, row)
    real, noted = images_for(field, reference or REFERENCE), str(reference or "2,048 test images of Fashion-MNIST")
    others = sample_images() if reference is None else None
    shown = min(bench.SHOWN, count)
    with shared.stand_on(
        field, where, output, (count + shown) * sum(line.run.evaluations for line in lines), images=count,
        batch_size=batch_size, network_batch=network_batch, threads=threads, overwrite=overwrite,
    ) as stand:  # fmt: skip
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
            source={"reference": noted, "reference_sha256": real.fingerprint()},
            others=None
            if others is None
            else (lambda start, stop: others[start:stop], len(others), {"sha256": others.fingerprint()}),
        )
    shared.deliver(table, output, as_csv=as_csv, as_json=as_json)
