"""What docstrings and help texts need before Sphinx reads them: they are plain text, and it expects reStructuredText."""

from __future__ import annotations

import re

from sphinx.application import Sphinx


def plain_stars(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Shapes such as (B, *) and arguments such as **how are no emphasis; examples and code stay as they are."""
    example = False
    for number, line in enumerate(lines):
        example = line.strip() != "" and (example or line.lstrip().startswith(">>>"))
        if not example:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2]]
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
    """Defaults that are no Python, which Sphinx could not take apart: those of dataclasses, made anew for each object."""
    return signature and signature.replace("<factory>", "{}"), returns


def setup(app: Sphinx) -> dict[str, bool]:
    for mend in (plain_stars, whole_returns, whole_attributes):
        app.connect("autodoc-process-docstring", mend, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", plain_defaults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
