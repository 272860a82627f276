"""Who may import whom: cli -> odeddim -> odeddim.solvers -> odeddim.types, and downwards only inside the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground up: a core module may import those before it (or inside its own package), and never one behind it.
CORE = (
    "odeddim.types",
    "odeddim.defaults",
    "odeddim.files",
    "odeddim.preset",
    "odeddim.hdf5",
    "odeddim.rows",
    "odeddim.parts",
    "odeddim.reading",
    "odeddim.arrays",
    "odeddim.schedule",
    "odeddim.grids",
    "odeddim.predictions",
    "odeddim.conditions",
    "odeddim.devices",
    "odeddim.field",
    "odeddim.analytic",
    "odeddim.images",
    "odeddim.outputs",
    "odeddim.latents",
    "odeddim.models",
    "odeddim.api",
    "odeddim.certificate",
    "odeddim.bridges",
    "odeddim.explanation",
    "odeddim.local_error",
    "odeddim.train",
    "odeddim.bench",
)
ANYWHERE = {"odeddim", "odeddim._checkout"}  # the package itself: its version, and where its folders lie


def modules() -> dict[str, Path]:
    """Dotted name -> file, as installed: solvers/ is odeddim.solvers and cli/ is odeddim.cli."""
    found = {}
    for folder, package in (("odeddim", "odeddim"), ("solvers", "odeddim.solvers"), ("cli", "odeddim.cli")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Every odeddim module that a file imports, anywhere in it; relative imports are refused."""
    found = set()
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return {name for name in found if name.split(".")[0] == "odeddim"}


def layer(name: str) -> str:
    """The layer a module belongs to: odeddim.solvers, odeddim.cli, or its place in the core."""
    if name.startswith("odeddim.cli"):
        return "odeddim.cli"
    if name.startswith("odeddim.solvers"):
        return "odeddim.solvers"
    return ".".join(name.split(".")[:2])


def forbidden(name: str, imported: str) -> bool:
    """Whether this arrow is one that the design does not have."""
    here, there = layer(name), layer(imported)
    if here == there or here in (*ANYWHERE, "odeddim.__main__") or there in ANYWHERE:
        return here == "odeddim" and there == "odeddim.solvers" and name != "odeddim"
    if here == "odeddim.cli":
        return False
    if here == "odeddim.solvers":
        return there != "odeddim.types"
    if there == "odeddim.cli":
        return True
    if there == "odeddim.solvers":
        return here not in ("odeddim.api", "odeddim.bench", "odeddim.train")
    return CORE.index(there) > CORE.index(here)


@pytest.mark.parametrize("name", modules())
def test_imports_go_downwards(name: str) -> None:
    for imported in imports(modules()[name]):
        assert not forbidden(name, imported), f"{name} imports {imported}"


def test_every_core_module_has_a_place() -> None:
    for name in modules():
        here = layer(name)
        assert here in CORE or here in (*ANYWHERE, "odeddim.cli", "odeddim.solvers", "odeddim.__main__"), name


def test_a_wrong_arrow_is_seen() -> None:
    assert forbidden("odeddim.solvers.onestep", "odeddim.schedule")
    assert forbidden("odeddim.field", "odeddim.solvers")
    assert forbidden("odeddim.schedule", "odeddim.grids")
    assert forbidden("odeddim.latents.store", "odeddim.api")
    assert forbidden("odeddim.api", "odeddim.cli.encode")
    assert not forbidden("odeddim.api", "odeddim.solvers")
    assert not forbidden("odeddim.cli.encode", "odeddim.api")


@pytest.mark.parametrize("folder", ["solvers", "cli"])
def test_the_bare_folders_refuse_to_be_imported(folder: str) -> None:
    result = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"odeddim.{folder}" in result.stderr
    assert "ImportError" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["solvers"],
        ["encode", "--help"],
        ["bench", "--help"],
        ["encode"],
        ["nonsense"],
        *(["bench", name, "--help"] for name in ("reconstruction", "quality", "work-precision", "report")),
    ],
)
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    heavy = ("torch", "numpy", "scipy", "h5py", "matplotlib", "torchdiffeq", "PIL", "rich", "safetensors")
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('LOADED', [m for m in {heavy!r} if m in sys.modules]))\n"
        f"sys.argv = ['odeddim', *{arguments!r}]\n"
        "from odeddim.cli import main\nmain()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stdout.rstrip().endswith("LOADED []"), result.stdout[-200:]
