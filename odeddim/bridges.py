"""Bridges: encode with one model, decode with another (DDIB, arXiv 2203.08382).

Both models move x̄ = x0 + σ·ε, whatever they predict and however they count time; so the state at a noise level that
both know is handed over as it is. That level is the lower of their two σ_T: what one model calls noise there is a
state that the other knows, and nothing is rescaled.

The cycle error says how much of an image the way there and back keeps: encoded by the source, decoded and encoded
again by the target, decoded by the source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults
from odeddim.api import LOWEST_TOP, Model, state_dtype, to_data, to_images
from odeddim.latents.arithmetic import rms
from odeddim.models import load
from odeddim.ode.field import VectorField
from odeddim.plans import Grid, Plan, check_encodes, integrate
from odeddim.types import InputError, Settings, Solver, State


@dataclass(frozen=True)
class Bridged:
    """images: (B, C, H, W) of the target model. state: where the two models met. again: the images come back, and
    error: (B,) float64 on the CPU, the rms over pixels, in [-1, 1], between them and what was given; None without the
    cycle."""

    images: Tensor
    state: State
    again: Tensor | None
    error: Tensor | None


@dataclass(frozen=True)
class Bridge:
    """A bridge between two models, and for each of them the plan up to the noise level where they meet."""

    source: VectorField
    target: VectorField
    source_plan: Plan
    target_plan: Plan

    @property
    def solver(self) -> Solver:
        """The row that walks both plans."""
        return self.source_plan.solver

    @property
    def sigma(self) -> float:
        """The noise level where the models meet."""
        return self.source_plan.top

    def cross(self, x_0: Tensor, *, cycle: bool = True) -> Bridged:
        """Images (B, C, H, W) in [-1, 1] of the source, over the bridge; with `cycle` also back again."""
        given = state_dtype(x_0)
        state = self._up(self.source, given, self.source_plan)
        images = self._down(self.target, state, self.target_plan)
        if not cycle:
            return Bridged(images, state, None, None)
        again = self._down(self.source, self._up(self.target, images, self.target_plan), self.source_plan)
        return Bridged(images, state, again, rms(again - given.to(again)))

    @staticmethod
    def _up(field: VectorField, images: Tensor, plan: Plan) -> State:
        state = integrate(field, State(to_data(field, images), float(plan.nodes[0])), plan)
        return State(state.xbar, state.sigma)  # without what belongs to the way back of this model

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
    """The bridge between two models; arguments and errors as of `odeddim.solve`, and an InputError where they do not
    meet: images of other shapes, data of other autoencoders, or no common noise level at which images are noise."""
    one, other = load(source), load(target)
    _check_units(one, other)
    top = min(one.schedule.sigma_max, other.schedule.sigma_max)
    up, down = (Plan.of(field.schedule, solver, steps, grid, end, settings, top=top) for field in (one, other))
    check_encodes(up.solver)
    meet = min(up.top, down.top)  # of nodes that were given, rounded, each was taken to its own σ_T
    if meet < LOWEST_TOP:
        raise InputError(
            f"{one.name!r} and {other.name!r} would meet at σ = {meet:.4g}, where images still show through the noise: "
            f"a bridge needs σ of {LOWEST_TOP:g} at least"
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
    """Encode images with one model and decode them with another: x_0 (B, C, H, W) in [-1, 1] -> Bridged.

    cycle: also go back, for the error, at thrice the evaluations. The rest and errors as of `between`.
    """
    return between(source, target, solver, steps=steps, grid=grid, end=end, **settings).cross(x_0, cycle=cycle)


def _check_units(one: VectorField, other: VectorField) -> None:
    if one.shape is not None and other.shape is not None and one.shape != other.shape:
        words = ["×".join(map(str, field.shape or ())) for field in (one, other)]
        raise InputError(
            f"{one.name!r} moves data of {words[0]} and {other.name!r} of {words[1]}: no bridge joins them"
        )
    ours, theirs = ("" if field.codec is None else field.codec.sha256 for field in (one, other))
    if ours != theirs:
        raise InputError(
            f"the data of {one.name!r} and {other.name!r} are not in the same units: they have different autoencoders"
        )
