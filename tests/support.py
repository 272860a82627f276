"""What tests of several folders share."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import pytest
from safetensors.torch import load_file
from torch import Tensor

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


def in_memory(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that is to be written over: older safetensors map it into memory."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def encoded(run: Callable[..., tuple[int, str, str]], *arguments: object) -> dict[str, np.ndarray[Any, Any]]:
    """All columns of the latent file that `odeddim encode` makes."""
    code, out, err = run("encode", "-o", "z.h5", "--device", "cpu", "--overwrite", *arguments)
    assert code == 0, err
    with LatentFile(Path("z.h5")) as file:
        return dict(file.rows(0, len(file)))


def same(a: dict[str, np.ndarray[Any, Any]], b: dict[str, np.ndarray[Any, Any]]) -> bool:
    assert a.keys() == b.keys()
    return all(a[key].tobytes() == b[key].tobytes() for key in a)


def tiles(
    path: Path | str, width: int, height: int, columns: int, panes: int = 1, margin: int = 4
) -> list[list[np.ndarray[Any, Any]]]:
    """The images of a sheet of bare pixels, `--scale 1 --no-labels`, cut out: for each row its images.

    Whatever is not an image must be white. width, height: of an image; columns: of a row; panes: images of a cell.
    """
    sheet = np.asarray(PIL.Image.open(path)).copy()
    apart = margin if panes == 1 else 3 * margin
    cell = panes * (width + margin // 2) - margin // 2
    rows = (len(sheet) - margin) // (height + margin)
    assert sheet.shape[:2] == (margin + rows * (height + margin), 2 * margin + columns * (cell + apart) - apart)
    found = []
    for row in range(rows):
        top = margin + row * (height + margin)
        lefts = [
            margin + k * (cell + apart) + pane * (width + margin // 2) for k in range(columns) for pane in range(panes)
        ]
        found.append([sheet[top : top + height, left : left + width].copy() for left in lefts])
        for left in lefts:
            sheet[top : top + height, left : left + width] = 255
    assert (sheet == 255).all()
    return found


def killed_at(step: int, make: Callable[[], Any]) -> bool:
    """Make something in a process of its own, which is killed at a step on the disk; whether it came so far."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] == signal.SIGKILL
    left = [step]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        return call

    for name in ("replace", "unlink", "rmdir", "fsync", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))
    try:
        make()
    finally:
        os._exit(0)
