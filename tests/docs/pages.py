"""The examples of a page: its blocks of Python, and the lines of its consoles that call odeddim, in their order."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent.parent
FENCED = re.compile(r"^(?P<fence>`{3,})(?P<language>[a-z]+)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
SMALL = ["--model", "exact-mixture", "--size", "1,8,8"]  # where the fine run that others are measured by takes long
UNTESTED = "train train-images-idx3-ubyte.gz"
"""How the built-in models were trained: their images are not here."""
TRAIN = [
    "--channels", "8", "--multipliers", "1,2", "--blocks", "1", "--batch-size", "4", "--microbatches", "2",
    "--steps", "2", "--device", "cpu",
]  # fmt: skip
BENCH = {  # in small: the commands are the same
    "reconstruction": ["-n", "2", "--steps", "5,10"],
    "quality": ["-n", "6", "--steps", "5"],
    "consistency": ["-n", "2", "--steps", "5,10", *SMALL],
    "time": ["--steps", "5,10", "--batches", "1", "--repeats", "1"],
    "interpolation": ["--pairs", "1", "--points", "5", "--side", "2", "--steps", "10"],
    "league": ["-n", "1", "--solvers", "euler@log,belm,ddpm", "--evaluations", "4,6", "--model", "exact-mixture"],
    "work-precision": ["-n", "2", *SMALL],
    "report": [],
}


def examples(text: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each example: a block of Python, or one line of a console."""
    for block in FENCED.finditer(text):
        if block["language"] == "python":
            yield "python", block["text"]
        elif block["language"] == "console":
            joined = block["text"].replace("\\\n", " ")
            yield from (("console", line[2:]) for line in joined.splitlines() if line.startswith("$ odeddim "))


def in_small(line: str) -> list[str]:
    """The arguments of a line, with fewer images and steps: the command is the same."""
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "bench":
        words += BENCH.get(words[1] if len(words) > 1 else "", BENCH["reconstruction"])
    elif words[0] in ("encode", "sample", "bridge"):
        words += [] if "-n" in words else ["-n", "4"]
        words += [] if {"--steps", "--tol", "--plan", "--rtol"} & set(words) else ["--steps", "10"]
    elif words[0] == "interpolate" and "-n" in words:
        words[words.index("-n") + 1] = "2"
    elif words[0] == "explore":
        words += ["--tiles", "3", "--levels", "3"]
    elif words[0] == "train":
        words += TRAIN
    elif words[0] == "grid":
        words += ["-n", "2", "--steps", "4"]
    return words


def pages() -> dict[str, str]:
    """The manual's pages with examples, by their paths under docs/; not those that a script writes."""
    found = {str(path.relative_to(ROOT / "docs")): path.read_text(encoding="utf-8") for path in docs()}
    return {name: text for name, text in found.items() if any(examples(text))}


def docs() -> list[Path]:
    return sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in ("results.md", "changelog.md"))


def printed(text: str, example: str) -> str | None:
    """What a page says that a block of Python prints, in a block of text right below it, or None."""
    _, fence, below = text.partition(f"```python\n{example}```\n\n```text\n")
    return below.partition("```\n")[0] if fence else None


def alike(word: str, other: str) -> bool:
    """Two words of a printed table: numbers may differ as they do between machines."""
    try:
        return float(word) == pytest.approx(float(other), rel=0.05, abs=2e-4)
    except ValueError:
        return word == other


def run_in_order(text: str, name: str, run: Run, given: Mapping[str, object] | None = None) -> None:
    """Every example of a page, in one folder and with one set of Python names; what it prints is what the page says."""
    names: dict[str, object] = {"__name__": "__main__", **(given or {})}
    for language, example in examples(text):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(example, name, "exec"), names)
            if (said := printed(text, example)) is not None:
                words, found = (each.replace(",", " ").split() for each in (said, out.getvalue()))
                assert len(words) == len(found), out.getvalue()
                assert all(alike(*pair) for pair in zip(words, found, strict=True)), out.getvalue()
        elif UNTESTED not in example:
            code, _, err = run(*in_small(example))
            assert code == 0, (example, err)
