"""The reference pages are whole: every public name, every solver with its formula, every command, every setting."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest
from pages import ROOT

import odeddim
from odeddim import cli, jobs, solvers

SOLVERS = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")


def documented() -> list[str]:
    """The names that the pages of the Python reference describe, whole: "odeddim.jobs.encode"."""
    found = []
    for path in sorted((ROOT / "docs" / "api").glob("*.md")):
        module = ""
        for directive, name in re.findall(r"^\.\. (\w+):: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            if directive == "currentmodule":
                module = name
            elif directive.startswith("auto"):
                found.append(name if name.startswith("odeddim.") else f"{module}.{name}")
    return found


def public(module: ModuleType, prefix: str) -> set[str]:
    """The functions, classes and types of a module that are for users."""
    return {
        f"{prefix}.{name}"
        for name in dir(module)
        if not name.startswith("_") and not inspect.ismodule(getattr(module, name)) and name != "annotations"
    }


def test_every_public_name_is_described_once() -> None:
    names = documented()
    assert len(names) == len(set(names))
    assert public(odeddim, "odeddim") - {"odeddim.Field"} <= set(names)
    assert "odeddim.types.Field" in names
    assert public(jobs, "odeddim.jobs") <= set(names)
    assert public(jobs.bench, "odeddim.jobs.bench") <= set(names)
    assert {f"odeddim.solvers.{name}" for name in solvers.__all__} <= set(names)


@pytest.mark.parametrize("name", solvers.names())
def test_a_solver_states_its_formula_and_its_reference(name: str) -> None:
    row = solvers.get(name)
    assert "x̄" in row.formula
    widths = [len(line.replace("\u0304", "")) for line in row.formula.splitlines()]  # the bar over x takes no room
    assert max(widths) <= 84
    assert row.reference


def test_derived_solvers_have_formulas() -> None:
    assert solvers.get("mf-heun2").formula == solvers.get("mf-heun").formula
    assert solvers.get("exact-rk4").formula == solvers.get("exact-heun").formula
    assert solvers.get("exact-ab3").formula == solvers.get("exact-ab2").formula


def test_the_page_of_solvers_has_every_family_once() -> None:
    shown = re.findall(r"^```\{solvers\} (.+)$", SOLVERS, re.MULTILINE)
    assert shown == list(dict.fromkeys(shown))
    assert set(shown) == {row.family for row in solvers.SOLVERS.values()}


def test_the_page_of_solvers_shows_every_row() -> None:
    pytest.importorskip("sphinx", reason="sphinx is installed by the docs extra")
    from solver_table import lines

    for name, row in solvers.SOLVERS.items():
        text = "\n".join(lines(row.family))
        assert f"| `{name}` | {row.order} |" in text
        assert row.formula.strip() in text
        assert all(f"`{setting}` = " in text for setting in row.settings)


def test_the_page_of_solvers_names_solvers_and_settings_that_exist() -> None:
    same, settings = (SOLVERS.partition(f"\n## {title}\n")[2] for title in ("Names for one method", "Settings"))
    for cells in re.findall(r"^\| .* \| (.*) \|$", same.partition("\n## ")[0], re.MULTILINE):
        for name in set(re.findall(r"`([a-z][a-z0-9-]*)`", cells)):
            assert solvers.get(name).name == name
    described = set(re.findall(r"`([a-z_]+)`", " ".join(re.findall(r"^\| (`.*?) \|", settings, re.MULTILINE))))
    assert described == {name for row in solvers.SOLVERS.values() for name in row.settings}


def test_the_page_of_commands_lists_all() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^ +:commands: (.*)$", text, re.MULTILINE)
    assert listed.split(", ") == list(cli.COMMANDS)
