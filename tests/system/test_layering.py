"""Who may import whom: the drawing of docs/architecture.md, and no circle anywhere."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# From the ground up, a floor a line: a module may import those of the floors below it and of its own room.
FLOORS = (
    ("types",),
    ("storage", "solvers"),
    ("ode",),
    ("plans",),
    ("runs",),
    ("models",),
    ("latents",),
    ("api",),
    ("bench", "train", "checks", "fitting"),
    ("jobs",),
    ("cli",),
)
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
# Modules at the top that belong to a room of another name.
ROOM = {"defaults": "types", "foreign_names": "types", "bridges": "api", "trajectories": "api"}
ANYWHERE = {
    "odeddim",
    "odeddim._checkout",
    "odeddim.__main__",
}  # the package itself: its version, where its folders lie


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, as installed: solvers/ is odeddim.solvers and cli/ is odeddim.cli."""
    found = {}
    for folder, package in (("odeddim", "odeddim"), ("solvers", "odeddim.solvers"), ("cli", "odeddim.cli")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every odeddim module that a file imports, anywhere in it; relative imports are refused.

    The package itself names for type checkers what it imports when it is used: that is no arrow.
    """
    found: set[str] = set()
    known = modules()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path == ROOT / "odeddim" / "__init__.py":
        tree.body = [part for node in tree.body for part in _at_run_time(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return frozenset(name for name in found if name.split(".")[0] == "odeddim")


def _at_run_time(node: ast.stmt) -> list[ast.stmt]:
    """A statement without what only type checkers see of it."""
    return node.orelse if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" else [node]


def room(name: str) -> str:
    """The room of a module: "odeddim.storage.hdf5" is in "storage"."""
    top = name.split(".")[1]
    return ROOM.get(top, top)


def forbidden(name: str, imported: str) -> bool:
    """Whether this arrow is one that the drawing does not have."""
    if imported in ANYWHERE:
        return False
    if name in ANYWHERE:
        return name == "odeddim" and imported != "odeddim._checkout"
    here, there = room(name), room(imported)
    if here == there:
        return False
    return LEVEL[there] >= LEVEL[here]


@pytest.mark.parametrize("name", modules())
def test_imports_go_downwards(name: str) -> None:
    for imported in imports(modules()[name]):
        assert not forbidden(name, imported), f"{name} imports {imported}"


def test_every_module_has_a_room() -> None:
    for name in modules():
        assert name in ANYWHERE or room(name) in LEVEL, name


def test_no_module_is_on_a_circle() -> None:
    arrows = {name: imports(path) & set(modules()) - {name} for name, path in modules().items()}
    left = dict(arrows)
    while ends := [name for name, there in left.items() if not there & set(left)]:
        for name in ends:
            del left[name]
    assert not left, f"circles among {sorted(left)}"


def test_few_modules_at_the_top() -> None:
    assert len(list((ROOT / "odeddim").glob("*.py"))) <= 10


LINES, BODY, PARAMETERS = 400, 60, 10  # of a file and of a function, without docstrings; of a signature, without self
LONGER = {
    "odeddim.checks.density.log_density": "what odeddim.encode takes, the probes, and the dequantisation",
    "odeddim.jobs.density.density": "what jobs.encode takes, and how densities are measured",
    "odeddim.jobs.encode.encode": "what to encode, how to prepare it, how to run, and what to find out",
    "odeddim.jobs.decode.decode": "what to decode, how to run, where images and trajectories go",
    "odeddim.checks.scores.score": "what to score, what to compare with, how to run, and what to measure besides",
    "odeddim.jobs.score.score": "what to score, what to compare with, how to prepare and to run, and where",
    "odeddim.jobs.sample.sample": "what odeddim.sample takes, where images go, and what to find out",
    "odeddim.checks.explanation.explain": "what odeddim.encode takes, the direction, and what to find out",
    "odeddim.jobs.verify.verify": "what to check or to compare with, what to draw, and how to run",
    "odeddim.jobs.edit.edit": "what jobs.bridge takes, and both descriptions",
    "odeddim.jobs.moments.moments": "what to compute it of, how to prepare it, how to run, and where",
    "odeddim.jobs.fit.fit": "what to fit to, how to prepare it, what to find, and where",
    "odeddim.fitting.fit.fit": "what to fit to, what to find, and how to run",
    "odeddim.api.solve": "what to decode, how to run, what to show of it, and gradients",
    "odeddim.api.encode": "what odeddim.solve takes",
    "odeddim.api.decode": "what odeddim.solve takes",
    "odeddim.api.sample": "what odeddim.solve takes, and the noise",
    "odeddim.trajectories.making.trajectory": "what odeddim.solve takes, the direction, what is kept, and where",
    "odeddim.models.networks.adm.ADM.__init__": "the settings that its checkpoints come with, one by one",
    "odeddim.models.networks.unet.UNet.__init__": "the settings that its checkpoints come with, one by one",
}
"""Functions that are allowed to be longer, or to take more, and why."""


def functions(name: str, tree: ast.AST) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of a module with its full name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node
            yield from functions(f"{name}.{node.name}", node)


def measured(function: ast.FunctionDef) -> tuple[int, int]:
    """The lines of a function without its docstring, and its parameters without self."""
    words = ast.get_docstring(function, clean=False) or ""
    lines = (function.end_lineno or 0) - function.lineno + 1 - words.count("\n")
    taken = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return lines, len([it for it in taken if it.arg not in ("self", "cls")])


def test_nothing_grows_beyond_what_can_be_read() -> None:
    """Where one does, a noun is missing."""
    seen = set()
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        words = [ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)]
        assert text.count("\n") - sum(it.count("\n") for it in words if it) <= LINES, name
        for full, function in functions(name, tree):
            lines, parameters = measured(function)
            if full in LONGER:
                seen.add(full)
            else:
                assert lines <= BODY, f"{full} has {lines} lines"
                assert parameters <= PARAMETERS, f"{full} has {parameters} parameters"
    assert seen == set(LONGER)


def test_commands_have_few_parameters_of_their_own() -> None:
    for name, path in modules().items():
        for full, function in functions(name, ast.parse(path.read_text(encoding="utf-8"))):
            if full.startswith("odeddim.cli.") and function.name == "command":
                assert measured(function)[1] <= PARAMETERS, full


def test_a_wrong_arrow_is_seen() -> None:
    assert forbidden("odeddim.solvers.onestep", "odeddim.ode.schedule")
    assert forbidden("odeddim.ode.field", "odeddim.plans")
    assert forbidden("odeddim.storage.hdf5", "odeddim.solvers")
    assert forbidden("odeddim.latents.latent_file", "odeddim.api")
    assert forbidden("odeddim.checks.certificate", "odeddim.bench.harness")
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
        ["completion", "bash"],
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
