"""odeddim: diffusion models as ordinary differential equations, dx̄/dσ = ε(x̄, σ), and every solver worth having.

    import odeddim

    x_T = odeddim.noise(4, (1, 28, 28), seed=0)
    x_0 = odeddim.solve(x_T, solver="euler")          # DDIM: (4, 1, 28, 28) in [-1, 1]

Names are handed on lazily, so that `odeddim --help` need not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from odeddim import _checkout as _checkout

__version__ = "0.1.0"

_HOMES = {
    "BudgetExceeded": "types",
    "Field": "types",
    "InputError": "types",
    "Schedule": "ode.schedule",
    "Solver": "types",
    "State": "types",
    "VectorField": "ode.field",
    "bridge": "bridges",
    "certify": "checks.certificate",
    "computed_grid": "fitting.grid_search",
    "decode": "api",
    "encode": "api",
    "explain": "checks.explanation",
    "grid": "ode.grids",
    "integrate": "api",
    "interpolate": "api",
    "load": "models",
    "noise": "api",
    "sample": "api",
    "solve": "api",
}
__all__ = ["__version__", "solvers", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"odeddim.{_HOMES[name]}"), name)
    if name == "solvers":
        return import_module("odeddim.solvers")
    raise AttributeError(f"module 'odeddim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
