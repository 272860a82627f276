"""Encodings that begin with noise: the first steps are made by adding noise to the image, and not by the solver.

Near the image an ODE solver's latent keeps the image's structure: flat areas, above all, leave their trace. Where the
first K steps are made by the process that the model was trained on, x̄_K = x_0 + √(σ_K² - σ_0²)·z, nothing of the
smallest structures is left to leave one. The price is that they do not come back: the latent is that of an image with
noise. σ_0 is the noise level at which the image lies, 0 or σ_1.

Source: Staniszewski et al. 2024, arXiv 2410.23530.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from odeddim.solvers.stochastic import noise
from odeddim.types import InputError, Solver, State

FORWARD = "forward"
STEP = (1 << 32) - 1
"""The `step` of the noise (`odeddim.noise`): no step of a run, nor x_T, has the same noise."""


@dataclass(frozen=True)
class Start:
    """How an encoding begins.

    Attributes:
        steps: K, the number of first steps that are made by adding noise.
        seed: The seed of the noise.
    """

    steps: int
    seed: int = 0

    @classmethod
    def of(cls, words: str) -> Start:
        """The start in words: "forward:K" or "forward:K:SEED".

        Raises:
            InputError: If it is something else.

        Example:
            >>> from odeddim.ode.starts import Start
            >>> Start.of("forward:3")
            Start(steps=3, seed=0)
        """
        kind, *numbers = words.split(":") if isinstance(words, str) else [""]
        if (
            kind != FORWARD
            or not 1 <= len(numbers) <= 2
            or not all(each.isascii() and each.isdigit() for each in numbers)
        ):
            raise InputError(
                f"start must be 'forward:K', K steps made by adding noise, or 'forward:K:SEED', not {words!r:.60}"
            )
        return cls(*map(int, numbers))

    def check(self, solver: Solver, steps: int) -> None:
        """Raise an InputError if a solver cannot go on from there, or has no such node.

        Args:
            solver: The row.
            steps: The number of its steps.
        """
        if solver.adaptive:
            raise InputError(f"solver {solver.name!r} chooses its own steps, so it has no node {self.steps}: {OTHERS}")
        if solver.reversible:
            raise InputError(
                f"an encoding that begins with noise does not come back to its images, which is what solver "
                f"{solver.name!r} is for: {OTHERS}"
            )
        if not 1 <= self.steps < steps:
            raise InputError(
                f"start='forward:{self.steps}' takes {self.steps} of the {steps} steps of the run: "
                "K must be at least 1 and less than the steps"
            )

    def begun(self, data: Tensor, nodes: Tensor, first: int) -> State:
        """The state from which the solver goes on.

        Args:
            data: What is encoded, (B, *).
            nodes: The noise levels of the run, (N+1,) float64, rising.
            first: The index of the first image: image i gets the noise of (seed, first + i).

        Returns:
            The state at node K, of data's dtype and device.
        """
        low, sigma = float(nodes[0]), float(nodes[self.steps])
        fresh = noise(len(data), tuple(data.shape[1:]), seed=self.seed, start=first, step=STEP).to(data)
        return State(data.add(fresh, alpha=math.sqrt(sigma**2 - low**2)), sigma)


OTHERS = "give a solver with fixed steps, such as 'unipc-2' or 'euler'"
