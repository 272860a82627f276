"""Trajectories beside what a job makes: where they go, and the run that writes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from odeddim.latents.provenance import Provenance
from odeddim.latents.trajectory_file import TrajectoryRun
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.runs.dense import check_levels, check_shows
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import SUFFIXES
from odeddim.storage.workers import SharedRun, Together
from odeddim.trajectories import trajectory
from odeddim.types import InputError, State

OWN_STEPS = "images with steps of their own, as of tol=..., share no nodes: give steps=... for trajectories"
"""Why a run with a tolerance has no trajectories."""


@dataclass(frozen=True)
class Recording:
    """Where a job keeps the trajectories of its runs.

    Attributes:
        path: The file, t.h5, which `odeddim.Trajectory.load` opens.
        at: The noise levels that are kept; None for all nodes of the run.

    Example:
        >>> import odeddim, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> keep = odeddim.jobs.Recording(folder / "t.h5", at=[1.0, 10.0])
        >>> made = odeddim.jobs.encode(None, folder / "z.h5", model="exact-samples", count=2, steps=4, trajectory=keep)
        >>> odeddim.Trajectory.load(folder / "t.h5").xbar.shape
        torch.Size([2, 2, 1, 28, 28])
    """

    path: Path
    at: Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def of(
        cls, place: str | Path | Recording | None, unfit: str, plan: Plan, others: Sequence[Path | None], *, up: bool
    ) -> Recording | None:
        """What a user gave as a recording; None for none.

        Args:
            place: What the user gave: by default all nodes are kept.
            unfit: What else the user gave that a recording excludes, as a sentence; "" for nothing.
            plan: The plan of the run.
            others: The other files of the job.
            up: Whether the run encodes.

        Raises:
            InputError: If the run has no trajectory of many images, or its file cannot be written to its place.
        """
        if place is None:
            return None
        if unfit:
            raise InputError(unfit)
        found = place if isinstance(place, Recording) else cls(Path(place))
        found._check(plan, others, up=up)
        return found

    def _check(self, plan: Plan, others: Sequence[Path | None], *, up: bool) -> None:
        if any(other is not None and other.resolve() == self.path.resolve() for other in others):
            raise InputError(f"{self.path} is another file of this run: give the trajectories a name of their own")
        check_place(self.path, suffixes=SUFFIXES)
        if plan.portable:
            raise InputError("portable=True keeps no trajectory: leave out trajectory=..., or portable=True")
        check_shows(plan, State(plan.nodes[:0], float(plan.nodes[0]) if up else plan.top))
        if self.at is not None:
            check_levels(self.at, plan)
        elif plan.solver.adaptive:
            raise InputError(
                f"each batch of solver {plan.solver.name!r} has nodes of its own: say with at=... which noise levels "
                "to keep"
            )

    def levels(self, plan: Plan, *, up: bool) -> list[float]:
        """The noise levels that are kept, in the order of the run."""
        rising = plan.nodes.tolist() if self.at is None else check_levels(self.at, plan)
        return rising if up else rising[::-1]


class Walk:
    """Runs states and keeps the points of the last run.

    Attributes:
        at: The noise levels that are kept; None for all nodes of the run.
        passed: x̄ and ε at the points of the last run, (M, B, *) each, on the CPU.
    """

    def __init__(self, at: Sequence[float] | None) -> None:
        self.at = at
        self.passed: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, recording: Recording | None) -> Walk | None:
        """What keeps the points of a recording; None for none."""
        return None if recording is None else cls(recording.at)

    def __call__(self, state: State, model: VectorField, plan: Plan) -> State:
        """The end of a run."""
        path = trajectory(state, model=model, plan=plan, at=self.at, keep="cpu")
        self.passed = path.xbar, path.eps
        assert path.end is not None
        return path.end


class Points:
    """The points of runs on their way to a file.

    Attributes:
        recording: What is kept.
        run: The run that writes the file.
    """

    def __init__(self, recording: Recording, run: TrajectoryRun) -> None:
        self.recording, self.run = recording, run

    @property
    def words(self) -> str:
        """What the last line of a job says of them."""
        return f"; {self.run.points} points of each in {self.recording.path}"

    def write(self, start: int, stop: int, passed: tuple[Tensor, Tensor] | None) -> None:
        """Write the points of images start, ..., stop-1, as of `Walk.passed`, if the file lacks them."""
        if passed is not None and self.run.holds(start, stop):
            self.run.write(start, stop, *passed)


@contextlib.contextmanager
def opened(
    recording: Recording | None,
    names: Sequence[str],
    of_first: Callable[[int], Provenance],
    plan: Plan,
    *,
    up: bool,
    overwrite: bool,
) -> Iterator[Points | None]:
    """The file of a recording, to be written; None where nothing is recorded.

    Args:
        recording: The recording.
        names: The names of the images.
        of_first: The provenance of the first n images.
        plan: The plan.
        up: Whether the run encodes.
        overwrite: Whether to begin anew.
    """
    if recording is None:
        yield None
        return
    levels, every = recording.levels(plan, up=up), recording.at is None
    with TrajectoryRun(
        recording.path, names, of_first(len(names)), plan, levels, every=every, overwrite=overwrite, of_first=of_first
    ) as run:
        yield Points(recording, run)


def together(run: SharedRun, points: Points | None) -> Together:
    """The run of a job and that of its recording, whose batches are computed once."""
    return Together([run] if points is None else [run, points.run])
