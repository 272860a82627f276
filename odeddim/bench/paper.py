"""Results of DDIM's paper (arXiv 2010.02502), and the setting in which they may be compared with measurements.

No file states that a network is the paper's or that images are from its data set, so the caller states it. This module
checks what can be checked: the shape of the images, the schedule and the end.
"""

from __future__ import annotations

import torch

from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

RECONSTRUCTION = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
"""Table 2 by steps: the mean squared error per dimension on the [0, 1] scale, for CIFAR-10's test images and η = 0."""

SHAPES = {"cifar10": (3, 32, 32), "celeba": (3, 64, 64), "bedroom": (3, 256, 256), "church": (3, 256, 256)}
"""The paper's data sets and the shapes of their images."""

TAU = ("linear", "quadratic")
"""The grids of the paper's experiments (appendix D.2): quadratic for CIFAR-10, linear for the other data sets."""


def check_setting(dataset: str, model: VectorField, shape: tuple[int, ...], end: str) -> None:
    """Check that a measurement has the setting of the paper's runs on a data set.

    Args:
        dataset: The data set, a key of `SHAPES`.
        model: The model.
        shape: The shape (C, H, W) of the images.
        end: "zero" or "sigma_min".

    Raises:
        InputError: If the shape, the schedule or the end is not that of the paper.
    """
    wanted = SHAPES[dataset]
    ours, theirs = model.schedule.levels, Schedule.linear().levels
    if tuple(shape) != wanted:
        what = f"images have the shape {'×'.join(map(str, shape))}, not {'×'.join(map(str, wanted))}"
    elif len(ours) != len(theirs) or not torch.allclose(ours, theirs, rtol=1e-3):
        what = f"schedule of {model.name!r} is not the linear one with T = 1000"
    elif end != "zero":
        what = f"end is {end}, not zero"
    else:
        return
    raise InputError(f"the paper's results for {dataset} are not comparable: the {what}: leave out paper=...")
