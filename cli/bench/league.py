"""`odeddim bench league`: every solver at the same numbers of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odeddim.bench import defaults
from odeddim.cli import options, preparation
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items
from odeddim.defaults import MOST_STEPS

if TYPE_CHECKING:
    from odeddim.storage.preparation import Preparation


@click.command("league")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    default=None,
    help=f"The number of images, and of noises.  [default: {defaults.LEAGUE.count}]",
)
@shared.solvers((), "  [default: every solver with a fixed number of evaluations a step, on its recommended grid]")
@click.option(
    "--plan",
    "plans",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="The file of a further run, plan.json, which takes part with the smallest of the numbers that it keeps. Can "
    "be repeated.",
)
@click.option(
    "--evaluations",
    type=Items(click.IntRange(1, MOST_STEPS)),
    default=",".join(map(str, defaults.LEAGUE.steps)),
    show_default=True,
    metavar="LIST",
    help="Numbers of evaluations of the network, comma-separated. A solver takes the most steps that need no more, in "
    "either direction.",
)
@click.option(
    "--best",
    "places",
    type=click.IntRange(1),
    default=defaults.PLACES,
    show_default=True,
    help="How many runs are printed by each error. The files hold all, and so do --csv and --json.",
)
@options.seed
@preparation.prepare
@options.end
@shared.common
def command(
    run: shared.Bench,
    images: Path | None,
    count: int | None,
    solvers: list[str] | None,
    plans: tuple[Path, ...],
    evaluations: list[int],
    places: int,
    seed: int,
    prepare: Preparation | None,
    end: str,
) -> None:
    """Compare every solver with every other at the same numbers of evaluations of the network.

    Each run encodes IMAGES, decodes them again, and decodes noise. It is placed by the round trip, by the error of its
    latents and by the error of its decoded images. The distances are to a reference that shares no code with the
    solvers. `signs` is the share of a latent's values that have the right sign, which readers of watermarks need. The
    files also say how white the latents are, and the seconds. Solvers that add noise are measured by their decoded
    images only. Without IMAGES, the package's sample images are used.

    For a built-in model, all solvers take about a quarter of an hour of one core. Several processes on one folder share
    the work. Use 64 images or more for results that you quote.

    \b
    Examples:
      odeddim bench league
      odeddim bench league --solvers euler@log,unipc-2,belm,ddpm --evaluations 5,10 -n 64
      odeddim bench league photos/ --model MODEL --resize model -o mine
      odeddim bench league --plan plan.json --evaluations 20 --csv > table.csv
    """
    from odeddim import jobs
    from odeddim.bench.standings import reversals, standings

    table = jobs.bench.league(
        run.workbench, images, count=count, solvers=solvers or (), plans=plans, evaluations=evaluations, seed=seed,
        end=end, prepare=prepare,
    )  # fmt: skip
    run.print(table, standings(table, places), reversals(table.rows))
