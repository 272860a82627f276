"""The defaults of each bench, the same in Python and on the command line.

This module imports nothing heavy, because `odeddim bench --help` shows these values.
"""

from __future__ import annotations

from dataclasses import dataclass

FOLDER = "bench"
"""The folder of the tables, figures and measurements."""

PAGE = "report.html"
"""The page that `report` writes."""

PLAN = "plan.json"
"""The file to which `find` writes its plan."""

TOLERANCE = 1e-3
"""rtol and atol of adaptive solvers, with which they take about as many evaluations as the other solvers."""


@dataclass(frozen=True)
class Measured:
    """The defaults of a bench.

    Attributes:
        count: The number of images, noises, samples, lines or repetitions.
        solvers: The solvers, SOLVER or SOLVER@GRID.
        steps: The numbers of steps.
    """

    count: int
    solvers: tuple[str, ...]
    steps: tuple[int, ...]


RECONSTRUCTION = Measured(24, ("euler@linear", "euler@quadratic", "ab3", "belm"), (10, 20, 50, 100))
LABELS = ("source",)

QUALITY = Measured(160, (), (10, 20, 50))
ETA = ("0", "0.2", "0.5", "1", "hat")
"""The values of η in `quality` without `solvers`; "hat" is DDPM with the larger variance σ̂."""
GRID = "linear"
"""The grid of the rows with η."""

CONSISTENCY = Measured(16, ("euler@linear", "dpmpp-2m", "ab3", "belm"), (10, 20, 50, 100))

INTERPOLATION = Measured(4, ("euler@linear", "ab3", "ddpm"), (50,))
POINTS = 11
SIDE = 6

TIMING = Measured(5, ("euler",), (10, 20, 50, 100))
BATCHES = (1, 4, 16)

WORK_PRECISION = Measured(
    16,
    ("euler@linear", "euler@log", "heun", "ab2", "ab3", "dpmpp-2m", "unipc-2", "belm", "dopri5"),
    (5, 10, 20, 40, 80),
)
TOLERANCES = (1e-2, 1e-3, 1e-4)
CANDIDATES = (
    "dpmpp-3m", "unipc-2", "ab3", "dpmpp-2m", "ab2", "unipc-1", "belm", "deis-tab2", "bdia", "heun", "euler",
)  # fmt: skip
"""The solvers that `find` tries. The most promising come first: a solver that cannot beat them costs only one run."""

LEAGUE = Measured(12, (), (5, 8, 10, 20, 50))
"""Its `steps` are numbers of evaluations. Its solvers are all that take a fixed number of evaluations a step."""
PLACES = 3
"""The number of runs that `league` prints by each error."""
