"""What a fit has found so far, in a file, so that a fit that was killed goes on with the same result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from odeddim.storage.atomic import replacing
from odeddim.storage.errors import is_ours, short
from odeddim.types import InputError


class Checkpoint:
    """Results by name: each is computed once, and after a kill read from the file.

    The file is written anew after each result that took work, and removed at the end. Numbers come back bit for bit.

    Args:
        path: The file; None to keep nothing.
        mark: What tells this fit from others.

    Raises:
        InputError: If the file is damaged, or is that of another fit.
    """

    def __init__(self, path: Path | None, mark: str = "") -> None:
        self.path, self.mark = path, mark
        self._tensors: dict[str, Tensor] = {}
        self._values: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors by name, on the CPU."""
        its = f"{name}/"
        if not any(key.startswith(its) for key in self._tensors):
            self._tensors.update({its + key: tensor.cpu() for key, tensor in make().items()})
            self._write()
        return {key.removeprefix(its): tensor for key, tensor in self._tensors.items() if key.startswith(its)}

    def values(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Values that JSON can hold."""
        if name not in self._values:
            self._values[name] = make()
            self._write()
        return self._values[name]  # type: ignore[no-any-return]

    def numbers(self, name: str, make: Callable[[], list[float]]) -> list[float]:
        """A list of numbers, which may be infinite."""
        found = self.values(name, lambda: {"numbers": [n if math.isfinite(n) else None for n in make()]})
        return [math.inf if number is None else number for number in found["numbers"]]

    def _write(self) -> None:
        if self.path is None:
            return
        from safetensors.torch import save_file

        with replacing(self.path) as temporary:
            about = {"fit": json.dumps({"mark": self.mark, "values": self._values})}
            save_file({name: tensor.contiguous() for name, tensor in self._tensors.items()}, temporary, about)

    def _read(self, path: Path) -> None:
        from safetensors import safe_open

        other = f"{path} is not of this fit: remove it, give the plan another name, or overwrite=True to begin anew"
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("fit", "{}"))
                if about.get("mark") != self.mark:
                    raise InputError(other)
                self._values = about["values"]
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except InputError:
            raise
        except Exception as error:  # a parser of foreign bytes may raise any type
            if is_ours(error):
                raise
            raise InputError(f"{path} is damaged ({short(error)}): remove it, or overwrite=True to begin anew") from error

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The end of the fit: a fit that failed keeps its file."""
        if kind is None and self.path is not None:
            self.path.unlink(missing_ok=True)
