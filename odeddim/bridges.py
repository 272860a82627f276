"""Bridges: encode with one model, decode with another (DDIB, arXiv 2203.08382).

Both models move x̄ = x0 + σ·ε, whatever they predict and whatever labels they take, so the state at a noise level that
both know passes from one to the other as it is, without rescaling. That level is the lower of their two σ_T.

The cycle error says how much of an image is lost on the way to the target and back: the source encodes it, the target
decodes and encodes it, and the source decodes it.

An edit is a bridge of one model to itself, under another condition. Its way up may end at any noise level: what is
above stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults
from odeddim.api import LOWEST_TOP, Model, state_dtype, to_data, to_images
from odeddim.latents.arithmetic import rms
from odeddim.latents.decoding import decoding_plan
from odeddim.models import load
from odeddim.ode.field import VectorField
from odeddim.ode.sizes import Sizes
from odeddim.plans import Grid, Plan, check_encodes, integrate
from odeddim.types import InputError, Settings, Solver, State


@dataclass(frozen=True)
class Bridged:
    """The result of a bridge.

    Attributes:
        images: The images of the target model, (B, C, H, W), nominally in [-1, 1] and not clipped.
        state: The state at the noise level where the models meet.
        again: The images after the way back, (B, C, H, W) of the source model; None without the cycle.
        error: The cycle error of each image, (B,) float64 on the CPU: the rms over pixels of `again` minus the image
            that was given, in [-1, 1]; None without the cycle.
    """

    images: Tensor
    state: State
    again: Tensor | None
    error: Tensor | None


@dataclass(frozen=True)
class Bridge:
    """A bridge between two models.

    Attributes:
        source: The model that encodes.
        target: The model that decodes.
        source_plan: The plan of the source, up to the noise level where the models meet.
        target_plan: The plan of the target, up to the same noise level.
    """

    source: VectorField
    target: VectorField
    source_plan: Plan
    target_plan: Plan

    @property
    def solver(self) -> Solver:
        """The row that walks both plans."""
        return self.source_plan.solver

    @property
    def sizes(self) -> Sizes | None:
        """The sizes of images that both models take; None for any."""
        ours, theirs = self.source.image_sizes, self.target.image_sizes
        return ours or theirs if ours is None or theirs is None else ours.common(theirs)

    @property
    def sigma(self) -> float:
        """The noise level where the models meet."""
        return self.source_plan.top

    def cross(self, x_0: Tensor, *, cycle: bool = True) -> Bridged:
        """Take images over the bridge.

        Args:
            x_0: Images of the source, (B, C, H, W) in [-1, 1].
            cycle: Whether to take them back too, for the cycle error; twice the evaluations.

        Returns:
            The images of the target.

        Raises:
            InputError: If a model does not take the images.
            BudgetExceeded: If an adaptive run reaches max_nfe; the error holds the best state so far.
        """
        given = state_dtype(x_0)
        for field in (self.source, self.target):
            field.check(given, field.image_sizes)
        state = self._up(self.source, given, self.source_plan)
        images = self._down(self.target, state, self.target_plan)
        if not cycle:
            return Bridged(images, state, None, None)
        again = self._down(self.source, self._up(self.target, images, self.target_plan), self.source_plan)
        return Bridged(images, state, again, rms(again - given.to(again)))

    @staticmethod
    def _up(field: VectorField, images: Tensor, plan: Plan) -> State:
        state = integrate(field, State(to_data(field, images), float(plan.nodes[0])), plan)
        return State(state.xbar, state.sigma)  # without the aux that only this model's way back can use

    @staticmethod
    def _down(field: VectorField, state: State, plan: Plan) -> Tensor:
        return to_images(field, integrate(field, state, plan).xbar)


def between(
    source: Model,
    target: Model,
    solver: str | Solver = defaults.BRIDGE,
    *,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Unpack[Settings],
) -> Bridge:
    """The bridge between two models.

    Args:
        source: The model that encodes: a built-in name, the path of a model, or a VectorField.
        target: The model that decodes.
        solver, steps, grid, end, **settings: As of `odeddim.solve`; they hold for both models.

    Returns:
        The bridge.

    Raises:
        InputError: If an argument cannot be used, or the models do not meet: they have images of different shapes,
            data of different autoencoders, or no common noise level at which images are noise.

    Source:
        Su et al. 2022, arXiv 2203.08382.
    """
    one, other = load(source), load(target)
    _check_units(one, other)
    top = min(one.schedule.sigma_max, other.schedule.sigma_max)
    up, down = (Plan.of(field.schedule, solver, steps, grid, end, settings, top=top) for field in (one, other))
    check_encodes(up.solver)
    meet = min(up.top, down.top)  # each plan may have moved given nodes, rounded, to its own σ_T
    if meet < LOWEST_TOP:
        raise InputError(
            f"{one.name!r} and {other.name!r} would meet at σ = {meet:.4g}, where images still show through the noise: "
            f"give models and a grid that reach σ = {LOWEST_TOP:g}"
        )
    up, down = (replace(way, nodes=torch.cat([way.nodes[:-1], way.nodes.new_tensor([meet])])) for way in (up, down))
    return Bridge(one, other, up, down)


def bridge(
    x_0: Tensor,
    source: Model,
    target: Model,
    solver: str | Solver = defaults.BRIDGE,
    *,
    cycle: bool = True,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Unpack[Settings],
) -> Bridged:
    """Encode images with one model and decode them with another: a dual diffusion implicit bridge.

    Args:
        x_0: Images of the source, (B, C, H, W) in [-1, 1], float32 or float64.
        source: The model that encodes: a built-in name, the path of a model, or a VectorField.
        target: The model that decodes.
        solver, steps, grid, end, **settings: As of `odeddim.solve`; they hold for both models.
        cycle: Whether to take the images back too, for the cycle error; twice the evaluations.

    Returns:
        The images of the target, the state where the models meet and, with the cycle, the cycle error.

    Raises:
        InputError: If an argument cannot be used, or the models do not meet: they have images of different shapes,
            data of different autoencoders, or no common noise level at which images are noise.
        BudgetExceeded: If an adaptive run reaches max_nfe; the error holds the best state so far.

    Source:
        Su et al. 2022, arXiv 2203.08382.

    Example:
        >>> images = odeddim.sample(2, model="exact-gaussian", steps=5, shape=(1, 4, 4))
        >>> bridged = odeddim.bridge(images, "exact-gaussian", "exact-mixture", steps=5)
        >>> bridged.images.shape, bridged.error.shape
        (torch.Size([2, 1, 4, 4]), torch.Size([2]))
    """
    return between(source, target, solver, steps=steps, grid=grid, end=end, **settings).cross(x_0, cycle=cycle)


def _check_units(one: VectorField, other: VectorField) -> None:
    if one.sizes is not None and other.sizes is not None and one.sizes.common(other.sizes) is None:
        words = ["×".join(map(str, field.shape or ())) for field in (one, other)]
        raise InputError(
            f"{one.name!r} moves data of shape {words[0]} and {other.name!r} of {words[1]}: "
            "give two models with data of one shape"
        )
    ours, theirs = ("" if field.codec is None else field.codec.sha256 for field in (one, other))
    if ours != theirs:
        raise InputError(
            f"{one.name!r} and {other.name!r} have different autoencoders, so their data are not in the same units: "
            "give two models with one autoencoder"
        )


@dataclass(frozen=True)
class Edited:
    """The result of an edit.

    Attributes:
        images: The images under the other condition, (B, C, H, W), nominally in [-1, 1] and not clipped.
        state: The state at the noise level where the condition changes.
        again: The reconstruction, decoded under the condition that encoded, (B, C, H, W). Where it is not the image,
            the edit began with another one.
        error: The error of the reconstruction, rms over the pixels of each image, (B,) float64 on the CPU.
        change: By how much the edit differs from the image, likewise.
    """

    images: Tensor
    state: State
    again: Tensor
    error: Tensor
    change: Tensor


@dataclass(frozen=True)
class Edit:
    """An edit of images: up under one condition, down under another.

    Attributes:
        before: The model under the condition that encodes.
        after: The same model under the condition that decodes.
        plan: The plan that encodes and reconstructs.
        down: The plan that decodes under the other condition, from the state alone.
    """

    before: VectorField
    after: VectorField
    plan: Plan
    down: Plan

    def apply(self, x_0: Tensor) -> Edited:
        """Edit images.

        Args:
            x_0: The images, (B, C, H, W) in [-1, 1].

        Returns:
            The edited images and their reconstructions.

        Raises:
            InputError: If the model does not take the images.
            BudgetExceeded: If an adaptive run reaches max_nfe; the error holds the best state so far.
        """
        given = state_dtype(x_0)
        self.before.check(given, self.before.image_sizes)
        state = integrate(self.before, State(to_data(self.before, given), float(self.plan.nodes[0])), self.plan)
        again = to_images(self.before, integrate(self.before, state, self.plan).xbar)
        images = to_images(self.after, integrate(self.after, State(state.xbar, state.sigma), self.down).xbar)
        there = given.to(again)
        return Edited(images, state, again, rms(again - there), rms(images - there))


def editing(
    before: VectorField,
    after: VectorField,
    solver: str | Solver = defaults.ENCODE,
    *,
    sigma: float | None = None,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Unpack[Settings],
) -> Edit:
    """The edit of one model under two conditions.

    Args:
        before: The model under the condition that encodes, as `VectorField.conditioned` makes it.
        after: The same model under the condition that decodes.
        sigma: The noise level up to which images are encoded; None for σ_T.
        solver, steps, grid, end, **settings: As of `edit`.

    Returns:
        The edit.

    Raises:
        InputError: If an argument cannot be used, or the two are not one model.
    """
    if before.eps is not after.eps:
        raise InputError(
            f"an edit takes one model under two conditions, not {before.name!r} and {after.name!r}: give both from "
            "model.conditioned(...), or take odeddim.bridge for two models"
        )
    levels = before.schedule
    if sigma is not None and not levels.sigma_min < sigma <= levels.sigma_max * (1 + 1e-6):
        raise InputError(
            f"sigma={sigma!r} must lie between the lowest and the highest noise level of {before.name!r}, "
            f"{levels.sigma_min:.4g} and {levels.sigma_max:.4g}"
        )
    plan = Plan.of(levels, solver, steps, grid, end, settings, top=None if sigma is None else float(sigma))
    check_encodes(plan.solver)
    if sigma is not None and not plan.ends_at(min(float(sigma), levels.sigma_max)):
        raise InputError("grid=... has an end of its own: leave out sigma=..., or give a named grid")
    return Edit(before, after, plan, decoding_plan(plan, levels, alone=True))


def edit(
    x_0: Tensor,
    before: VectorField,
    after: VectorField,
    solver: str | Solver = defaults.ENCODE,
    *,
    sigma: float | None = None,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Unpack[Settings],
) -> Edited:
    """Edit images: encode them under one condition, and decode them under another.

    Args:
        x_0: The images, (B, C, H, W) in [-1, 1], float32 or float64.
        before: The model under the condition that encodes, as `VectorField.conditioned` makes it.
        after: The same model under the condition that decodes.
        sigma: The noise level up to which images are encoded. What is above stays as it was: a lower one keeps more of
            the layout. None for σ_T.
        solver, steps, grid, end, **settings: As of `odeddim.encode`. A reversible solver encodes and reconstructs, and
            the edit, which starts from the state alone, is decoded by the default for that.

    Returns:
        The edited images, the reconstructions, and both errors.

    Raises:
        InputError: If an argument cannot be used, or the two are not one model.
        BudgetExceeded: If an adaptive run reaches max_nfe; the error holds the best state so far.

    Source:
        Song et al. 2020, arXiv 2010.02502, section 4.3, under the conditions of arXiv 2207.12598.

    Example:
        >>> model = odeddim.VectorField.from_network(
        ...     lambda x, t, label: x - label[:, None, None, None], odeddim.Schedule.linear(), classes=3, name="mine"
        ... )
        >>> images = torch.zeros(2, 1, 4, 4)
        >>> edited = odeddim.edit(images, model.conditioned(0), model.conditioned(1), sigma=0.5, steps=4)
        >>> edited.images.shape, float(edited.error.max())
        (torch.Size([2, 1, 4, 4]), 0.0)
    """
    return editing(
        before, after, solver, sigma=sigma, steps=steps, grid=grid, end=end, **settings
    ).apply(x_0)  # fmt: skip
