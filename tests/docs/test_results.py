"""The page of results is what its script writes from what was measured."""

from __future__ import annotations

import re

import results


def test_the_page_is_what_was_measured() -> None:
    assert results.PAGE.read_text(encoding="utf-8") == results.page()


def test_nothing_else_was_kept() -> None:
    assert {path.stem for path in results.KEPT.glob("*.json")} == set(results.RESULTS)


def test_every_link_to_a_result_leads_to_one() -> None:
    for path in [results.ROOT / "README.md", *(results.ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"#results-([a-z-]+)", path.read_text(encoding="utf-8")):
            assert name in results.RESULTS, (path.name, name)
