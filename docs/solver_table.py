"""The directive `solvers` of the manual: the rows of a family, each with its formula, from the table itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from odeddim.cli.solvers import COLUMNS, cells
from odeddim.solvers import SOLVERS
from odeddim.types import Solver

SHOWN = [column for column in COLUMNS if column != "family"]
FEW = 4  # names that a heading has room for


def lines(family: str) -> Iterator[str]:
    """The rows of a family as Markdown; those that stand together and have one formula are shown together."""
    rows = [row for row in SOLVERS.values() if row.family == family]
    if not rows:
        raise ValueError(f"no solver is of the family {family!r}")
    for formula, equal in groupby(rows, lambda row: row.formula.strip()):
        group = list(equal)
        yield from ("", f"### {heading([row.name for row in group])}", "", "```text", formula, "```", "")
        yield from ("```{table}", ":class: solvers", "", f"| {' | '.join(SHOWN)} |", "|" + " --- |" * len(SHOWN))
        for row in group:
            found = {**dict(zip(COLUMNS, cells(row.name), strict=True)), "name": f"`{row.name}`"}
            yield f"| {' | '.join(linked(str(found[column])) for column in SHOWN)} |"
        yield "```"
        for words, alike in groupby((row for row in group if row.settings), settings):
            names = ", ".join(f"`{row.name}`" for row in alike)
            yield from ("", f"Settings{f' of {names}' if len(group) > 1 else ''}: {words}.")


def heading(names: Sequence[str]) -> str:
    """The names; of many, which are then made from other rows, their prefix."""
    if len(names) <= FEW:
        return ", ".join(names)
    words = zip(*(name.split("-") for name in names), strict=False)
    return "-".join([same[0] for same in takewhile(lambda own: len(set(own)) == 1, words)] + ["NAME"])


def settings(row: Solver) -> str:
    """The settings of a row with their defaults."""
    return ", ".join(f"`{name}` = {default}" for name, default in row.settings.items())


def linked(text: str) -> str:
    """The text with its arXiv numbers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


class Solvers(SphinxDirective):
    """`{solvers} FAMILY`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(lines(self.arguments[0])), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("solvers", Solvers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
