"""What a fit has found so far, in a folder, so that a fit that was killed goes on with the same result."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from odeddim.storage.atomic import replacing
from odeddim.storage.errors import is_ours, short
from odeddim.types import InputError

MARK = "fit.json"
"""The file of a folder that says which fit it belongs to."""


class Checkpoint:
    """Results by name: each is computed once, and after a kill read from its file. Numbers come back bit for bit.

    Args:
        folder: The folder, which is removed when the fit is whole; None to keep values in memory only.
        mark: What tells this fit from others.

    Raises:
        InputError: If the folder holds another fit, or something else.
    """

    def __init__(self, folder: Path | None = None, mark: str = "") -> None:
        self.folder = folder
        self._values: dict[str, dict[str, Any]] = {}
        if folder is None:
            return
        if folder.exists():
            theirs = self._read(MARK, lambda path: json.loads(path.read_bytes())) if folder.is_dir() else None
            if theirs != mark:
                raise InputError(
                    f"{folder} is not of this fit: remove it, give the plan another name, or overwrite=True to begin "
                    "anew"
                )
        else:
            self._write(MARK, lambda path: path.write_text(json.dumps(mark)))

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors by name, on the CPU."""
        from safetensors.torch import load, save_file

        def write(path: Path) -> None:
            save_file({name: tensor.contiguous() for name, tensor in made.items()}, path)

        file = f"{_slug(name)}.safetensors"
        found = self._read(file, lambda path: load(path.read_bytes()))
        if found is None:
            made = found = make()
            self._write(file, write)
        return found  # type: ignore[no-any-return]

    def values(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Values that JSON can hold."""
        if name in self._values:
            return self._values[name]
        file = f"{_slug(name)}.json"
        found = self._read(file, lambda path: json.loads(path.read_bytes()))
        if found is None:
            found = make()
            text = json.dumps(found)
            self._write(file, lambda path: path.write_text(text))
        return self._values.setdefault(name, found)

    def numbers(self, name: str, make: Callable[[], list[float]]) -> list[float]:
        """A list of numbers, which may be infinite."""
        found = self.values(name, lambda: {"numbers": [n if math.isfinite(n) else None for n in make()]})
        return [math.inf if number is None else number for number in found["numbers"]]

    def _write(self, file: str, write: Callable[[Path], Any]) -> None:
        if self.folder is not None:
            with replacing(self.folder / file) as temporary:
                write(temporary)

    def _read(self, file: str, read: Callable[[Path], Any]) -> Any:
        """What a file holds; None if there is none."""
        if self.folder is None or not (self.folder / file).exists():
            return None
        try:
            return read(self.folder / file)
        except Exception as error:  # a parser of foreign bytes may raise any type
            if is_ours(error):
                raise
            raise InputError(
                f"{self.folder / file} is damaged ({short(error)}): remove the folder, or overwrite=True to begin anew"
            ) from error

    def remove(self) -> None:
        """Remove the folder: the fit is whole."""
        if self.folder is not None:
            shutil.rmtree(self.folder)


def _slug(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]
