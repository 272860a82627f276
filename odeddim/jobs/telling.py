"""The last line of a job and its warnings: how many images there are, their evaluations, and which have failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from odeddim.jobs.work import warn
from odeddim.ode.field import VectorField
from odeddim.ode.portable import MARGIN, NOT_CERTIFIED, uncertain
from odeddim.types import State

NAMED = 8  # the most images that a warning names
WILD = 3.0  # |x| is larger in no image


def warn_of_range(largest: float, what: str = "the images reach ±{:.3g} where data lie within ±1") -> None:
    """Warn if images, or the rms of latents, are so large that the run must have been unstable."""
    if largest > WILD:
        advice = "this solver is unstable on this grid; take more steps, another grid or another solver"
        warn(f"{what.format(largest)}: {advice}")


class Tally:
    """Counts how many images took how many steps to keep a tolerance, and which did not keep it."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._steps: Counter[int] = Counter()
        self._worst: list[tuple[float, str]] = []
        self._missed = 0

    def add(self, steps: torch.Tensor, error: torch.Tensor, names: Sequence[str]) -> None:
        """Count the images of a batch: their steps (B,), errors (B,) and names."""
        self._steps.update(steps.tolist())
        missed = [(e, name) for e, name in zip(error.tolist(), names, strict=True) if not e <= self._tolerance]
        self._missed += len(missed)
        self._worst = sorted([*self._worst, *missed], reverse=True)[:NAMED]

    def tell(self) -> str:
        """The steps taken, in words. It warns of the images that did not keep the tolerance, the worst first."""
        if self._missed:
            named = ", ".join(f"{name!r} ({error:.1e})" for error, name in self._worst)
            more = f" and {self._missed - NAMED} more" if self._missed > NAMED else ""
            warn(
                f"{self._missed} of {self._steps.total()} images do not keep {self._tolerance:g} "
                f"with {max(self._steps)} steps: {named}{more}"
            )
        return ", ".join(f"{steps} steps for {count}" for steps, count in sorted(self._steps.items()))


def so_far(done: int, total: int) -> str:
    """How many images there are, for the beginning of the last line."""
    return f"{total}" if done == total else f"{done} of {total}"


def of_all(done: int, total: int, here: int) -> str:
    """The part of the last line about images that this process has not made itself."""
    if done < total:
        return (
            f" so far, {here} by this process (another process is at work on the other {total - done}, and goes on; "
            "if it is stopped, the same command makes them)"
        )
    return f" ({here} now, the rest was there already)" if here < total else ""


class Spent:
    """The evaluations of a field from now on. It may have made others before, in another job.

    Args:
        field: The field.
    """

    def __init__(self, field: VectorField) -> None:
        self._field, self._before = field, field.counts

    @property
    def rows(self) -> int:
        """The images that were evaluated, each as often as it was."""
        return self._field.rows - self._before[1]

    @property
    def filled(self) -> int:
        """What was evaluated beside them to fill batches."""
        return self._field.filled - self._before[2]


def evaluated(images: int, spent: Spent) -> str:
    """The part of the last line about the evaluations that were made for so many images."""
    if not images:
        return "nothing left to do"
    return f"{spent.rows / images:g} evaluations per image{_filling(spent.filled, images)}"


def _filling(filled: int, images: int, what: str = "to fill batches") -> str:
    return f", {filled / images:.4g} more {what}" if filled > 0 else ""


class Margins:
    """Which images of a portable run are not certified.

    Args:
        portable: Whether the run is portable.
    """

    def __init__(self, portable: bool) -> None:
        self.portable, self._count = portable, 0
        self._told: list[str] = []  # the first that are not certified

    def add(self, report: Mapping[str, torch.Tensor], names: Sequence[str]) -> None:
        """Look at what a run reports of images with these names."""
        if MARGIN not in report:
            return
        found = [names[i] for i in uncertain(report[MARGIN])]
        self._told += [repr(name) for name in found[: NAMED - len(self._told)]]
        self._count += len(found)

    def words(self) -> str:
        """What the last line says of it. It warns of the images that are not certified."""
        if not self.portable:
            return ""
        if not self._count:
            return ", certified portable"
        more = f" and {self._count - NAMED} more" if self._count > NAMED else ""
        warn(NOT_CERTIFIED.format(f"{', '.join(self._told)}{more} {'is' if self._count == 1 else 'are'}"))
        return f", certified portable but for {self._count}"


class Reports:
    """Sums what the solver reports of the images of each batch, for the last line of a run."""

    def __init__(self) -> None:
        self.images = 0
        self._told: list[str] = []  # the first that did not converge
        self._failed, self._residual = 0, 0.0
        self._evaluations, self._fewest, self._most, self._reported = 0, 0, 0, 0
        self._floors = 0.0
        self._rounds: set[int] = set()
        self._change = 0.0

    def add(self, state: State, names: Sequence[str]) -> None:
        """Add the report of a batch, whose images have these names."""
        self.images += len(names)
        counts = state.report.get("evaluations")
        if counts is not None:
            self._fewest = min(int(counts.min()), self._fewest if self._reported else int(counts.min()))
            self._most = max(self._most, int(counts.max()))
            self._evaluations += int(counts.sum())
            self._reported += len(names)
        self._floors += float(state.report.get("floor", torch.zeros(1)).sum())
        if (rounds := state.report.get("rounds")) is not None:
            self._rounds |= set(rounds.tolist())
            self._change = max(self._change, float(state.report["residual"].max()))
        converged, residual = state.report.get("converged"), state.report.get("residual")
        if converged is not None and residual is not None and not bool(converged.all()):
            failed = [repr(name) for name, good in zip(names, converged.tolist(), strict=True) if not good]
            self._told += failed[: NAMED - len(self._told)]
            self._failed += len(failed)
            self._residual = max(self._residual, float(residual[~converged].max()))

    def evaluations(self, spent: Spent, *, certified: bool = False) -> str:
        """The evaluations per image in words; those for certificates and to fill up batches are given apart."""
        if not self._reported:
            return evaluated(self.images, spent)
        mean = self._evaluations / self._reported
        text = f"{mean:.4g} evaluations per image ({self._fewest} to {self._most})"
        what = "for certificates and to fill batches" if certified else "to fill batches"
        return text + _filling(spent.rows + spent.filled - self._evaluations, self.images, what)

    def floor(self) -> str:
        """The mean error of a latent model's autoencoder, in words; "" for other models."""
        return f", the autoencoder alone loses {self._floors / self.images:.3g} (rms)" if self._floors else ""

    def rounds(self) -> str:
        """The rounds of a run in parallel in words, with its residual; "" for other runs."""
        if not self._rounds:
            return ""
        return f", {min(self._rounds)} to {max(self._rounds)} rounds, residual up to {self._change:.1e}"

    def warn(self, end: str) -> None:
        """Warn of the images whose iteration did not converge, with advice."""
        if not self._failed:
            return
        more = f" and {self._failed - NAMED} more" if self._failed > NAMED else ""
        warn(
            f"{self._failed} of {self.images} images did not converge (residual up to {self._residual:.0e}): "
            f"{', '.join(self._told)}{more}; "
            f"{'end=sigma_min, ' if end == 'zero' else ''}more steps, another grid or a higher max_nfe=... may help"
        )
