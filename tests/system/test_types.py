"""The public names as editors, type checkers and a REPL see them; the examples of their docstrings."""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch

import odeddim
from odeddim import jobs, solvers, types
from odeddim.models.programs import EXPORTS
from odeddim.train.loss import validation_loss
from odeddim.types import OdeSettings, Settings, kind_of

ROOT = Path(__file__).resolve().parent.parent.parent

RIGHT = """
import os
from typing import Any

import torch
from torch import Tensor
from typing_extensions import assert_type

import odeddim


class Pipeline:  # what diffusers' classes have, as they declare it
    unet: Any
    scheduler: Any

    @property
    def config(self) -> dict[str, Any]:
        return {}

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        pass


field = odeddim.load("fashion-mnist", device="cpu", dtype=torch.float32)
x_T = odeddim.noise(4, (1, 28, 28), seed=0)
x_0 = odeddim.solve(x_T, solver="euler", steps=10)
assert_type(x_0, Tensor)
state = odeddim.encode(x_0, "dopri5", model=field, rtol=1e-6, atol=1e-6, max_nfe=1000)
assert_type(state, odeddim.State)
odeddim.encode(x_0, "bdia", gamma=1, grid=[0.0, 1.0, 150.0])
assert_type(odeddim.decode(state, grid="karras", end="sigma_min"), Tensor)
odeddim.sample(2, "ddim-eta", eta=0.5, seed=1, shape=(1, 28, 28))
odeddim.solve(x_T, "ddpm", seed=3, first=7)
assert_type(state[0], odeddim.State)
assert_type(state[1:3], odeddim.State)
assert_type(state[[0, 2]], odeddim.State)
assert_type(state[torch.tensor([0, 2])], odeddim.State)
assert_type(len(state), int)
for one in state:
    assert_type(one, odeddim.State)
a, b, *_ = state.to("cpu", torch.float64).to(torch.float32).to(dtype=torch.float64)
assert_type(odeddim.interpolate(a, b, 5), odeddim.State)
nodes = odeddim.grid("log", field.schedule, 10)
assert_type(nodes, Tensor)
certified, figures = odeddim.certify(x_0, "edict", p=0.93, steps=10)
assert_type(figures["round_trip"], Tensor)
bridged = odeddim.bridge(x_0, "fashion-mnist", "fashion-mnist-flow", steps=10)
assert_type(bridged.images, Tensor)
odeddim.explain("mf-euler", coupling=0.9).to_json()
odeddim.computed_grid(x_0, "ab3", 10, warmup="fine")
row: odeddim.Solver = odeddim.solvers.get("dopri5", rtol=1e-6)
odeddim.solve(x_T, row.with_settings(max_nfe=100))
names: tuple[str, ...] = odeddim.solvers.names()
pipeline = Pipeline()
anything: Any = pipeline
assert_type(odeddim.load(anything), odeddim.VectorField)
assert_type(odeddim.load(pipeline, dtype="float32"), odeddim.VectorField)
odeddim.load(pipeline.unet, scheduler=pipeline.scheduler)
odeddim.solve(x_T, model=pipeline, steps=10)
odeddim.jobs.encode("images", "z.h5", model=odeddim.jobs.Subject(pipeline, {"prompt": "a cat"}))
assert_type(odeddim.Schedule.from_diffusers(pipeline.scheduler), odeddim.Schedule)
mine = odeddim.VectorField(lambda x, t: x, odeddim.Schedule.linear(), name="mine")
options: odeddim.types.Settings = {"rtol": 1e-3}
odeddim.solve(x_T, "dopri5", model=mine, **options)
try:
    assert_type(odeddim.integrate(mine, state, odeddim.Plan(row, nodes)), odeddim.State)
except (odeddim.InputError, odeddim.BudgetExceeded) as error:
    print(error)
"""

WRONG = {
    "odeddim.solve(1, solver=3, nonsense=4)": ('"nonsense"', 'Argument 1 to "solve"', 'Argument "solver"'),
    "odeddim.encode(x, nonsense=4)": ('"nonsense"',),
    "odeddim.decode(x, rtol='small')": ('Argument 1 to "decode"', 'Argument "rtol"'),
    "odeddim.sample(2, first=3)": ('"first"',),
    "odeddim.certify(x, nonsense=4)": ('"nonsense"',),
    "odeddim.bridge(x, 'a', 'b', nonsense=4)": ('"nonsense"',),
    "odeddim.explain(nonsense=4)": ('"nonsense"',),
    "odeddim.computed_grid(x, 'euler', 10, nonsense=4)": ('"nonsense"',),
    "odeddim.load(3)": ('Argument 1 to "load"',),
    "odeddim.load(torch.nn.Conv2d(1, 1, 1))": ('Argument 1 to "load"',),
    "odeddim.State(x, 1.0)[None]": ("Invalid index type",),
    "odeddim.slove(x)": ('"slove"',),
    "odeddim.solvers.nonsense": ('"nonsense"',),
}
"""Calls with the errors that mypy must report of each, and no others."""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy --strict reports of two programs, after it has found nothing in the package, assembled as installed.

    It takes most of a minute, so the tests that need it are slow: .ci/run and `pytest -m slow` run them.
    """
    folder = tmp_path_factory.mktemp("assembled")
    skip = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(ROOT / "odeddim", folder / "odeddim", ignore=skip)
    for name in ("solvers", "cli"):
        shutil.copytree(ROOT / name, folder / "odeddim" / name, ignore=skip)
    (folder / "right.py").write_text(RIGHT, encoding="utf-8")
    lines = ["import odeddim, torch", "x = torch.zeros(2, 1, 28, 28)", *WRONG]
    (folder / "wrong.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = [
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--cache-dir",
        "cache",
        "odeddim",
        "right.py",
        "wrong.py",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    errors = [line for line in result.stdout.splitlines() if " error: " in line]
    found = {name: [line for line in errors if line.startswith(name)] for name in ("right.py", "wrong.py")}
    if EXPORTS:  # old dependencies type less: what mypy reports of the package beside them is no matter
        assert sum(map(len, found.values())) == len(errors), errors
    return found


@pytest.mark.slow
def test_mypy_takes_a_right_program(complaints: dict[str, list[str]]) -> None:
    assert complaints["right.py"] == []


@pytest.mark.slow
@pytest.mark.parametrize("call", WRONG)
def test_mypy_reports_each_wrong_argument(complaints: dict[str, list[str]], call: str) -> None:
    number = 3 + list(WRONG).index(call)
    found = [line for line in complaints["wrong.py"] if line.startswith(f"wrong.py:{number}:")]
    assert len(found) == len(WRONG[call]), found
    for words in WRONG[call]:
        assert any(words in line for line in found), (words, found)


def test_the_settings_are_those_of_the_table() -> None:
    rows = [solvers.get(name) for name in solvers.names()]
    table: dict[str, type] = {}
    for row in rows:
        for name, default in row.settings.items():
            assert table.setdefault(name, kind_of(default)) is kind_of(default), name
    typed = {
        name: tuple(get_origin(kind) or kind for kind in get_args(kinds))
        for name, kinds in get_type_hints(Settings).items()
    }
    assert typed == {name: (kind, type(None)) for name, kind in table.items()}
    quiet = {name for row in rows if not row.stochastic for name in row.settings}
    assert set(get_type_hints(OdeSettings)) == quiet


def test_the_names_of_run_time_are_those_of_type_checkers() -> None:
    tree = ast.parse(Path(str(odeddim.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # a re-export
            typed[alias.name] = node.module
    assert odeddim.__dict__["_HOMES"] == typed
    assert set(odeddim.__dict__["__all__"]) == {"__version__", *typed}


def test_a_repl_completes_names_and_shows_signatures_and_help() -> None:
    names = dir(odeddim)
    assert {"solve", "encode", "decode", "sample", "load", "State", "VectorField", "solvers"} < set(names)
    assert "import_module" not in names
    for name in names:
        value = getattr(odeddim, name)
        assert isinstance(value, (str, ModuleType)) or name == "Field" or inspect.getdoc(value), name
    signature = inspect.signature(odeddim.solve)
    named = ["x_T", "solver", "model", "steps", "grid", "end", "top", "plan", "batch_size", "progress"]
    named += ["callback", "gradients", "parallel", "portable", "settings"]
    assert list(signature.parameters) == named
    assert signature.parameters["settings"].annotation == "Unpack[Settings]"
    assert get_type_hints(odeddim.solve)["return"] is torch.Tensor  # every annotation has a meaning at run time
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        help(odeddim.solve)
    for words in ("solve(x_T", "Args:", "Returns:", "Raises:", "Example:"):
        assert words in shown.getvalue()


def test_import_is_light_and_openmp_waits_quietly() -> None:
    code = "import odeddim, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules, len(dir(odeddim)))"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**environment, **given}, capture_output=True, text=True
        )
        assert result.stdout.split()[:2] == [expected, "False"], result.stderr


SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Source", "Example")
"""The sections of a docstring, in their order."""
SLOW = {"jobs.train"}
"""What has an example that would take too long to run here."""


def public() -> dict[str, Any]:
    """The public functions and classes, by name: those of odeddim, of its jobs and benches, and of the solver table."""
    shown = {name: getattr(odeddim, name) for name in dir(odeddim)}
    shown |= {f"jobs.{name}": getattr(jobs, name) for name in dir(jobs)}
    shown |= {f"jobs.bench.{name}": getattr(jobs.bench, name) for name in dir(jobs.bench)}
    shown |= {f"solvers.{name}": getattr(solvers, name) for name in ("add", "get")}
    shown["train.loss.validation_loss"] = validation_loss
    shown = {name: value for name, value in shown.items() if get_origin(value) is None}  # Callable[...] of Python 3.10
    return {name: value for name, value in shown.items() if inspect.isfunction(value) or inspect.isclass(value)}


def methods() -> dict[str, Any]:
    """The public methods of these classes, by name; those of base classes outside odeddim are left out."""
    found = {}
    for name, value in public().items():
        for key in vars(value) if inspect.isclass(value) else ():
            method = getattr(value, key)
            if not key.startswith("_") and (inspect.isfunction(method) or inspect.ismethod(method)):
                found[f"{name}.{key}"] = method
    return found


def test_public_names_are_found() -> None:
    assert {"solve", "grid", "VectorField", "jobs.encode", "jobs.Machine", "jobs.train"} < set(public())
    assert {"VectorField.from_network", "Schedule.linear", "Plan.load", "State.to"} < set(methods())
    assert not {name for name in public() if name.startswith("jobs._")}


@pytest.mark.slow  # .ci/run runs it, with the examples of the manual
@pytest.mark.parametrize("name", public())
def test_examples_run(name: str) -> None:
    value = public()[name]
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    module = sys.modules[str(value.__module__)]
    names = {**vars(module), "odeddim": odeddim, "torch": torch}
    tests = finder.find(value, name, module=module, globs=names)
    report = io.StringIO()
    for test in tests:
        runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()
    assert tests[0].examples or name in SLOW


def sections_of(value: Any) -> dict[str, str]:
    """The sections of a docstring by name, each with its text."""
    parts = re.split(r"^([A-Z][a-z]+):$", str(inspect.getdoc(value)), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def entries_of(text: str) -> set[str]:
    """The names that a section "Args" or "Attributes" describes."""
    named = re.findall(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):(?: |$)", text, re.MULTILINE)
    return {word.strip("*") for names in named for word in names.split(", ")}


@pytest.mark.parametrize("name", public())
def test_docstrings_are_complete(name: str) -> None:
    value = public()[name]
    sections = sections_of(value)
    assert list(sections) == [name for name in SECTIONS if name in sections]
    assert "Example" in sections
    described = entries_of(sections.get("Args", "")) | entries_of(sections.get("Attributes", ""))
    if inspect.isfunction(value):
        assert described == set(inspect.signature(value).parameters)
        assert ("Returns" in sections) == (inspect.signature(value).return_annotation != "None")
        assert "Raises" in sections
    elif not issubclass(value, Exception):
        assert described >= set(inspect.signature(value).parameters)


@pytest.mark.parametrize("name", ["solve", "encode", "decode", "sample", "integrate"])
def test_docstrings_of_the_api_name_their_source(name: str) -> None:
    assert list(sections_of(getattr(odeddim, name))) == ["Args", "Returns", "Raises", "Source", "Example"]


@pytest.mark.parametrize("name", methods())
def test_docstrings_of_methods_describe_all_arguments_or_none(name: str) -> None:
    method = methods()[name]
    assert inspect.getdoc(method)
    sections = sections_of(method)
    assert list(sections) == [name for name in SECTIONS if name in sections]
    if "Args" in sections:
        assert entries_of(sections["Args"]) == set(inspect.signature(method).parameters) - {"self"}


def test_types_load_no_torch() -> None:
    code = f"import sys; import {types.__name__}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
