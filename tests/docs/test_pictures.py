"""The pictures of the README and of the manual: each is there, has its maker, and all together are small."""

from __future__ import annotations

import io
import re

import pictures
import PIL.Image
import pytest
from pages import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *DOCS.rglob("*.md")]
SHOWN = {
    f"pictures/{name}" for page in PAGES for name in re.findall(r"pictures/([\w-]+\.png)", page.read_text("utf-8"))
}
MADE = {f"pictures/{name}.png" for name in pictures.MAKERS}
LARGEST = 3_000_000  # bytes of all pictures


def test_every_picture_that_a_page_shows_exists_and_has_its_maker() -> None:
    assert SHOWN <= MADE
    assert all((DOCS / name).is_file() for name in MADE)
    assert {f"pictures/{path.name}" for path in (DOCS / "pictures").iterdir()} == MADE


def test_the_gallery_shows_every_picture_with_the_line_that_makes_it() -> None:
    text = (DOCS / "gallery.md").read_text("utf-8")
    for name in pictures.MAKERS:
        assert re.search(rf"!\[[^]]{{40,}}\]\(pictures/{name}\.png\)", text), name
        assert f"python benchmarks/pictures.py {name}\n" in text
    assert "_static/explore.html" in text


def test_they_are_small_together() -> None:
    files = [*(DOCS / "pictures").iterdir(), DOCS / "static" / "explore.html"]
    assert sum(path.stat().st_size for path in files) < LARGEST


@pytest.mark.parametrize("name", sorted(MADE))
def test_they_are_cards_for_any_page(name: str) -> None:
    with PIL.Image.open(DOCS / name) as image:
        assert image.mode == "RGBA"
        assert 1200 <= image.width <= 1300
        assert not image.info  # no notes: the same picture has the same bytes
        assert image.getchannel("A").getpixel((0, 0)) == 0  # round corners
        assert image.getpixel((image.width // 2, 4)) == (255, 255, 255, 255)


def test_a_maker_draws_what_it_measures() -> None:
    (name, content), *more = pictures.bridge(count=2, steps=2).items()
    assert (name, more) == ("pictures/bridge.png", [])
    with PIL.Image.open(io.BytesIO(content)) as image:
        assert image.size == (1200, 2 * 28 + 4 * (140 + 18) - 18 + 44)
        tiles = image.convert("L").crop((260, 28, 1172, 28 + 140))
        assert tiles.getextrema() == (0, 255)


def test_errors_have_two_digits() -> None:
    assert [pictures.figure_of(value) for value in (0.0, 0.00723, 0.0123, 0.3149, 1.46)] == [
        "0", "0.0072", "0.012", "0.31", "1.5",
    ]  # fmt: skip
