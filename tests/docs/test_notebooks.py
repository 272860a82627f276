"""The manual's notebooks as they are committed. They are run when the manual is built (`docs/conf.py`), not here."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LINKED = re.compile(r"\]\(((?!https?:)[^)#]+)[^)]*\)")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def sources(path: Path, kind: str) -> list[str]:
    """The text of each cell of a kind, "code" or "markdown"."""
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == kind]


def test_there_are_four() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["add-a-solver", "compare-solvers", "first-steps", "photographs"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_notebook_of_format_4_without_outputs(path: Path) -> None:
    notebook = read(path)
    assert notebook["nbformat"] == 4
    assert notebook["nbformat_minor"] == 5
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    for cell in notebook["cells"]:
        own = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | own
        assert cell["cell_type"] in ("code", "markdown")
        if own:
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_begins_with_what_one_will_have_and_its_code_is_python(path: Path) -> None:
    first, *_ = sources(path, "markdown")
    assert re.match(r"# [^\n]+\n\nAt the end of this notebook ", first), first
    for code in sources(path, "code"):
        ast.parse(code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_file_that_it_links_to_exists(path: Path) -> None:
    for target in LINKED.findall("\n".join(sources(path, "markdown"))):
        assert (FOLDER / target).resolve().exists(), target


def test_the_index_names_all_of_them_in_its_table_and_in_its_tree() -> None:
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    stems = {path.stem for path in NOTEBOOKS}
    assert {line for line in tree.splitlines() if line and line[0] != ":"} == stems
    assert {Path(target).stem for target in LINKED.findall(index) if target.endswith(".ipynb")} == stems
