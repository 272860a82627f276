"""Docstrings and help texts are plain text: what they need before Sphinx reads them as reStructuredText."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx


def plain_stars(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """(B, *) and **how are no emphasis, SOLVER@GRID is no address; examples and code stay as they are."""
    example = False
    for number, line in enumerate(lines):
        example = line.strip() != "" and (example or line.lstrip().startswith(">>>"))
        if not example:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"(?<!\\)([*|@])", r"\\\1", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def whole_returns(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """What a function returns is a text: napoleon would take what stands before its first colon for a type."""
    if "Returns:" not in lines:
        return
    begin = lines.index("Returns:")
    end = next((n for n, line in enumerate(lines[begin + 1 :], begin + 1) if line[:1].strip()), len(lines))
    text = [line.removeprefix("    ") for line in lines[begin + 1 : end]]
    lines[begin:end] = [f":returns: {text[0]}", *(f"    {line}".rstrip() for line in text[1:])]


def whole_attributes(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """So it would with the text of a property, unless that begins with something else: an empty comment."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def plain_defaults(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A default that a dataclass makes anew for each object is no Python, and Sphinx could not read the others."""
    return signature and signature.replace("<factory>", "{}"), returns


def dashes(app: Sphinx, doctree: nodes.document) -> None:
    """What Sphinx writes between an argument and its text, for want of a dash."""
    for text in list(doctree.findall(nodes.Text)):
        if text.startswith(" -- "):
            text.parent.replace(text, nodes.Text(text.replace(" -- ", " – ", 1)))


def examples_as_code(app: Sphinx, context: object, lines: list[str]) -> None:
    """The examples of a command's help as code, with their notes as comments; sphinx-click makes them plain lines."""
    if "| Examples:" not in lines:
        return
    begin = lines.index("| Examples:")
    end = next((n for n, line in enumerate(lines[begin:], begin) if not line.startswith("| ")), len(lines))
    code = [
        "   " + re.sub(r"(?<=\S) ( +) (?=[^ #])", r" \1# ", line[2:].strip(), count=1)
        for line in lines[begin + 1 : end]
    ]
    lines[begin:end] = [".. rubric:: Examples", "", ".. code-block:: sh", "", *code, ""]


def defaults_in_line(app: Sphinx, context: object, lines: list[str]) -> None:
    """The default and the choices of an option behind its text, as --help has them."""
    for n in reversed(range(len(lines))):
        if found := re.fullmatch(r"    :(default|options): (.*)", lines[n]):
            words = found[2].strip("`").strip("'")
            before = n - 1 if lines[n - 1].strip() else n - 2
            lines[before : n + 1] = [
                lines[before],
                f"    [default: {words}]" if found[1] == "default" else f"    [{words}]",
            ]


def options_as_code(app: Sphinx, context: object, lines: list[str]) -> None:
    """--options in a command's text as code, which keeps them on one line; examples and code are left as they are."""
    text = "\n".join(lines)
    kept = r"`[^`]*`|^ *(?:\| |\.\. ).*$"
    lines[:] = re.sub(
        rf"({kept})|(?<![\w-])(--[a-z][a-z0-9-]*)", lambda m: m[1] or f"``{m[2]}``", text, flags=re.MULTILINE
    ).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    for mend in (plain_stars, whole_returns, whole_attributes):
        app.connect("autodoc-process-docstring", mend, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", plain_defaults)
    for part in ("description", "options", "epilog"):
        app.connect(f"sphinx-click-process-{part}", options_as_code, priority=400)  # while examples are plain lines
    app.connect("sphinx-click-process-description", examples_as_code)
    app.connect("doctree-read", dashes)
    app.connect("sphinx-click-process-options", defaults_in_line)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
