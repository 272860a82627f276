"""What a row says of itself is true, and nobody outside the table asks for anything else: no name, no family."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_solvers import IMAGES, MIXTURE, ODE, ROWS, check_order, check_run, each, log_grid
from torch import Tensor

from odeddim import solvers
from odeddim.ode.gaussian import Gaussian
from odeddim.types import BudgetExceeded, Depends, Field, InputError, Solver, State

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 6
NAMES = {row.name for row in ROWS} | {row.family for row in ROWS}
PREFIXES = tuple(solvers.DERIVED)


def start_of(row: Solver, dtype: torch.dtype = torch.float64) -> tuple[State, Tensor]:
    """Where a run of this row begins, and its nodes: upwards, or downwards if it only decodes."""
    sigmas = log_grid(STEPS, 0.05, 20.0)
    if row.stochastic:
        return State(20 * IMAGES[:3].to(dtype), 20.0), sigmas.flip(0)
    return State(IMAGES[:3].to(dtype), 0.05), sigmas


def defaults_in_numbers(row: Solver, field: Field, dtype: torch.dtype) -> dict[str, Any]:
    """The defaults of a row, those that depend on the run computed for this one."""
    given = {"p": STEPS, "coupling": STEPS, "accuracy": dtype, "batch": field}
    return {
        key: default.value(given[key]) if isinstance(default, Depends) else default
        for key, default in row.settings.items()
    }


def same(a: State, b: State) -> None:
    assert torch.equal(a.xbar, b.xbar)
    assert len(a.aux) == len(b.aux)
    assert all(map(torch.equal, a.aux, b.aux))
    assert a.kept == b.kept
    assert a.report.keys() == b.report.keys()
    assert all(torch.equal(a.report[key], b.report[key]) for key in a.report)


def check_defaults(row: Solver, dtype: torch.dtype) -> None:
    """A run with all its settings given as the row states their defaults is the run without, bit for bit."""
    state, sigmas = start_of(row, dtype)
    given = defaults_in_numbers(row, MIXTURE, dtype)
    told = row.with_settings(**given)
    assert dict(told.chosen) == given
    same(told.run(MIXTURE, state, sigmas), row.run(MIXTURE, state, sigmas))
    nodes = sigmas.tolist()
    if row.instructions is not None and told.instructions is not None:
        assert told.instructions(nodes) == row.instructions(nodes)
    if row.growth is not None and told.growth is not None:
        assert told.growth(nodes, True) == row.growth(nodes, True)


WITH_SETTINGS = [row for row in ROWS if row.settings]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@each(WITH_SETTINGS)
def test_defaults_are_those_of_a_run(row: Solver, dtype: torch.dtype) -> None:
    check_defaults(row, dtype)


@pytest.mark.parametrize(
    ("name", "key", "lie"), [("bdia", "gamma", 0.5), ("dopri5", "rtol", 1e-4), ("edict", "p", 0.9)]
)
def test_a_false_default_is_found(name: str, key: str, lie: float) -> None:
    row = solvers.get(name)
    with pytest.raises(AssertionError):
        check_defaults(dataclasses.replace(row, settings={**row.settings, key: lie}), torch.float64)


def test_settings_that_are_chosen() -> None:
    row = solvers.get("dopri5")
    assert row.chosen == {}
    once = row.with_settings(rtol=1e-6, atol=None)
    assert once.chosen == {"rtol": 1e-6}
    twice = once.with_settings(atol=1e-7, rtol=1e-3)
    assert twice.chosen == {"rtol": 1e-3, "atol": 1e-7}
    assert twice.settings == row.settings
    assert twice.with_settings(max_nfe=None) is twice
    state, sigmas = start_of(row)
    same(twice.run(MIXTURE, state, sigmas), row.with_settings(**twice.chosen).run(MIXTURE, state, sigmas))


def test_the_kind_of_a_setting_is_that_of_its_default() -> None:
    assert solvers.get("ddim-eta", eta=1).chosen == {"eta": 1}  # an int for a float
    for name, wrong, kind in (
        ("dopri5", {"max_nfe": 1e3}, "a whole number"),
        ("dopri5", {"rtol": "small"}, "a number"),
        ("ddim-eta", {"eta": True}, "a number"),
        ("ab3", {"warmup": 1}, "a word"),
        ("edict", {"p": "0.9"}, "a number"),
        ("dopri5-per-image", {"batch": 1.5}, "a whole number"),
    ):
        with pytest.raises(InputError, match=f"must be {kind}"):
            solvers.get(name, **wrong)
    with pytest.raises(InputError, match=r"no setting 'eta' .*: rtol = 1e-05, atol = 1e-05, max_nfe = 10000\)"):
        solvers.get("dopri5", eta=1.0)
    with pytest.raises(InputError, match=r"no setting 'eta' .*: p = 0\.93\^\(50/N\) at N steps\)"):
        solvers.get("edict", eta=1.0)


@pytest.mark.parametrize(
    "wrong", [{"settings": {"p": None}}, {"settings": {"p": float}}, {"settings": {"p": True}}, {"limits": ("q",)}]
)
def test_a_row_that_cannot_be_true(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'heun'"):
        dataclasses.replace(solvers.get("heun"), **wrong)


class Visitors:
    """A field over points of the plane whose third number, which stays, says which image it is; it notes its calls.

    Image i is shaken the more the larger i is, so that each needs steps of its own.
    """

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.moments = Gaussian.isotropic(0.0, 0.5)

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        points, which = xbar.split((2, 1), dim=1)
        self.calls.append([round(number / 10) for number in which.flatten().tolist()])
        shaken = MIXTURE(sigma, points) + 0.3 * which / 10 * torch.cos(10 * sigma.log()).reshape(-1, 1)
        return torch.cat([shaken, torch.zeros_like(which)], dim=1)

    @staticmethod
    def images(count: int) -> State:
        which = 10 * torch.arange(count, dtype=torch.float64).unsqueeze(1)
        return State(torch.cat([IMAGES[:count], which], dim=1), 0.05)


@each(ODE)
def test_whose_steps_they_are(row: Solver) -> None:
    """Rows that share steps, and no others, give an image something else in other company."""
    sigmas, batch = log_grid(STEPS, 0.05, 20.0), {"batch": 4} if row.queued else {}
    row = row.with_settings(rtol=1e-3, atol=1e-3, **batch) if row.adaptive else row
    together = row.run(Visitors(), Visitors.images(3), sigmas).xbar[:1]
    alone = row.run(Visitors(), Visitors.images(1), sigmas).xbar
    assert torch.equal(together, alone) != row.shares_steps


@each(ODE)
def test_who_is_evaluated_together(row: Solver) -> None:
    """One by one, in calls that stay full, or in the calls of a whole batch."""
    field = Visitors()
    fast = row.with_settings(rtol=1e-2, atol=1e-2) if row.adaptive else row
    fast = fast.with_settings(batch=2) if row.queued else fast
    fast.run(field, Visitors.images(5), log_grid(STEPS, 0.05, 20.0))
    assert all(len(set(call)) == 1 for call in field.calls) == row.one_by_one
    assert all(len(call) == 2 for call in field.calls) == row.queued


@each(WITH_SETTINGS)
def test_limits_change_nothing_that_is_reached(row: Solver) -> None:
    """A limit that is high gives the same bits as the default, and a low one an end without a result."""
    state, sigmas = start_of(row)
    for key in row.limits:
        reached = row.run(MIXTURE, state, sigmas)
        same(row.with_settings(**{key: 3 * row.settings[key]}).run(MIXTURE, state, sigmas), reached)
        with pytest.raises(BudgetExceeded):
            row.with_settings(**{key: 9}).run(MIXTURE, state, sigmas)
    if "max_nfe" in row.settings and "max_nfe" not in row.limits:
        other = row.with_settings(max_nfe=1).run(MIXTURE, state, sigmas)  # which has a result, and another one
        assert not torch.equal(other.xbar, row.run(MIXTURE, state, sigmas).xbar)


def test_stochastic_forms() -> None:
    """Each is a stochastic row with an η, which at η = 0 is the row itself."""
    rows = [row for row in ROWS if row.stochastic_form]
    assert [row.name for row in rows] == ["euler"]
    for row in rows:
        form = solvers.get(row.stochastic_form)
        assert form.stochastic
        state, sigmas = State(20 * IMAGES, 20.0), log_grid(STEPS, 0.05, 20.0).flip(0)
        found = form.with_settings(eta=0.0).run(MIXTURE, state, sigmas).xbar
        assert torch.allclose(found, row.run(MIXTURE, state, sigmas).xbar, rtol=1e-14, atol=1e-14)


def test_the_rule_of_a_default() -> None:
    """What is said in words is what is done."""
    edict, coupled = (solvers.get(name).settings[key] for name, key in (("edict", "p"), ("mf-euler", "coupling")))
    assert (edict.words, edict.value(50), edict.value(25)) == ("0.93^(50/N) at N steps", 0.93, 0.93**2)
    assert (coupled.words, coupled.value(10)) == ("e^(-1/N) at N steps", math.exp(-0.1))
    accuracy = solvers.get("exact-euler").settings["accuracy"]
    assert str(accuracy) == f"{accuracy.value(torch.float32)} in float32, {accuracy.value(torch.float64)} in float64"
    assert solvers.get("dopri5-per-image").settings["batch"].value(MIXTURE) == 16


def test_the_readme_adds_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code in solvers/README.md, as it stands, is a row that passes the tests of the table."""
    monkeypatch.setattr(solvers, "SOLVERS", dict(solvers.SOLVERS))
    page = (ROOT / "solvers" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    row = solvers.get("rk2")
    assert row.settings == {"part": 0.5}
    for dtype in (torch.float32, torch.float64):
        check_run(row, 7, "encode", dtype)
        check_defaults(row, dtype)
    for part in (0.5, 2 / 3, 1.0):
        check_order(solvers.get("rk2", part=part), "decode", "bent")
    state, sigmas = start_of(row)
    heun = solvers.get("heun").run(MIXTURE, state, sigmas).xbar
    assert torch.allclose(solvers.get("rk2", part=1.0).run(MIXTURE, state, sigmas).xbar, heun, rtol=1e-13, atol=0)


def test_the_readme_names_the_modules() -> None:
    """Each module of the package is in its table, and nothing else is."""
    page = (ROOT / "solvers" / "README.md").read_text(encoding="utf-8")
    named = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    there = {path.stem for path in (ROOT / "solvers").glob("*.py")} - {"__init__"}
    assert named == there


# Nobody asks a row for its name or family: all of odeddim/ and cli/, read as syntax.


def questions(source: str) -> Iterator[int]:
    """The lines of a module that compare a row's family or name with a string, or look into what it is made of."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def words(node: ast.expr | None) -> set[str]:
        """The strings of a literal, or of a constant of the module."""
        if isinstance(node, ast.Name):
            node = constants.get(node.id)
        if isinstance(node, ast.Constant):
            return {node.value} if isinstance(node.value, str) else set()
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            return set().union(*map(words, node.elts))
        if isinstance(node, ast.Dict):
            return set().union(*map(words, node.keys))
        if isinstance(node, ast.Call) and node.args:  # frozenset({...})
            return words(node.args[0])
        return set()

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = {side.attr for side in sides if isinstance(side, ast.Attribute)}
            settings = isinstance(node.left, ast.Constant) and "settings" in named
            if "family" in named or settings or any(words(side) & NAMES for side in sides):
                yield node.lineno
        elif isinstance(node, ast.MatchValue) and words(node.value) & NAMES:
            yield node.lineno
        elif isinstance(node, ast.Subscript) and isinstance(node.value, (ast.Dict, ast.Name)):
            if isinstance(node.slice, ast.Attribute) and node.slice.attr in ("name", "family") and words(node.value):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("startswith", "removeprefix") and node.args and words(node.args[0]) & {*PREFIXES}:
                yield node.lineno
            if node.func.attr == "signature" and isinstance(node.func.value, ast.Name):
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "inspect":
            yield node.lineno


ASKS = (
    'row.family == "reversible"',
    "row.family in families",
    'row.name == "euler"',
    '"euler" != run.solver.name',
    'name in ("euler", "heun")',
    'solver not in ["ab2"]',
    'FEW = ("euler", "x")\nname in FEW',
    'FEW = frozenset({"euler"})\nname in FEW',
    'WAITS = {"scipy": 2}\nWAITS[row.family]',
    '"batch" in row.settings',
    'match row.name:\n    case "euler":\n        pass',
    'name.startswith("mf-")',
    "inspect.signature(row.run)",
    "from inspect import signature",
)
FINE = (
    "row.name == made.solver",
    'kept not in ("", row.name)',
    "key in row.settings",
    'column.name == "remark"',
    'solver = "euler"',
    'FEW = ("euler", "x")\nrows = [solvers.get(name) for name in FEW]',
)


@pytest.mark.parametrize("source", ASKS)
def test_questions_are_found(source: str) -> None:
    assert list(questions(source))


@pytest.mark.parametrize("source", FINE)
def test_what_is_no_question(source: str) -> None:
    assert not list(questions(source))


def test_nobody_asks_a_row_for_its_name() -> None:
    folders = [path for path in (ROOT / "odeddim").iterdir() if path.name != "models"]  # its names are others'
    files = [path for folder in (*folders, ROOT / "cli") for path in sorted(folder.rglob("*.py"))]
    assert len(files) > 50
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in questions(path.read_text("utf-8"))]
    assert not found, f"make it a field of the row (odeddim.types.Solver): {found}"
