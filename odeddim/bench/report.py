"""One page with all tables and figures of a folder: a single HTML file that opens offline.

`data/report.html` is the template of the page. Every text of a table is escaped. The page's content security policy
(CSP) forbids all requests, and all scripts except the page's own. The same tables give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from odeddim import __version__
from odeddim.bench.drawing import DARK, LIGHT, THEMES, Theme
from odeddim.bench.figures import draw
from odeddim.bench.tables import Column, Table, load
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of, plain_text, replacing
from odeddim.storage.errors import short
from odeddim.types import InputError

ORDER = ("league", "work-precision", "cheapest", "reconstruction", "quality", "consistency", "interpolation", "time")
"""The order of the benches on a page; other tables follow, by name."""

SUFFIXES = (".html", ".htm")
_LONG = 40  # letters; a longer text in a table is wrapped
# Colours that a theme does not have: of links, surfaces, lines and warnings. Text has a contrast of 4.5 on all of them.
_COLOURS = {
    LIGHT.name: {
        "accent": "#0b57d0", "raised": "#f4f5f7", "line": "#d5d8dd", "warn-paper": "#fff4e0", "warn-ink": "#6b3d00",
    },
    DARK.name: {
        "accent": "#8ab4f8", "raised": "#20242a", "line": "#3b4048", "warn-paper": "#33260f", "warn-ink": "#ffd591",
    },
}  # fmt: skip
_SVG_ROOT = ("width", "height", "viewBox")  # the attributes that a figure keeps on a page


@dataclass(frozen=True)
class _Bench:
    """A table and its file; the page calls the table by the file's name."""

    path: Path
    table: Table

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def place(self) -> str:
        """The id of the section. Different names have different ids, whatever characters they hold."""
        return f"bench-{quote(plain_text(self.name), safe='')}"

    @property
    def model(self) -> tuple[str, str]:
        """The model's name and hash; "" for what the table does not tell."""
        name, sha256 = (self.table.settings.get(key) for key in ("model", "sha256"))
        return str(name or ""), str(sha256 or "")


def report(folder: Path, output: Path, *, overwrite: bool = False) -> list[str]:
    """Write one page with every table of a folder and its figures.

    Args:
        folder: The folder of the tables, NAME.h5.
        output: The page, NAME.html or NAME.htm. A page of the same folder is replaced.
        overwrite: Whether to replace any other file at `output`.

    Returns:
        The names of the tables, in the page's order.

    Raises:
        InputError: If `folder` does not exist or holds no table, if a file is damaged or not a table, if `output`
            cannot be written, or if another file is there and `overwrite` is False. An existing file stays unchanged.
    """
    check_place(output, suffixes=SUFFIXES)
    mark = mark_of("bench report", plain_text(os.path.realpath(folder)))
    check_own(output, lambda path: has_mark(path, mark), overwrite=overwrite)
    benches = list(_benches(folder))
    page = plain_text(_page(benches, mark))
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return [bench.name for bench in benches]


def _benches(folder: Path) -> Iterator[_Bench]:
    made_by = f"`odeddim bench -o {folder}` makes one"
    if not folder.is_dir():
        what = "is a file, not a folder of tables" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}: give the folder of a bench; {made_by}")
    paths = sorted(folder.glob("*.h5"), key=lambda path: (_place(path.stem), path.stem))
    if not paths:
        raise InputError(f"{folder} holds no table (NAME.h5): {made_by}")
    for path in paths:
        try:
            yield _Bench(path, load(path))
        except InputError as error:
            raise InputError(f"{error}: delete it, or run its bench again") from error


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _page(benches: list[_Bench], mark: str) -> str:
    template = (resources.files("odeddim.data") / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    names = list(dict.fromkeys(name for bench in benches if (name := bench.model[0])))
    return Template(template).substitute(
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        title=escape(f"odeddim bench: {', '.join(names)}" if names else "odeddim bench"),
        light=_variables(LIGHT),
        dark=_variables(DARK),
        models=_models(benches),
        contents="\n".join(f'<li><a href="#{bench.place}">{escape(bench.name)}</a></li>' for bench in benches),
        sections="\n".join(_checked_section(i, bench) for i, bench in enumerate(benches)),
        odeddim=escape(__version__),
        mark=mark,
        torch=escape(version("torch")),  # read from the package's metadata: torch is not imported
        matplotlib=escape(version("matplotlib")),
    )


def _variables(theme: Theme) -> str:
    colours = {"paper": theme.paper, "ink": theme.ink, "muted": theme.muted, **_COLOURS[theme.name]}
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _models(benches: list[_Bench]) -> str:
    """The model of the tables; a warning if the tables are of different models."""
    found: dict[str, list[_Bench]] = {}
    for bench in benches:
        name, sha256 = bench.model
        found.setdefault(sha256 or name, []).append(bench)
    told = [(_model(of[0]), ", ".join(escape(bench.name) for bench in of)) for of in found.values()]
    if len(told) == 1:
        return f'<ul class="models"><li>{told[0][0]}</li></ul>'
    lines = "\n".join(f"<li>{names}: {model}</li>" for model, names in told)
    return (
        '<div class="warning" role="note">\n'
        f"<p><strong>These tables are of {len(told)} different models: do not compare their values.</strong></p>\n"
        f"<ul>\n{lines}\n</ul>\n</div>"
    )


def _model(bench: _Bench) -> str:
    name, sha256 = bench.model
    return f"model {escape(name) or 'without a name'}" + (f", <code>sha256 {escape(sha256)}</code>" if sha256 else "")


def _checked_section(index: int, bench: _Bench) -> str:
    """A section. Raises InputError if the table's content is not what its bench writes."""
    try:
        return _section(index, bench)
    except InputError:
        raise
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{bench.path} cannot be shown ({type(error).__name__}: {short(error)}): it is damaged or of another "
            "version of odeddim: delete it, or run its bench again"
        ) from error


def _section(index: int, bench: _Bench) -> str:
    table, heading = bench.table, f"{bench.place}-title"
    notes = "".join(f"<p>{_html(note)}</p>\n" for note in table.notes)
    return (
        f'<section id="{bench.place}" aria-labelledby="{heading}">\n'
        f'<h2 id="{heading}">{_html(table.title)}</h2>\n'
        f"{_figures(index, table)}{notes}{_table(table, bench.name)}{_meanings(table)}"
        f"<details>\n<summary>How it was measured</summary>\n{_value(table.settings)}\n</details>\n"
        "</section>"
    )


def _html(words: str) -> str:
    """The HTML of a text in a table, with the T of x_T and σ_T as a subscript."""
    return re.sub(r"\b([xσ])_T\b", r"\1<sub>T</sub>", escape(words))


def _figures(index: int, table: Table) -> str:
    """The figures of a table, each drawn for the light and for the dark page."""
    drawn = {theme.name: draw(table, theme) for theme in THEMES}
    parts = []
    for i, (name, (_, words)) in enumerate(drawn[LIGHT.name].items()):
        caption, shown = f"figure-{index}-{i}", []
        for theme in THEMES:
            svg, _ = drawn[theme.name][name]
            shown.append(inline_svg(svg, f"{caption}-{theme.name}-", {"class": theme.name, "aria-labelledby": caption}))
        parts.append(
            f'<figure>\n<div class="scroll" role="group" tabindex="0" aria-label="{escape(name)}">\n'
            + "\n".join(shown)
            + f'\n</div>\n<figcaption id="{caption}">{_html(words)}</figcaption>\n</figure>\n'
        )
    return f'<div class="figures">\n{"".join(parts)}</div>\n' if parts else ""


def inline_svg(svg: bytes, prefix: str, attributes: Mapping[str, str]) -> str:
    """Turn an SVG file into an element of an HTML page.

    matplotlib gives the same clip path or marker the same id in every figure. On a page, a browser would use the first
    for all figures. Therefore all ids, and all references to them, get a prefix.

    Args:
        svg: The SVG file.
        prefix: The prefix of the ids, different for each figure of the page.
        attributes: The attributes of the element, besides role="img".

    Returns:
        The element, without the file's head.
    """
    # matplotlib repeats each drawn text in a comment, where it may have characters that XML forbids. The letters
    # themselves are drawn as shapes, so nothing is lost without the comments.
    root = ElementTree.fromstring(re.sub(rb"<!--.*?-->", b"", svg, flags=re.DOTALL))
    for parent in list(root.iter()):
        for child in [child for child in parent if _local(child.tag) == "metadata"]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)  # HTML needs no namespaces
        given = {_local(name): value for name, value in element.attrib.items()}
        if "id" in given:
            given["id"] = prefix + given["id"]
        if given.get("href", "").startswith("#"):
            given["href"] = f"#{prefix}{given['href'][1:]}"
        element.attrib = {name: value.replace("url(#", f"url(#{prefix}") for name, value in given.items()}
        if element.tag == "style":  # on a page, the file's rules for * would hold for the whole page
            element.text = re.sub(r"\*\s*\{", f"#{prefix}root *{{", element.text or "")
    size = {name: root.attrib[name] for name in _SVG_ROOT if name in root.attrib}
    width = root.attrib.get("width", "100%")  # the page's style scales the figure by it
    root.attrib = {**size, "style": f"--width: {width}", "id": f"{prefix}root", "role": "img", **attributes}
    return ElementTree.tostring(root, encoding="unicode").strip()


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _table(table: Table, called: str) -> str:
    heads = "".join(
        f'<th scope="col"{_class(column)}{_title(column)}>{_html(column.heading)}</th>' for column in table.columns
    )
    rows, last = [], None
    for row in table.rows:
        group = tuple(row[name] for name in table.group)
        first = ' class="first"' if table.group and group != last else ""
        last = group
        rows.append(f"<tr{first}>{''.join(_cell(column, row[column.name]) for column in table.columns)}</tr>")
    name = escape(f"Table: {called}")
    return (
        f'<div class="table scroll" role="region" tabindex="0" aria-label="{name}">\n<table>\n'
        f"<thead>\n<tr>{heads}</tr>\n</thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>\n</div>\n"
    )


def _class(column: Column, *more: str) -> str:
    names = [*([] if column.words else ["num"]), *more]
    return f' class="{" ".join(names)}"' if names else ""


def _title(column: Column) -> str:
    return f' title="{escape(column.meaning)}"' if column.meaning else ""


def _cell(column: Column, value: Any) -> str:
    shown = column.show(value)
    if not shown:
        return f'<td{_class(column, "none")} data-missing="1">{"" if column.words else "–"}</td>'
    if isinstance(value, (int, float)):  # the page sorts by the value, not by the digits shown
        return f'<td{_class(column)} data-value="{float(value)!r}">{escape(shown)}</td>'
    return f"<td{_class(column, *(['long'] if len(shown) > _LONG else []))}>{_html(shown)}</td>"


def _meanings(table: Table) -> str:
    """The meaning of each column as text: a reader without a mouse cannot see the hints in the table's head."""
    headings = [column.heading for column in table.columns]
    told = []
    for column in table.columns:
        if column.meaning:
            key = f" <code>{escape(column.name)}</code>" if headings.count(column.heading) > 1 else ""
            told.append(f"<dt>{escape(column.heading)}{key}</dt><dd>{_html(column.meaning)}</dd>")
    return f'<h3>Columns</h3>\n<dl class="pairs">\n{chr(10).join(told)}\n</dl>\n' if told else ""


def _value(value: Any) -> str:
    """A setting, any value of JSON, as HTML."""
    if isinstance(value, Mapping):
        pairs = "\n".join(f"<dt>{_html(str(key))}</dt><dd>{_value(item)}</dd>" for key, item in value.items())
        return f'<dl class="pairs">\n{pairs}\n</dl>' if value else "none"
    if value is None or value == []:
        return "none"
    if isinstance(value, str):
        return _html(value)
    if isinstance(value, (list, tuple)) and not any(isinstance(item, (Mapping, list, tuple)) for item in value):
        return ", ".join(_value(item) for item in value)
    return _html(json.dumps(value, ensure_ascii=False))
