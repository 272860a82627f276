"""`odeddim bench`: a command for each table and figure of the paper, and for some that the paper does not have."""

from __future__ import annotations

import click

from odeddim.cli.lazy import LazyGroup
from odeddim.cli.telling import OPTIONS

COMMANDS = {
    "reconstruction": "Table 2: the errors of the round trip and of the latent.",
    "quality": "Tables 1 and 3: the quality of samples, over η and steps.",
    "consistency": "Figure 5: the same x_T decoded by every solver with every number of steps.",
    "time": "Figure 4: seconds over steps and batch sizes, and the solver's own share.",
    "interpolation": "Appendix D.5: lines and grids between latents, and their smoothness.",
    "work-precision": "Error against evaluations and seconds; the cheapest solver (--find).",
    "league": "Every solver at the same numbers of evaluations: round trip against accuracy.",
    "report": "One page with all tables and figures: report.html.",
}


@click.group(
    "bench",
    cls=LazyGroup,
    package=__name__,
    commands=COMMANDS,
    default="reconstruction",
    shared=OPTIONS,
    epilog="Without a command, reconstruction runs: `odeddim bench photos/` is `odeddim bench reconstruction photos/`. "
    "Every command works without arguments, on the built-in model.",
)
def command() -> None:
    """Compare solvers on a model: the tables and figures of DDIM's paper, and work-precision diagrams.

    Every command prints its table, and writes it to a folder (-o bench/) as HDF5, JSON and CSV, with its figures. The
    folder also keeps the measurements. The same command continues a run that was stopped. A table with one more solver
    measures only that solver. `odeddim bench report` makes one page of all tables and figures.

    \b
    Examples:
      odeddim bench
      odeddim bench photos/ --model MODEL --solvers euler@quadratic,ab3
      odeddim bench work-precision --find 1e-3
      odeddim bench report -o report.html
    """
