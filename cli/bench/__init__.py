"""`odeddim bench`: a command for each table and figure of the paper, and for those the paper did not have."""

from __future__ import annotations

import click

from odeddim.cli.lazy import LazyGroup

COMMANDS = {
    "reconstruction": "Table 2: there and back, and how far the latent is from the true one.",
    "quality": "Tables 1 and 3: how good samples are, over η and steps.",
    "consistency": "Figure 5: one x_T through every solver and number of steps.",
    "time": "Figure 4: seconds over steps and batch sizes, and the solver's own share.",
    "interpolation": "Appendix D.5: lines and grids between latents, and how smooth they are.",
    "work-precision": "Error against evaluations and seconds; which solver is cheapest (--find).",
    "report": "One page with all of them: report.html.",
}


@click.group(
    "bench",
    cls=LazyGroup,
    package=__name__,
    commands=COMMANDS,
    default="reconstruction",
    epilog="Without a command: reconstruction. All work without arguments on the built-in model.",
)
def command() -> None:
    """Compare solvers on a model: the tables and figures of DDIM's paper, and work-precision diagrams.

    Every command prints its table, and leaves it in a folder (-o bench/) as HDF5, JSON and CSV beside its figures. What
    is measured is kept there: a run that was stopped goes on with the same command, and a table with one more solver
    measures that one only. `odeddim bench report` makes one page of them all.

    \b
    Examples:
      odeddim bench
      odeddim bench reconstruction photos/ --model MODEL --solvers euler@quadratic,ab3
      odeddim bench work-precision --find 1e-3
      odeddim bench report -o report.html
    """
