"""The page of a folder of benches: what it says, that no table gets into it as HTML, and how a browser shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from browser import Browser, chromium_driver, in_a_browser

from odeddim.bench import figures, quality
from odeddim.bench.report import inline_svg, report
from odeddim.bench.tables import Column, Sheet, Table
from odeddim.types import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
NASTY = '<script>alert(1)</script> "quotes" & ampersands </style></svg><img src=x onerror=alert(2)> --> $title'
MODEL = {"model": "fashion-mnist", "sha256": "d9650bd1" * 8}

COLUMNS = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", f"where it runs {NASTY}", "s"),
    Column("steps", "steps", "empty: the solver chooses its steps"),
    Column("evaluations", "evals", "evaluations of the network per image and direction", "g"),
    Column("round_trip", "round trip", "mean squared error per dimension on the [0, 1] scale", ".1e"),
    Column("latent", "latent", "rms distance to the ODE's true latent, over σ", ".2e"),
    Column("remark", "remark", form="s"),
)
# The three round trips of 1.0e-03 differ in digits that are not shown.
ROWS = [
    ("euler", "linear", 100, 100, 1.002e-3, 0.2, ""),
    ("euler", "linear", 9, 9, 0.31, 0.4, NASTY),
    ("euler", "linear", 20, 20, 1.001e-3, 0.3, "short"),
    ("belm", "log", 1000, 999.5, 0.0, 1e-3, ""),
    ("belm", "log", 10, 9.5, 2e-10, 5e-2, "x" * 300),
    ("dopri5", "-", None, 75, None, None, "it failed: " + "words " * 40),
    ("ab3", "karras", 5, 6, 1.0005e-3, 0.1, ""),
]
STEPS = ["100", "9", "20", "1000", "10", "–", "5"]


def reconstruction(**changes: Any) -> Table:
    """A table of that bench, which `figures` draws, with all that a table can hold."""
    table = Table(
        bench="reconstruction",
        title=f"Reconstruction & back: {NASTY}".replace("$title", ""),  # its figure takes $ for the sign of a formula
        settings={
            **MODEL, "reference_error": 7e-4, "images": 2, NASTY: NASTY, "nothing": None, "levels": [0.5, None, "a"],
            "versions": {"odeddim": "0.1.0", "torch": "2.13.0"}, "deep": [[1, 2], {"a": "<b>"}], "long": "0123" * 100,
        },
        columns=COLUMNS,
        rows=tuple(dict(zip([column.name for column in COLUMNS], row, strict=True)) for row in ROWS),
        notes=("the true latent is known", NASTY),
        group=("solver", "grid"),
    )  # fmt: skip
    return replace(table, **changes)


def other(bench: str, **changes: Any) -> Table:
    """A table without a figure of its own, but with images."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    sheets = tuple(Sheet(f"images {i} of <b>{bench}</b>", images, ("η = 0", "a & b"), ("1", "2", "3")) for i in (1, 2))
    columns = (Column("n", "count", "how many"), Column("name", "name", form="s"))
    rows = tuple({"n": i, "name": f"image {i}"} for i in range(12))
    return replace(Table(bench, f"The {bench} bench", MODEL, columns, rows, sheets=sheets), **changes)


class Page(HTMLParser):
    """What a page is made of: its elements with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three benches, one of them unknown and with a nasty name."""
    folder = tmp_path_factory.mktemp("bench")
    for table in (other("z b'&\"<i>"), other("ant"), reconstruction()):
        table.save(folder)
    output = folder / "report.html"
    assert report(folder, output) == ["reconstruction", "ant", "z b'&\"<i>"]
    return output


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page(made)


@pytest.mark.slow
def test_the_same_tables_give_the_same_bytes(made: Path, page: Page) -> None:
    again = made.with_name("again.html")
    # In another process, where sets and dicts of words have another order.
    command = [sys.executable, "-m", "odeddim", "bench", "report", str(made.parent), "-o", str(again)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7"}, stdout=subprocess.DEVNULL)
    assert again.read_bytes() == made.read_bytes()
    assert page.text.startswith("<!DOCTYPE html>")


def test_the_order_is_the_houses_and_then_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DRAWN", {})  # these are tables of those benches by their names alone
    names = ["work-precision", "reconstruction", "quality", "consistency", "interpolation", "time", "ant", "zebra"]
    for name in names:
        other(name, sheets=()).save(tmp_path)
    assert report(tmp_path, tmp_path / "r.html") == names
    assert re.findall(r'<section id="bench-([\w-]+)"', (tmp_path / "r.html").read_text()) == names


def test_nothing_of_a_table_gets_in_as_html(page: Page) -> None:
    assert len(page.all("script")) == 1
    assert page.text.count("alert(1)") == page.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    assert {tag for tag, _ in page.elements} & {"img", "b", "i"} == set()
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &quot;quotes&quot; &amp; ampersands" in page.text
    assert "--&gt; $title" in page.text  # nor is what a table says filled in


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in page.text
    assert re.findall(r"url\((?!#)", page.text) == []
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'sha256-" in policy


def test_every_id_is_unique_and_every_reference_finds_its_own(page: Page) -> None:
    ids = page.ids()
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    wanted = re.findall(r"url\(#([^)]+)\)", page.text)
    wanted += [value[1:] for _, a in page.elements if (value := a.get("href", "")).startswith("#")]
    wanted += [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert len(wanted) > 100  # glyphs, markers, clip paths, captions, contents
    assert set(wanted) <= set(ids)


def test_an_svg_file_becomes_an_element() -> None:
    svg = b"""<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/svg11.dtd">
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt" viewBox="0 0 1 1">
<metadata><a/></metadata><defs><style type="text/css">*{fill: red}</style><clipPath id="c"/></defs>
<!-- \x01 --><g style="x: y; clip-path: url(#c)" clip-path="url(#c)"><use xlink:href="#c"/>
<image xlink:href="data:image/png;base64,AA=="/></g></svg>"""
    element = " ".join(inline_svg(svg, "p-", {"class": "light"}).split())
    assert element == (
        '<svg width="9pt" viewBox="0 0 1 1" style="--width: 9pt" id="p-root" role="img" class="light"> '
        '<defs><style type="text/css">#p-root *{fill: red}</style><clipPath id="p-c" /></defs> '
        '<g style="x: y; clip-path: url(#p-c)" clip-path="url(#p-c)"><use href="#p-c" /> '
        '<image href="data:image/png;base64,AA==" /></g></svg>'
    )


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib has none for them
def test_characters_that_no_xml_may_have_do_not_stop_the_page(tmp_path: Path) -> None:
    sheet = Sheet("a \x01 \x00 -- b", np.zeros((1, 1, 2, 2, 1), np.uint8), ("\x1b",), ("",))
    other("ant", sheets=(sheet,), notes=("c \x02 d",)).save(tmp_path)
    report(tmp_path, tmp_path / "r.html")
    assert "c \x02 d" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_columns_of_one_heading_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    columns = (Column("n", "count", "how many"), Column("name", "count", "which <one>"))
    other("ant", sheets=(), columns=columns).save(tmp_path)
    report(tmp_path, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<dt>count <code>n</code></dt><dd>how many</dd>" in text
    assert "<dt>count <code>name</code></dt><dd>which &lt;one&gt;</dd>" in text


@pytest.mark.parametrize(
    ("settings", "models"),
    [
        ({"model": "a copy of it", "sha256": MODEL["sha256"]}, 1),
        ({"model": "fashion-mnist", "sha256": "other"}, 2),
        ({"model": "<i>mine</i>"}, 2),
        ({}, 2),
    ],
)
def test_tables_of_different_models_are_told_apart(tmp_path: Path, settings: dict[str, Any], models: int) -> None:
    other("ant", sheets=()).save(tmp_path)
    other("zebra", sheets=(), settings=settings).save(tmp_path)
    report(tmp_path, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert ("of 2 different models" in text) == (models == 2)
    assert text.count(f"sha256 {MODEL['sha256']}") == 1


def test_a_damaged_table_is_one_sentence_and_the_old_page_stays(tmp_path: Path) -> None:
    other("ant", sheets=()).save(tmp_path)
    output = tmp_path / "r.html"
    report(tmp_path, output)
    before = output.read_bytes()
    path = tmp_path / "zebra.h5"
    whole = (tmp_path / "ant.h5").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"zebra\.h5 .*damaged.*delete it, or run its bench again"):
        report(tmp_path, output)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match=r"zebra\.h5 is an HDF5 file, but not a table"):
        report(tmp_path, output)
    path.unlink()
    columns = tuple(column for column in COLUMNS if column.name != "latent")
    rows = [{key: value for key, value in row.items() if key != "latent"} for row in reconstruction().rows]
    reconstruction(columns=columns, rows=tuple(rows)).save(tmp_path)
    with pytest.raises(InputError, match=r"reconstruction\.h5 cannot be shown \(KeyError: 'latent'\).*delete it, or"):
        report(tmp_path, output)
    assert output.read_bytes() == before


Command = Callable[..., tuple[int, str, str]]


def test_the_command_makes_the_page(run: Command, here: Path) -> None:
    (here / "bench").mkdir()
    for name in ("zebra", "ant"):
        other(name, sheets=()).save(here / "bench")
    assert run("bench", "report") == (0, "report.html: ant, zebra (open it in a browser)\n", "")
    assert (here / "report.html").read_text().count("<section") == 2
    code, out, _ = run("bench", "report", "bench", "-o", "bench/mine.html")
    assert (code, out) == (0, "bench/mine.html: ant, zebra (open it in a browser)\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere does not exist: give the folder of a bench; `odeddim bench -o nowhere` makes one"),
        (["empty"], "empty holds no table (NAME.h5): `odeddim bench -o empty` makes one"),
        (["file"], "file is a file, not a folder of tables: give the folder of a bench"),
        (["empty", "-o", "report.pdf"], "report.pdf: name the file NAME.html or NAME.htm"),
    ],
)
def test_what_is_wrong_is_one_sentence(run: Command, here: Path, arguments: list[str], sentence: str) -> None:
    (here / "empty").mkdir()
    (here / "file").touch()
    code, out, err = run("bench", "report", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


# What a browser makes of it. One is started for all of these.


class Report(Browser):
    """The page, and what it shows."""

    def shown(self) -> dict[str, list[bool]]:
        """Of each theme's figures, whether they can be seen."""
        found = self.js(
            "return [...document.querySelectorAll('figure svg')].map(svg => { const r = svg.getBoundingClientRect();"
            "return [svg.classList[0], Math.min(r.width, r.height) > 50 && svg.checkVisibility(), r.width > 0] })"
        )
        assert all(seen == sized for _, seen, sized in found)
        return {theme: [seen for name, seen, _ in found if name == theme] for theme in ("light", "dark")}

    def column(self, at: int, table: int = 0) -> list[str]:
        """The words in a column, from the top down."""
        script = "return [...document.querySelectorAll('table')[arguments[0]].tBodies[0].rows]"
        words: list[str] = self.js(script + ".map(row => row.cells[arguments[1]].textContent)", table, at)
        return words

    def sorts(self, table: int = 0) -> list[str]:
        """aria-sort of each column."""
        script = "return [...document.querySelectorAll('table')[arguments[0]].tHead.rows[0].cells]"
        states: list[str] = self.js(script + ".map(cell => cell.getAttribute('aria-sort'))", table)
        return states


@pytest.fixture(scope="module")
def chromium(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    with chromium_driver(tmp_path_factory.mktemp("chromium")) as driver:
        yield Report(driver, made)


@pytest.fixture
def browser(chromium: Report) -> Iterator[Report]:
    """The page at 1280 pixels, light; whatever a test does there, the console stays empty."""
    yield chromium.open()
    chromium.js("try { localStorage.clear() } catch {}")
    assert chromium.driver.get_log("browser") == []


@in_a_browser
def test_it_opens_quietly(browser: Report) -> None:
    browser.asked()  # of the pages before
    browser.open()
    browser.js("return document.body.getBoundingClientRect()")
    assert browser.asked() == [browser.page.as_uri()]
    assert browser.driver.title == "odeddim bench: fashion-mnist"


@in_a_browser
def test_what_a_table_says_is_shown_as_it_is(browser: Report) -> None:
    assert NASTY in browser.column(6)
    words = browser.js(
        "return [...document.querySelectorAll('section > p, figcaption, dt, dd')].map(e => e.textContent)"
    )
    assert words.count(NASTY) == 3  # a note, a setting's name, and the setting
    assert f"where it runs {NASTY}" in words
    title = browser.js("return document.querySelectorAll('th')[1].title")
    assert title == f"where it runs {NASTY}"
    assert "images 1 of <b>ant</b>" in words
    # An alert would be an error of the driver here.
    assert browser.js("return [document.scripts.length, document.images.length]") == [1, 0]


@in_a_browser
def test_the_figures_fit_the_theme(browser: Report) -> None:
    light, dark = ({"light": [seen] * 5, "dark": [not seen] * 5} for seen in (True, False))
    assert browser.shown() == light
    browser.wear("dark")
    assert browser.shown() == dark
    browser.wear("dark", "print")
    assert browser.shown() == light
    assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@in_a_browser
def test_the_theme_is_chosen_by_a_button(browser: Report) -> None:
    for scheme in ("light", "dark"):
        browser.js("localStorage.clear()")
        browser.open(scheme)
        (button,) = browser.find("#theme")
        for chosen, seen in (("auto", scheme), ("light", "light"), ("dark", "dark"), ("auto", scheme)):
            assert button.text == f"Theme: {chosen}"
            assert all(browser.shown()[seen])
            assert sum(browser.shown()["light"] + browser.shown()["dark"]) == 5
            button.click()
    # "light" again, and it is kept: Chromium does so for files.
    browser.open("dark")
    assert all(browser.shown()["light"])
    browser.js("Storage.prototype.setItem = () => { throw new Error('no storage here') }")
    (button,) = browser.find("#theme")
    button.click()
    assert button.text == "Theme: dark"
    assert all(browser.shown()["dark"])


@in_a_browser
def test_a_click_on_a_column_sorts(browser: Report) -> None:
    assert browser.column(2) == STEPS
    assert browser.sorts() == ["none"] * 7
    buttons = browser.find("table th button")
    buttons[2].click()
    assert browser.column(2) == ["5", "9", "10", "20", "100", "1000", "–"]
    assert browser.sorts() == ["none", "none", "ascending", *["none"] * 4]
    buttons[2].click()
    assert browser.column(2) == ["1000", "100", "20", "10", "9", "5", "–"]
    assert browser.sorts()[2] == "descending"
    buttons[2].click()
    assert browser.column(2) == STEPS
    assert browser.sorts()[2] == "none"
    buttons[4].click()  # by what the figures are, not by what is shown of them
    assert browser.column(4) == ["0.0e+00", "2.0e-10", "1.0e-03", "1.0e-03", "1.0e-03", "3.1e-01", "–"]
    assert browser.column(2) == ["1000", "10", "5", "20", "100", "9", "–"]
    buttons[0].click()  # words; equal ones stay in the table's order
    assert browser.column(0) == ["ab3", "belm", "belm", "dopri5", "euler", "euler", "euler"]
    assert browser.column(2) == ["5", "1000", "10", "–", "100", "9", "20"]
    assert browser.sorts() == ["ascending", *["none"] * 6]
    assert browser.column(0, table=1) == [str(i) for i in range(12)]  # another table stays as it is
    browser.js("arguments[0].click()", browser.find("table:not(.sorted) th button")[1])
    assert browser.column(1, table=1) == [f"image {i}" for i in range(12)]  # 2 before 10 in words, too
    # What is missing is last among words as well.
    for ends in (["short", "xxx"], ["xxx", "short"]):
        buttons[6].click()
        words = [word[:5] if word.startswith("short") else word[:3] for word in browser.column(6)]
        assert [word for word in words if word in ends] == ends
        assert words[4:] == ["", "", ""]


@in_a_browser
def test_the_arrow_shows_the_direction(browser: Report) -> None:
    (button, *_) = browser.find("table th button")
    seen = []
    for _ in range(3):
        seen.append(browser.js("return getComputedStyle(arguments[0], '::after').content", button)[1])
        button.click()
    assert seen == ["↕", "↑", "↓"]


@in_a_browser
def test_groups_are_apart_while_the_table_is_in_its_order(browser: Report) -> None:
    script = (
        "return [...document.querySelector('table').tBodies[0].rows].map(row =>"
        "parseFloat(getComputedStyle(row.cells[0]).borderTopWidth) > 0)"
    )
    apart = [False, False, False, True, False, True, True]
    assert browser.js(script) == apart
    button = browser.find("table th button")[2]
    button.click()
    assert browser.js(script) == [False] * 7
    button.click()
    button.click()
    assert browser.js(script) == apart


@in_a_browser
def test_the_keyboard_does_it_all(browser: Report) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> Any:
        ActionChains(browser.driver).send_keys(*keys).perform()
        return browser.driver.switch_to.active_element

    assert press(Keys.TAB).get_attribute("id") == "theme"
    assert press(Keys.TAB).get_attribute("href").endswith("#bench-reconstruction")
    press(Keys.TAB, Keys.TAB)
    at = press(Keys.TAB)
    if at.get_attribute("role") == "region":  # the table, where it scrolls
        at = press(Keys.TAB)
    assert (at.tag_name, at.text) == ("button", "solver")
    at = press(Keys.TAB, Keys.TAB)
    assert browser.js("return getComputedStyle(arguments[0]).outlineStyle", at) == "solid"
    press(Keys.ENTER)
    assert browser.sorts()[2] == "ascending"
    press(Keys.SPACE)
    assert browser.sorts()[2] == "descending"
    press(*[Keys.TAB] * 5)
    assert press(Keys.ENTER).tag_name == "summary"
    assert browser.js("return document.querySelector('details').open")
    browser.find("nav a")[2].send_keys(Keys.ENTER)  # a name that only an address can hold
    assert browser.js("return document.querySelectorAll('section')[2].getBoundingClientRect().top < innerHeight / 2")


@in_a_browser
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_is_wider_than_the_window(browser: Report, width: int) -> None:
    browser.open(width=width)
    browser.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    size = "const size = document.documentElement; return [size.scrollWidth, size.clientWidth]"
    most, room = browser.js(size)  # a scrollbar takes room, too
    assert most == room > width - 20
    outside = browser.js(
        "return [...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll > *') &&"
        "each.getBoundingClientRect().right > arguments[0] + 0.5).map(each => each.outerHTML.slice(0, 80))",
        room,
    )
    assert outside == []
    scrolls = browser.js(
        "return [...document.querySelectorAll('.scroll')].map(each =>"
        "[each.scrollWidth > each.clientWidth, each.tabIndex === 0])"
    )
    assert all(wide == reached for wide, reached in scrolls)
    figure, table = browser.js(
        "return [...document.querySelector('section').querySelectorAll('.scroll')].map(each =>"
        "each.scrollWidth > each.clientWidth)"
    )
    assert (figure, table) == (width < 500, width < 500)


@in_a_browser
def test_the_widest_table_fits_a_window_of_1280_pixels(browser: Report, tmp_path: Path) -> None:
    columns = quality._columns("Fréchet distance", "cifar10")[:-1]
    values = ("hat", "ddpm-sigma-hat", "linear", 1000, 1000.0, 13.172, 0.7130, 0.1229, 0.794, 0.367, 367.43, 1234.5)
    row = dict(zip([column.name for column in columns], values, strict=True))
    Table("quality", "Quality", MODEL, columns, (row,)).save(tmp_path)
    report(tmp_path, tmp_path / "report.html")
    browser.driver.get((tmp_path / "report.html").as_uri())
    wide, room = browser.js("const it = document.querySelector('.table'); return [it.scrollWidth, it.clientWidth]")
    assert wide <= room


@in_a_browser
def test_ids_are_unique_in_the_browser_too(browser: Report) -> None:
    ids = browser.js("return [...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids)) > 50
    assert ids == Page(browser.page).ids()


CONTRAST = """
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (rgb) => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const paper = (e) => {
  const colour = parse(getComputedStyle(e).backgroundColor);
  return colour.length === 3 ? colour : paper(e.parentElement);  // a fourth: it is transparent
};
const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
return [...document.querySelectorAll('body *')]
  .filter(e => !e.closest('svg, script') && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
  .map(e => [ratio(light(parse(getComputedStyle(e).color)), light(paper(e))), e.outerHTML.slice(0, 80)])
"""


@in_a_browser
def test_words_can_be_told_from_the_page(browser: Report, tmp_path: Path) -> None:
    other("ant", sheets=()).save(tmp_path)
    other("zebra", sheets=(), settings={"model": "mine"}).save(tmp_path)  # so that there is a warning
    report(tmp_path, tmp_path / "r.html")
    browser.driver.get((tmp_path / "r.html").as_uri())
    for scheme in ("light", "dark"):
        browser.wear(scheme)
        found = browser.js(CONTRAST)
        assert len(found) > 50
        assert any("different models" in words for _, words in found)
        assert [words for ratio, words in found if ratio < 4.5] == []
