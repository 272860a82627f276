"""What DDIM's paper (arXiv 2010.02502) reports, and the setting in which its figures may stand beside ours.

No file says that a network is the paper's and that the images are its data set's: the caller says so. What can be told
is checked: the shape of the images, the schedule and the end.
"""

from __future__ import annotations

import torch

from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

RECONSTRUCTION = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
"""Table 2, by steps: mean squared error per dimension on the [0, 1] scale, CIFAR-10's test images, η = 0."""

SHAPES = {"cifar10": (3, 32, 32), "celeba": (3, 64, 64), "bedroom": (3, 256, 256), "church": (3, 256, 256)}
"""The paper's data sets and the shapes of their images."""

TAU = ("linear", "quadratic")
"""The grids of the paper's experiments (appendix D.2): the second for CIFAR-10, the first for the others."""


def check_setting(dataset: str, model: VectorField, shape: tuple[int, ...], end: str) -> None:
    """Raise an InputError unless images (C, H, W), schedule and end are those of the paper's runs on a data set."""
    wanted = SHAPES[dataset]
    ours, theirs = model.schedule.levels, Schedule.linear().levels
    if tuple(shape) != wanted:
        what = f"images are {'×'.join(map(str, shape))}, not {'×'.join(map(str, wanted))}"
    elif len(ours) != len(theirs) or not torch.allclose(ours, theirs, rtol=1e-3):
        what = f"schedule of {model.name!r} is not the linear one with T = 1000"
    elif end != "zero":
        what = f"end is {end}, not zero"
    else:
        return
    raise InputError(f"the paper's figures of {dataset} do not belong beside these: the {what}; leave out paper=...")
