"""Trajectory: a sequence of the points of a run, in memory or in a file."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from odeddim.api import Model
from odeddim.latents.trajectory_file import TrajectoryFile
from odeddim.models import load
from odeddim.plans import Plan
from odeddim.runs.dense import PathPoint, between, nearest_interval
from odeddim.storage.animations import Animation
from odeddim.trajectories.drawing import save_animation, save_strip
from odeddim.types import InputError, State

SHOWN, LEVELS = 4, 8
"""How many images, and how many noise levels, a strip shows by default."""
NEVER = "solver {!r} adds no noise, so its steps have no log-probability: take 'ddim-eta' or 'ddpm'"
NOT_ALONE = (
    "a step of solver {!r} depends on earlier points too, so it has no log-probability given the last one: "
    "take 'ddim-eta' or 'ddpm'"
)


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """The points of a run, in its order: a sequence of `PathPoint`.

    `odeddim.trajectory` makes it, and `Trajectory.load` opens one that lies in a file: its points are read when they
    are asked for, so take some of the images first (`of`).

    Attributes:
        sigmas: The noise levels σ, (N+1,) float64 on the CPU: falling for a run that decodes, rising for one that
            encodes.
        plan: The plan of the run.
        every: Whether all nodes of the run were kept, and not the levels of `at=`.
        count: The number of images, B.
        read: read(start, stop) -> x̄ and ε of images start, ..., stop-1, each (N+1, stop-start, *).
        end: The state at the end of the run, bit for bit that of a run without a trajectory; None from a file.

    Example:
        >>> path = odeddim.trajectory(odeddim.noise(2, (1, 28, 28)), steps=5)
        >>> path
        <6 points of 2 images from σ = 157.407 to 0: unipc-2, log grid, 5 steps, end zero>
        >>> path.xbar.shape, path.x0.shape, path.at(0.5).x.shape
        (torch.Size([6, 2, 1, 28, 28]), torch.Size([6, 2, 1, 28, 28]), torch.Size([2, 1, 28, 28]))
        >>> torch.equal(path.end.xbar, path.xbar[-1])
        True
    """

    sigmas: Tensor
    plan: Plan
    every: bool
    count: int
    read: Callable[[int, int], tuple[Tensor, Tensor]] = field(repr=False)
    end: State | None = None

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Open a trajectory file.

        Args:
            path: The file, t.h5, of `odeddim.trajectory(keep=...)` or of `odeddim encode --trajectory`.

        Returns:
            The trajectory of the images that the file holds by now.

        Raises:
            InputError: If the file is no trajectory file, or is damaged.
        """
        file = TrajectoryFile(Path(path))
        return cls(file.levels, file.plan, file.every, file.count, file.read)

    @property
    def xbar(self) -> Tensor:
        """x̄, (N+1, B, *)."""
        return self.read(0, self.count)[0]

    @property
    def eps(self) -> Tensor:
        """ε, (N+1, B, *). At σ = 0 it is that of the Euler step there."""
        return self.read(0, self.count)[1]

    @property
    def x(self) -> Tensor:
        """x = x̄/√(1+σ²), (N+1, B, *): DDPM's units, in which noise has unit variance."""
        xbar = self.xbar
        return xbar / _along((1 + self.sigmas**2).sqrt(), xbar)

    @property
    def x0(self) -> Tensor:
        """The predicted images x̂₀ = x̄ - σ·ε, (N+1, B, *); of a latent model its data, which `to_images` decodes."""
        xbar, eps = self.read(0, self.count)
        return xbar - _along(self.sigmas, xbar) * eps

    def of(self, images: int | slice | Sequence[int]) -> Trajectory:
        """The trajectory of some of the images, in memory.

        Args:
            images: An index, a slice, or several indices.

        Returns:
            The trajectory.

        Raises:
            IndexError: If there is no such image.
            InputError: If these are no indices.
        """
        every = range(self.count)
        try:
            rows = every[images] if isinstance(images, (int, slice)) else [every[i] for i in images]
        except TypeError as error:
            raise InputError(f"images={images!r:.80}: give an index, a slice, or several indices") from error
        rows = [rows] if isinstance(rows, int) else rows
        parts = [self.read(i, i + 1) for i in rows]
        if not parts:
            raise IndexError(f"no images are chosen of {self.count}")
        held = torch.cat([xbar for xbar, _ in parts], dim=1), torch.cat([eps for _, eps in parts], dim=1)
        end = None if self.end is None else self.end[list(rows)]
        return replace(self, count=len(parts), read=held_rows(*held), end=end)

    def __len__(self) -> int:
        """The number of points, N+1."""
        return len(self.sigmas)

    @overload
    def __getitem__(self, n: int) -> PathPoint: ...
    @overload
    def __getitem__(self, n: slice) -> list[PathPoint]: ...
    def __getitem__(self, n: int | slice) -> PathPoint | list[PathPoint]:
        xbar, eps = self.read(0, self.count)
        if isinstance(n, slice):
            return [PathPoint(float(self.sigmas[k]), xbar[k], eps[k]) for k in range(len(self))[n]]
        return PathPoint(float(self.sigmas[n]), xbar[n], eps[n])

    def __iter__(self) -> Iterator[PathPoint]:
        return iter(self[:])

    def __repr__(self) -> str:
        ends = f"from σ = {float(self.sigmas[0]):.6g} to {float(self.sigmas[-1]):.6g}"
        images = f"{self.count} image{'s' if self.count > 1 else ''}"
        return f"<{len(self)} points of {images} {ends}: {self.plan}>"

    def at(self, sigma: float) -> PathPoint:
        """The point at any noise level of the run, without an evaluation.

        Between two nodes x̄ is Hermite's polynomial through these and their neighbours, whose error is that of the run;
        in the interval next to σ = 0 it is the straight line of the Euler step there. ε is the slope dx̄/dσ of that.

        Args:
            sigma: The noise level.

        Returns:
            The point.

        Raises:
            InputError: If the level is outside the run; or it was not kept, and the run was kept at some levels only
                or adds noise.
        """
        try:
            sigma = float(sigma)
        except (TypeError, ValueError) as error:
            raise InputError(f"sigma={sigma!r:.80} is no noise level: give a number") from error
        levels = self.sigmas.tolist()
        if sigma in levels:
            return self[levels.index(sigma)]
        if not self.every:
            raise InputError(f"σ = {sigma:.6g} was not kept: give it with at=..., or leave out at=... for all nodes")
        if self.plan.solver.stochastic:
            raise InputError(
                f"σ = {sigma:.6g} is no node, and between its nodes solver {self.plan.solver.name!r} has no path, "
                "because it adds noise"
            )
        n = nearest_interval(levels, sigma)
        first = max(n - 1, 0)
        return between(self[first : n + 3], n - first, sigma)

    @property
    def deviations(self) -> Tensor:
        """The standard deviation of the noise that each step adds to x, DDIM's σ_t(η), (N,) float64.

        Raises:
            InputError: If the solver adds no noise.
        """
        steps = self._transitions()
        ends = self.sigmas[1:]
        return torch.tensor([deviation for _, deviation in steps], dtype=torch.float64) / (1 + ends**2).sqrt()

    def _transitions(self) -> list[tuple[float, float]]:
        """(weight of ε, deviation of x̄) of each step."""
        transition = self.plan.solver.transition
        if transition is None:
            row = self.plan.solver
            raise InputError((NOT_ALONE if row.stochastic else NEVER).format(row.name))
        if not self.every:
            raise InputError("log-probabilities are those of the run's steps: leave out at=..., so that all are kept")
        return [transition(here, there) for here, there in itertools.pairwise(self.sigmas.tolist())]

    def log_prob(self, model: Model | None = None, *, steps: slice = slice(None)) -> Tensor:
        """The log-probability of each step that was taken, of a solver that adds noise: log p(x_{n+1} | x_n).

        It is the density of x = x̄/√(1+σ²), DDIM's units, at the end of the step: the normal distribution of eq. 12,
        with standard deviation `deviations`. A step without noise (the last one to σ = 0, all at η = 0) has no density;
        its entry is 0, so that sums and ratios of two models leave it out.

        Args:
            model: The model whose steps they are, evaluated again at the stored nodes, with gradients of its
                parameters where grad mode is on and they require them. By default the ε that the run has found,
                without evaluations and without gradients.
            steps: Which of the N steps, to keep fewer activations in memory at once.

        Returns:
            Nats, (N, B) float64, on the device of the points.

        Raises:
            InputError: If the solver adds no noise, not all nodes were kept, or steps is no slice.

        Source:
            Song et al. 2020, arXiv 2010.02502, eq. 12 and 16; used as in Black et al. 2023, arXiv 2305.13301 (DDPO).

        Example:
            >>> x_T = odeddim.noise(2, (1, 28, 28))
            >>> path = odeddim.trajectory(x_T, "ddim-eta", steps=4, eta=1.0)
            >>> new = path.log_prob("fashion-mnist")  # the same model: the ratio of probabilities is 1
            >>> torch.allclose((new - path.log_prob()).exp(), torch.ones(4, 2, dtype=torch.float64), atol=1e-3)
            True
        """
        transitions = self._transitions()
        if not any(deviation > 0 for _, deviation in transitions):
            raise InputError(f"no step of {self.plan} adds noise, so none has a log-probability: give eta= above 0")
        if not isinstance(steps, slice):
            raise InputError(f"steps={steps!r:.80}: give a slice, such as slice(0, 5)")
        evaluate = None if model is None else load(model)
        points, found = self[:], []
        for n in range(len(transitions))[steps]:
            (here, there), (weight, deviation) = points[n : n + 2], transitions[n]
            if deviation == 0:
                found.append(here.xbar.new_zeros(self.count, dtype=torch.float64))
                continue
            sigma = self.sigmas[n]
            eps = here.eps
            if evaluate is not None:
                eps = evaluate(sigma, here.xbar.to(evaluate.device or eps.device)).to(eps.device)
            moved = there.xbar.double() - here.xbar.double() - weight * eps.double()
            size = math.log(deviation / math.hypot(1, there.sigma)) + 0.5 * math.log(2 * math.pi)
            found.append(-0.5 * (moved / deviation).square().flatten(1).sum(dim=1) - size * moved[0].numel())
        return torch.stack(found) if found else self.xbar.new_zeros(0, self.count, dtype=torch.float64)

    def save_strip(
        self,
        path: str | Path,
        *,
        images: Sequence[int] | None = None,
        at: Sequence[float] | None = None,
        model: Model | None = None,
        scale: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Draw a strip, a PNG: for each image a row of x and below it a row of the predicted images x̂₀.

        Args:
            path: The file, strip.png.
            images: The images, by index; by default the first 4.
            at: The noise levels, from the left; by default 8 of the points.
            model: A latent model, whose autoencoder makes images of the data.
            scale: How many times images are enlarged, as of `odeddim.jobs.Pictures`.
            overwrite: Whether to replace a file at `path` that this call has not written.

        Raises:
            InputError: If an argument cannot be used, or the disk does not take the file.
        """
        chosen = self._chosen(images)
        save_strip(chosen._shown(at, LEVELS), chosen.count, Path(path), model, scale, overwrite=overwrite)

    def save_animation(
        self,
        path: str | Path,
        *,
        images: Sequence[int] | None = None,
        at: Sequence[float] | None = None,
        model: Model | None = None,
        fps: int = 10,
        scale: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Draw the run as an animation: in each frame x of the images in a row, and below it the predicted images x̂₀.

        Args:
            path: The file: film.gif, film.webp or film.mp4.
            images, at, model, scale, overwrite: As of `save_strip`; by default all points are shown.
            fps: Frames a second.

        Raises:
            InputError: If an argument cannot be used, or the disk does not take the file.
        """
        film = Animation(Path(path), fps, scale)
        save_animation(self._chosen(images)._shown(at, None), film, model, overwrite=overwrite)

    def _chosen(self, images: Sequence[int] | None) -> Trajectory:
        try:
            return self.of(range(min(SHOWN, self.count)) if images is None else images)
        except IndexError as error:
            raise InputError(f"images={images!r:.80}: the trajectory has {self.count} images") from error

    def _shown(self, at: Sequence[float] | None, most: int | None) -> list[PathPoint]:
        if at is not None:
            try:
                levels = list(at)
            except TypeError as error:
                raise InputError(f"at={at!r:.80}: give a list of noise levels") from error
            if not levels:
                raise InputError("at=... names no noise level to draw: leave it out for the usual ones")
            return [self.at(sigma) for sigma in levels]
        points = self[:]
        if most is None or len(points) <= most:
            return points
        return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def held_rows(xbar: Tensor, eps: Tensor) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """What reads points that are held in memory."""
    return functools.partial(_rows, xbar, eps)  # which, unlike a function inside this one, can be pickled


def _rows(xbar: Tensor, eps: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    return xbar[:, start:stop], eps[:, start:stop]


def _along(levels: Tensor, xbar: Tensor) -> Tensor:
    """(N+1,) as (N+1, 1, ...) on the points' device and in their dtype."""
    return levels.to(xbar.device, xbar.dtype).reshape(-1, *[1] * (xbar.ndim - 1))
