"""The manual's examples run as they stand, page by page, and everything that it links to exists."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ROOT, docs, examples, in_small, pages

Run = Callable[..., tuple[int, str, str]]
UNTESTED = {"train"}
"""Commands that take hours at any size; tests/models/test_train.py trains."""

PRINTED = ("choosing.md", "coming-from.md")
"""Pages where a block of text right below a block of Python is what this prints."""


def printed(text: str, example: str) -> str | None:
    """What a page says that an example prints, or None."""
    _, fence, below = text.partition(f"```python\n{example}```\n\n```text\n")
    return below.partition("```\n")[0] if fence else None


def alike(word: str, other: str) -> bool:
    """Two words of a printed table: numbers may differ as they do between machines."""
    try:
        return float(word) == pytest.approx(float(other), rel=0.05, abs=2e-4)
    except ValueError:
        return word == other


def run_in_order(text: str, name: str, run: Run) -> None:
    """Every example of a page, in one folder and with one set of Python names."""
    names: dict[str, object] = {"__name__": "__main__"}
    for language, example in examples(text):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(example, name, "exec"), names)
            said = printed(text, example) if name in PRINTED else None
            if said is not None:
                words, found = (each.replace(",", " ").split() for each in (said, out.getvalue()))
                assert len(words) == len(found), out.getvalue()
                assert all(alike(*pair) for pair in zip(words, found, strict=True)), out.getvalue()
        elif example.split()[1] not in UNTESTED:
            code, _, err = run(*in_small(example))
            assert code == 0, (example, err)


@pytest.mark.parametrize("name", pages())
def test_the_examples_run_in_order(name: str, furnished: Callable[[str], Path], run: Run) -> None:
    text = pages()[name]
    furnished(text)
    run_in_order(text, name, run)


@pytest.mark.parametrize("path", docs(), ids=lambda path: path.name)
def test_every_file_it_links_to_exists(path: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).resolve().exists(), target
    assert ROOT in path.parents
