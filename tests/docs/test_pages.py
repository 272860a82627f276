"""The manual's examples run as they stand, page by page, and everything that it links to exists.

All pages but the first take minutes: .ci/run and `pytest -m slow` run them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ROOT, Run, docs, pages, run_in_order

FIRST = "getting-started.md"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != FIRST else []) for name in pages()]
)
def test_the_examples_run_in_order(name: str, furnished: Callable[[str], Path], run: Run) -> None:
    text = pages()[name]
    furnished(text)
    run_in_order(text, name, run)


@pytest.mark.parametrize("path", docs(), ids=lambda path: path.name)
def test_every_file_it_links_to_exists(path: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).resolve().exists(), target
    assert ROOT in path.parents
