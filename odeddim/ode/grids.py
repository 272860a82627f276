"""Grids: the rising lists of noise levels that a solver walks, by name.

A grid of S steps has S+1 nodes. The `end` says at which noise level the image lies:

    "zero"       the first node is σ = 0, as in the paper (α_0 := 1): one Euler step between 0 and the second node
    "sigma_min"  the first node is σ_1, and the image is taken as x̄ there: no step

With both, S steps are S steps, for every S: no grid over the training levels holds a level twice.

    name                 nodes
    "linear"             the paper's τ_i = ⌊c·i⌋, with c such that the last level is T (DDIM, appendix D.2)
    "quadratic"          the paper's τ_i = ⌊c·i²⌋, likewise
    "trailing"           as "linear", but rounded, so counted from T downwards (arXiv 2305.08891)
    "leading"            where diffusers' DDIMScheduler evaluates with timestep_spacing="leading"
    "linspace"           where diffusers' DDIMScheduler evaluates with timestep_spacing="linspace"
    "log"                even in log σ, from σ_1 to σ_T
    "karras[:RHO]"       even in σ^(1/ρ), from σ_1 to σ_T; ρ = 7 unless given (arXiv 2206.00364, eq. 5)
    "edm"                even in σ^(1/7), over those of EDM's levels 0.002 to 80 that the model knows
    "ays[:LIST]"         Align Your Steps (arXiv 2404.14507, table 3): "sd15" unless given, "sdxl" or "deepfloyd-if"
    "xue[:P]"            the least of a bound of DPM-Solver++'s error (arXiv 2402.17376): P = 1, for models of pixels,
                         unless given, or 2, for latent models
    "flow[:SHIFT]"       of flow paths: even in t from 1, each shifted to SHIFT·t/(1 + (SHIFT-1)·t), as diffusers'
                         FlowMatchEulerDiscreteScheduler does it (arXiv 2403.03206, eq. 23); 1 unless given
    the path of a file   the nodes in the file, see `read_nodes`

leading, linspace: With end="zero", diffusers' default (steps_offset=0, set_alpha_to_one=True), the labels are
i·(T//S) and round(i·(T-1)/(S-1)), 0 <= i < S. With end="sigma_min", "leading" has the labels i·(T//S) + 1 and ends at
the label 0 (steps_offset=1, set_alpha_to_one=False, as of Stable Diffusion), and "linspace" has the S+1 labels
round(i·(T-1)/S). "leading" begins T//S levels or more below σ_T. Every step of DDIMScheduler is T//S labels long,
whatever its spacing, so with "linspace" its steps do not end where the next one begins unless S = T. Such runs cannot
be reproduced, and here each step ends where the next one begins.

edm: If the model's σ_T is above 80, latents lie at σ = 80. For a network that looks σ up among its levels, each node is
the nearest level, as in EDM's sampler, and no level is taken twice.

ays: The lists were made for 10 steps. For other numbers log σ is interpolated, as by its authors, and the lists are
stretched to the model's levels.

xue: Found by an optimisation (`odeddim.ode.optimised`) that knows the range of the levels and nothing else of a model.
Other versions of SciPy may find other digits.

flow: In σ = t/(1-t) a shift is a factor. The lowest t is SHIFT/(T+SHIFT-1), because diffusers shifts it once more than
the others. At t = 1 σ is infinite, and the model's highest level stands for it. With end="sigma_min" σ_1 is a node
below those of diffusers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odeddim import defaults
from odeddim.ode.optimised import POWERS, xue_positions
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError, pick

ENDS = ("zero", "sigma_min")
STEPS = 50
MOST_RHO = 1000  # beyond, the grid is "log" to rounding
MOST_SHIFT = 1000

# Grids over the training levels: the level at the fraction u = i/S of the steps, a whole number.
_TAU: dict[str, Callable[[Fraction, int], int]] = {
    "linear": lambda u, T: math.floor(u * T),
    "quadratic": lambda u, T: math.floor(u * u * T),
    "trailing": lambda u, T: round(u * T),
}
_DIFFUSERS = ("leading", "linspace")
_CONTINUOUS = ("log", "karras", "edm", "ays", "xue")
_FLOW = "flow"

_WITH_PARAMETER = ("karras", "ays", "xue", _FLOW)

NAMES = (*_TAU, *_DIFFUSERS, *_CONTINUOUS, _FLOW)

EDM_RANGE = (0.002, 80.0)  # σ of arXiv 2206.00364, table 1

# Align Your Steps, arXiv 2404.14507, table 3: σ of the optimised grids of 10 steps, from the image upwards.
AYS = {
    "sd15": (0.029, 0.152, 0.399, 0.652, 0.963, 1.396, 1.886, 2.697, 3.861, 6.475, 14.615),
    "sdxl": (0.029, 0.113, 0.234, 0.380, 0.555, 0.862, 1.342, 2.181, 3.771, 6.315, 14.615),
    "deepfloyd-if": (0.006, 0.030, 0.186, 0.293, 0.553, 0.785, 1.207, 1.885, 3.315, 8.081, 160.41),
}


def grid(
    name: str, schedule: Schedule, steps: int | None = None, *, end: str = "zero", top: float | None = None
) -> Tensor:
    """The nodes of a named grid: noise levels, rising from the image to the noise.

    Args:
        name: A name, as the table of `odeddim.ode.grids` has them: "linear", "quadratic", "trailing", "leading",
            "linspace", "log", "karras", "karras:RHO", "edm", "ays", "ays:LIST", "xue", "xue:P", "flow" or "flow:SHIFT";
            or the path of a grid file.
        schedule: The noise levels of the model.
        steps: The number of steps; 50 by default, and of a file as many as it has.
        end: Where the image lies: "zero" (σ = 0) or "sigma_min" (σ_1).
        top: The last node, in place of σ_T and below it.

    Returns:
        The nodes, (steps+1,) float64, rising, on the CPU.

    Raises:
        InputError: If the name is unknown, a file cannot be read, or a grid has no room for so many steps (over the
            training levels T of them, and T - 1 with end="sigma_min"); or if the grid does not go with the schedule,
            `end` or `top`.

    Source:
        Song et al. 2020, arXiv 2010.02502, appendix D.2; Karras et al. 2022, arXiv 2206.00364, eq. 5; the others as in
        the table.

    Example:
        >>> import odeddim
        >>> nodes = odeddim.grid("linear", odeddim.Schedule.linear(), steps=4)
        >>> [round(sigma, 3) for sigma in nodes.tolist()]
        [0.0, 0.953, 3.424, 17.247, 157.407]
    """
    pick(end, ENDS, "end")
    if not is_named(name):
        if os.path.isfile(name):
            nodes = check_nodes(read_nodes(Path(name)), where=name, steps=steps)
            if end == "sigma_min" and float(nodes[0]) == 0:
                raise InputError(f"{name}: the nodes begin at σ = 0: give end='zero' instead of end='sigma_min'")
            if top is not None and not math.isclose(float(nodes[-1]), top, rel_tol=1e-5):
                last = float(nodes[-1])
                raise InputError(f"{name}: the nodes end at σ = {last:.9g}: give a grid that ends at {top:.9g}")
            return nodes
        pick(name, NAMES, "grid (or grid file)")
    steps = STEPS if steps is None else steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= defaults.MOST_STEPS:
        raise InputError(f"steps must be a whole number, at least 1 and at most {defaults.MOST_STEPS}, not {steps!r}")
    family, colon, parameter = name.partition(":")
    if top is not None and not schedule.sigma_min < top <= schedule.sigma_max:
        raise InputError(f"a grid for {schedule!r} cannot end at σ = {top:.6g}: give a noise level within its range")
    if family in (*_TAU, *_DIFFUSERS):
        return _over_levels(family, schedule, steps, end, top)
    if family == _FLOW:
        return _shifted(name, parameter if colon else "1", schedule, steps, end, top)
    count = steps if end == "zero" else steps + 1
    low, high = schedule.sigma_min, schedule.sigma_max if top is None else top
    if family == "edm":
        low, high = max(low, EDM_RANGE[0]), min(high, EDM_RANGE[1])
        if low >= high:
            has = f"{schedule.sigma_min:.6g} to {schedule.sigma_max:.6g}"
            raise InputError(
                f"the grid 'edm' lies between σ = 0.002 and 80, but the model's levels are {has}: try grid='karras'"
            )
    u = torch.linspace(0, 1, count, dtype=torch.float64)
    if family == "log":
        nodes = torch.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    elif family == "ays":
        nodes = torch.exp(math.log(low) + _ays(name, parameter if colon else "sd15", u) * math.log(high / low))
    elif family == "xue":
        place = xue_positions(low, high, count - 1, _power(name, parameter if colon else "1")) if count > 1 else (0.0,)
        nodes = torch.exp(math.log(low) + torch.tensor(place, dtype=torch.float64) * math.log(high / low))
    else:
        rho = _rho(name, parameter) if colon else 7.0
        nodes = (low ** (1 / rho) + u * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    nodes[0] = low  # exactly, so that the label there is exactly the network's lowest
    nodes[-1] = high  # and last: where there is one node only, it is the top
    if family == "edm" and schedule.discrete:
        nodes = _among(nodes, schedule.levels)
    return torch.cat([torch.zeros(1, dtype=torch.float64), nodes]) if end == "zero" else nodes


def is_named(name: str) -> bool:
    """Whether this is the name of a grid, which is made for any number of steps, and not the path of a grid file."""
    family, colon, _ = name.partition(":")
    return family in (_WITH_PARAMETER if colon else NAMES)


def _rho(name: str, parameter: str) -> float:
    rho = _number(parameter)
    if not 1 <= rho <= MOST_RHO:
        raise InputError(f"the grid {name!r} needs a number ρ from 1 to {MOST_RHO} after the colon, as in 'karras:5'")
    return rho


def _number(parameter: str) -> float:
    try:
        return float(parameter)
    except ValueError:
        return math.nan


def _power(name: str, parameter: str) -> int:
    if parameter not in map(str, POWERS):
        raise InputError(f"the grid {name!r} needs 1 (models of pixels) or 2 (latent models) after the colon: 'xue:2'")
    return int(parameter)


def _ays(name: str, which: str, u: Tensor) -> Tensor:
    """The positions in log σ, from 0 to 1, of a published list at the fractions u of its steps."""
    if which not in AYS:
        raise InputError(
            f"the grid {name!r} needs the name of a list after the colon: {', '.join(f'ays:{key}' for key in AYS)}"
        )
    levels = np.log(AYS[which])
    place = (levels - levels[0]) / (levels[-1] - levels[0])
    return torch.from_numpy(np.interp(u.numpy(), np.linspace(0, 1, len(place)), place))


def _shifted(name: str, parameter: str, schedule: Schedule, steps: int, end: str, top: float | None) -> Tensor:
    """The grid "flow": times even from 1, or from that of `top`, shifted."""
    shift = _number(parameter)
    if not 1 <= shift <= MOST_SHIFT:
        raise InputError(f"the grid {name!r} needs a shift from 1 to {MOST_SHIFT} after the colon, as in 'flow:3'")
    if schedule.kind != "flow":
        raise InputError(
            f"the grid {name!r} shifts the times of flow paths, and {schedule!r} has other paths: try grid='log'"
        )
    low, high = shift / (schedule.T + shift - 1), 1.0 if top is None else top / (shift + top)
    t = torch.linspace(low, high, steps, dtype=torch.float64)
    nodes = shift * t / (1 - t)
    nodes[-1] = schedule.sigma_max if top is None else top
    last = float(nodes[-1])
    if bool((nodes[:-1] > last * (1 - 1e-9)).any()):
        raise InputError(
            f"the grid {name!r} of {steps} steps has nodes at or above σ = {last:.6g}, where it must end: give fewer "
            "steps or a smaller shift"
        )
    first = 0.0 if end == "zero" else schedule.sigma_min
    return torch.cat([torch.tensor([first], dtype=torch.float64), nodes])


def _over_levels(family: str, schedule: Schedule, steps: int, end: str, top: float | None) -> Tensor:
    """Grids over the training levels: the paper's sub-sequences τ of 1, ..., T, or of the levels up to `top`."""
    levels = schedule.levels
    if top is not None:
        levels = torch.cat([levels[levels < top], levels.new_tensor([top])])
    T = len(levels)
    most = T if end == "zero" else T - 1
    if steps > most:
        raise InputError(
            f"the grid {family!r} with end={end!r} has at most {most} steps on {T} levels, not {steps}: "
            "give fewer steps, or another grid"
        )
    first = 0 if end == "zero" else 1  # the first node: level 0 is σ = 0, level 1 is σ_1
    if family in _DIFFUSERS:
        if family == "leading" and top is not None:
            raise InputError(
                "the last node of the grid 'leading' follows from its spacing and cannot be chosen: "
                "give grid='trailing' or grid='linear'"
            )
        tau = _as_diffusers(family, T, steps, first)
    else:
        tau = [first]
        for i in range(1, steps + 1):
            level = first + _TAU[family](Fraction(i, steps), T - first)
            tau.append(max(level, tau[-1] + 1))  # never a node twice: it would be a step of length 0
    return torch.cat([torch.zeros(1, dtype=torch.float64), levels])[tau]


def _as_diffusers(family: str, T: int, steps: int, first: int) -> list[int]:
    """The levels of the grids "leading" and "linspace", given the first one; the label t is the level t + 1."""
    if family == "leading":
        return [first, *(1 + first + i * (T // steps) for i in range(steps))]
    labels = np.linspace(0, T - 1, steps + first).round()  # in float64, which decides how labels halfway are rounded
    return [*range(1 - first), *(1 + int(label) for label in labels)]


def _among(nodes: Tensor, levels: Tensor) -> Tensor:
    """The level nearest to each of the nodes, no level twice; nodes (N,) and levels (T,) rise."""
    place = torch.bucketize(nodes, (levels[1:] + levels[:-1]) / 2)
    count, first, last = len(place), int(place[0]), int(place[-1])
    if last - first + 1 < count:
        raise InputError(f"the grid 'edm' has only {last - first + 1} noise levels on this model: give fewer steps")
    order = torch.arange(count)
    upwards = torch.cummax(place - order, 0).values + order
    return levels[torch.minimum(upwards, last - order.flip(0))]


def read_nodes(path: Path) -> Tensor:
    """The nodes in a grid file.

    Args:
        path: The file. It holds numbers between white space or commas, where "#" starts a comment; or a JSON list; or a
            plan, as `Plan.save` and `odeddim fit` write them.

    Returns:
        The nodes, (N+1,) float64, unchecked.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith(("[", "{")):
            content = json.loads(text)
            values = content["nodes"] if isinstance(content, dict) else content
        else:
            values = " ".join(line.partition("#")[0] for line in text.splitlines()).replace(",", " ").split()
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    except (OSError, LookupError, ArithmeticError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the grid file {path} cannot be read as a list of noise levels: {error}") from error


def check_nodes(nodes: Tensor | Sequence[float], where: str = "grid", steps: int | None = None) -> Tensor:
    """Nodes that the user gave, checked.

    Args:
        nodes: The noise levels, rising from the image to the noise.
        where: Where they come from, for messages.
        steps: The number of steps that they must have; None for any.

    Returns:
        The nodes, (N+1,) float64 on the CPU.

    Raises:
        InputError: If they are not one row of at least two finite noise levels σ >= 0 that rise strictly.
    """
    nodes = torch.as_tensor(nodes, dtype=torch.float64).detach().cpu()
    if nodes.ndim != 1 or len(nodes) < 2:
        raise InputError(f"{where}: a grid must be one row of at least two noise levels, not {tuple(nodes.shape)}")
    if not bool(torch.isfinite(nodes).all()) or float(nodes[0]) < 0:
        raise InputError(f"{where}: noise levels must be finite and not negative: correct them")
    if not bool((nodes[1:] > nodes[:-1]).all()):
        raise InputError(
            f"{where}: noise levels must rise strictly, for decoding too: sort them and leave out repeated ones"
        )
    if steps is not None and len(nodes) != steps + 1:
        raise InputError(f"{where}: the grid has {len(nodes) - 1} steps, not {steps}: leave out steps=...")
    return nodes
