"""In a checkout, `solvers/` and `cli/` lie beside the package; installed, inside it. This finds them in both.

`python -m ...` at the root of a checkout puts the checkout's `odeddim/` first on the path, where no `solvers` lies:
without this finder a regular install would then fail with ModuleNotFoundError. (Extending `__path__` would do as well,
but makes `pkgutil.walk_packages` recurse for ever.)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
BESIDE = {"odeddim.solvers": "solvers", "odeddim.cli": "cli"}


class CheckoutFinder:
    """A meta-path finder that looks for `odeddim.solvers` and `odeddim.cli` at the root of the checkout."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in BESIDE:
            return None
        folder = ROOT / BESIDE[name]
        spec = PathFinder.find_spec(BESIDE[name], [str(ROOT)])
        if spec is None or spec.origin is None:
            return None
        return spec_from_file_location(name, spec.origin, submodule_search_locations=[str(folder)])


if (ROOT / "pyproject.toml").is_file() and all((ROOT / folder).is_dir() for folder in BESIDE.values()):
    # First: an editable install of another checkout would otherwise lend its solvers to this one.
    sys.meta_path.insert(0, CheckoutFinder)
