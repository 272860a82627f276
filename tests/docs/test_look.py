"""The manual opens without a network: no page and no style loads anything from elsewhere. (Links may lead there.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import ROOT

LOADS = re.compile(
    r"!\[[^]]*\]\(\s*(?:https?:)?//"  # Markdown's images
    r"|```\{(?:image|figure)\}\s*(?:https?:)?//"
    r"|<(?:img|iframe|script|video|audio|source|embed)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b[^>]*\bhref=[\"']?(?:https?:)?//"
    r"|@import|url\(\s*[\"']?(?:https?:)?//"
)
FILES = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".ipynb", ".css", ".html")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    assert LOADS.findall(path.read_text(encoding="utf-8").replace('\\"', '"')) == []


@pytest.mark.parametrize(
    "text",
    [
        "![a](https://example.org/a.png)",
        "```{image} http://example.org/a.png",
        '<script async src="//example.org/a.js">',
        "<link rel=stylesheet href='https://example.org/a.css'>",
        '@font-face { src: url("https://example.org/a.woff2") }',
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(text: str) -> None:
    assert LOADS.search(text)
    assert not LOADS.search("[a](https://example.org/a.png) ![b](pictures/b.png)")
