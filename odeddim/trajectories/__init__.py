"""Trajectories: the points that a run passes, x̄, ε and the predicted images, at its nodes and between them."""

from __future__ import annotations

from odeddim.trajectories.making import trajectory as trajectory
from odeddim.trajectories.path import Trajectory as Trajectory
