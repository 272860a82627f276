"""What tests of several folders share."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest

import odeddim
from odeddim.cli import main
from odeddim.types import InputError


def command(*arguments: object, code: int = 0) -> str:
    """The command in this process: all that it says, its warnings and errors among that. code: how it must end."""
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["odeddim", *map(str, arguments)]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(),  # a process of its own would say each warning, and not only the first of its words
        pytest.raises(SystemExit) as stop,
    ):
        main()
    assert stop.value.code == code, said.getvalue()
    assert "Traceback" not in said.getvalue()
    return said.getvalue()


def refused(path: Path, *words: str) -> None:
    """Loading this file or folder is an InputError of one line that names it and says these words."""
    with pytest.raises(InputError) as caught:
        odeddim.load(path)
    sentence = str(caught.value)
    assert str(path.parent / path.stem) in sentence, sentence
    assert "\n" not in sentence, sentence
    for word in words:
        assert word in sentence, sentence
