"""What tests of several folders share."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import odeddim
from odeddim.cli import main
from odeddim.latents.latent_file import LatentFile
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


def encoded(run: Callable[..., tuple[int, str, str]], *arguments: object) -> dict[str, np.ndarray[Any, Any]]:
    """All columns of the latent file that `odeddim encode` makes."""
    code, out, err = run("encode", "-o", "z.h5", "--device", "cpu", "--overwrite", *arguments)
    assert code == 0, err
    with LatentFile(Path("z.h5")) as file:
        return dict(file.rows(0, len(file)))


def same(a: dict[str, np.ndarray[Any, Any]], b: dict[str, np.ndarray[Any, Any]]) -> bool:
    assert a.keys() == b.keys()
    return all(a[key].tobytes() == b[key].tobytes() for key in a)
