"""odeddim: diffusion models as ordinary differential equations, dx̄/dσ = ε(x̄, σ), and every solver worth having.

    import odeddim

    x_T = odeddim.noise(4, (1, 28, 28), seed=0)
    x_0 = odeddim.solve(x_T, solver="euler")          # DDIM: (4, 1, 28, 28) in [-1, 1]

Type checkers and editors see every name as an import. At run time a name is imported when it is first used, so that
`odeddim --help` need not load torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Waiting OpenMP threads spin: beside one busy process a 1 ms forward took 168 ms. Must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from odeddim import _checkout as _checkout

__version__ = "0.1.0"

if TYPE_CHECKING:
    from odeddim import jobs as jobs
    from odeddim import solvers as solvers
    from odeddim import types as types
    from odeddim.api import decode as decode
    from odeddim.api import encode as encode
    from odeddim.api import interpolate as interpolate
    from odeddim.api import noise as noise
    from odeddim.api import plan as plan
    from odeddim.api import sample as sample
    from odeddim.api import solve as solve
    from odeddim.bridges import bridge as bridge
    from odeddim.bridges import edit as edit
    from odeddim.checks.certificate import certify as certify
    from odeddim.checks.density import LogDensity as LogDensity
    from odeddim.checks.density import log_density as log_density
    from odeddim.checks.diagnosis import Diagnosis as Diagnosis
    from odeddim.checks.diagnosis import diagnose as diagnose
    from odeddim.checks.explanation import explain as explain
    from odeddim.checks.scores import Reference as Reference
    from odeddim.checks.scores import Scores as Scores
    from odeddim.checks.scores import calibrate as calibrate
    from odeddim.checks.scores import score as score
    from odeddim.checks.sensitivity import sensitivity as sensitivity
    from odeddim.fitting.fit import Fitted as Fitted
    from odeddim.fitting.fit import fit as fit
    from odeddim.fitting.gits import gits_plan as gits_plan
    from odeddim.fitting.grid_search import computed_grid as computed_grid
    from odeddim.jobs.latent_files import open as open
    from odeddim.jobs.latent_files import save as save
    from odeddim.jobs.mapping import Decoder as Decoder
    from odeddim.jobs.mapping import Encoder as Encoder
    from odeddim.models import load as load
    from odeddim.ode.field import VectorField as VectorField
    from odeddim.ode.grids import grid as grid
    from odeddim.ode.schedule import Schedule as Schedule
    from odeddim.plans import Plan as Plan
    from odeddim.plans import integrate as integrate
    from odeddim.runs.parallel import Parallel as Parallel
    from odeddim.storage.images import open_images as open_images
    from odeddim.storage.preparation import Preparation as Preparation
    from odeddim.trajectories import Trajectory as Trajectory
    from odeddim.trajectories import trajectory as trajectory
    from odeddim.types import BudgetExceeded as BudgetExceeded
    from odeddim.types import Field as Field
    from odeddim.types import InputError as InputError
    from odeddim.types import Solver as Solver
    from odeddim.types import State as State
else:  # hidden from type checkers, which would take any name for one of a module with __getattr__
    _HOMES = {
        "BudgetExceeded": "odeddim.types",
        "Decoder": "odeddim.jobs.mapping",
        "Diagnosis": "odeddim.checks.diagnosis",
        "Encoder": "odeddim.jobs.mapping",
        "Field": "odeddim.types",
        "Fitted": "odeddim.fitting.fit",
        "InputError": "odeddim.types",
        "LogDensity": "odeddim.checks.density",
        "Parallel": "odeddim.runs.parallel",
        "Plan": "odeddim.plans",
        "Preparation": "odeddim.storage.preparation",
        "Reference": "odeddim.checks.scores",
        "Schedule": "odeddim.ode.schedule",
        "Scores": "odeddim.checks.scores",
        "Solver": "odeddim.types",
        "State": "odeddim.types",
        "Trajectory": "odeddim.trajectories",
        "VectorField": "odeddim.ode.field",
        "bridge": "odeddim.bridges",
        "calibrate": "odeddim.checks.scores",
        "certify": "odeddim.checks.certificate",
        "computed_grid": "odeddim.fitting.grid_search",
        "gits_plan": "odeddim.fitting.gits",
        "decode": "odeddim.api",
        "diagnose": "odeddim.checks.diagnosis",
        "edit": "odeddim.bridges",
        "encode": "odeddim.api",
        "explain": "odeddim.checks.explanation",
        "fit": "odeddim.fitting.fit",
        "grid": "odeddim.ode.grids",
        "integrate": "odeddim.plans",
        "interpolate": "odeddim.api",
        "jobs": "odeddim",
        "load": "odeddim.models",
        "log_density": "odeddim.checks.density",
        "noise": "odeddim.api",
        "open": "odeddim.jobs.latent_files",
        "open_images": "odeddim.storage.images",
        "plan": "odeddim.api",
        "sample": "odeddim.api",
        "save": "odeddim.jobs.latent_files",
        "sensitivity": "odeddim.checks.sensitivity",
        "score": "odeddim.checks.scores",
        "solve": "odeddim.api",
        "solvers": "odeddim",
        "trajectory": "odeddim.trajectories",
        "types": "odeddim",
    }  # name -> where it is imported from, as above; submodules come from the package itself
    __all__ = ["__version__", *_HOMES]

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module 'odeddim' has no attribute {name!r}")
        home = _HOMES[name]
        return import_module(f"odeddim.{name}") if home == "odeddim" else getattr(import_module(home), name)

    def __dir__() -> list[str]:
        return sorted(__all__)
