"""What tests of several folders share."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import torch
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


class Told(torch.nn.Module):
    """ε of a Gaussian of standard deviation 0.2 around another mean for each class; one label may stand for none.

    About what a network of `Schedule.linear()` answers, in operations that can be exported.
    """

    def __init__(self, means: Sequence[float] = (-0.6, 0.0, 0.6, 0.1)) -> None:
        super().__init__()
        self.means = torch.nn.Parameter(torch.tensor(means))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        sigma = torch.exp(t[:, None, None, None] / 120 - 4.5)
        mean = self.means[y][:, None, None, None]
        return (x * torch.sqrt(1 + sigma**2) - mean) * sigma / (0.04 + sigma**2)


def save_told(folder: Path, network: Told, null: int) -> None:
    """Write told.pt2 and its sidecar: a model of three classes, and `null`, the label for none, of 1×4×4 images."""
    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    program = torch.export.export(network, example, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    torch.export.save(program, folder / "told.pt2")
    beside = {"schedule": {"name": "linear"}, "predicts": "eps", "time": "index", "classes": 3, "null": null}
    (folder / "told.json").write_text(json.dumps(beside))
