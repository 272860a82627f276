"""Networks as programs: torch.export's .pt2 or TorchScript's .pt, with a sidecar, NAME.json for NAME.pt2.

    torch.export.save(torch.export.export(network.eval(), (x, t), dynamic_shapes=({0: B}, {0: B})), "NAME.pt2")

The inputs are x (B, C, H, W), t (B,) and, for a network with classes, labels (B,) int64. A program does not state what
its numbers mean. The sidecar does:

    {"schedule": {"name": "linear", "T": 1000}, "predicts": "eps", "time": "index"}

The sidecar also takes "variances": true for a network that also predicts variances, "classes" and "null" for labels,
and "shape" if the program does not fix it. Reading a program runs no foreign code; see `odeddim.models.programs`.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odeddim.models import sidecar as beside
from odeddim.models import weights
from odeddim.models.guarded import failures_of
from odeddim.models.programs import Program, load_program
from odeddim.ode.adapted import Adapted
from odeddim.ode.conditions import Classes, words_of
from odeddim.ode.field import VectorField
from odeddim.types import InputError

EXAMPLE = '{"schedule": {"name": "linear", "T": 1000}, "predicts": "eps", "time": "index"}'


def matches(path: Path) -> bool:
    """Return whether a path is a file with the suffix .pt2 or an archive of TorchScript. No program is loaded."""
    if path.suffix.lower() == ".pt2":
        return path.is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2].partition("/")[0] for name in archive.namelist()}
    except Exception:  # the file may be anything, and another format may know it
        return False
    return {"code", "constants.pkl"} <= parts


def read(path: Path) -> VectorField:
    """Read a program and its sidecar.

    Args:
        path: The program.

    Returns:
        The model.

    Raises:
        InputError: If the program cannot be read or might run code, if the sidecar is incomplete, or if the two
            contradict each other.
    """
    return field_of(path, settings_of(path), functools.partial(_load, path))


def settings_of(path: Path, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read the sidecar of a program, which must say what the program's numbers mean.

    Args:
        path: The program.
        known: The keys that its kind of program takes besides.

    Returns:
        The settings by name.

    Raises:
        InputError: If the sidecar cannot be used or is incomplete.
    """
    said = beside.read(path, ("variances", *known))
    missing = [key for key in ("schedule", "predicts", "time") if key not in said]
    if missing:
        raise InputError(
            f"{path} is a program, which does not state its {', '.join(missing)}: write this into "
            f"{beside.place(path)}, for example {EXAMPLE}"
        )
    return said


def field_of(path: Path, said: dict[str, Any], load: Callable[[torch.device], Program]) -> VectorField:
    """Make the model of a program.

    Args:
        path: The program.
        said: The settings of its sidecar.
        load: The function that loads the program for a device.

    Returns:
        The model.

    Raises:
        InputError: If the program cannot be loaded, or if it and its sidecar contradict each other.
    """
    place = beside.place(path)
    variances, count = said.get("variances", False), said.get("classes")
    program = load(torch.device("cpu"))
    shape = said.get("shape", program.shape)
    try:
        if not isinstance(variances, bool):
            raise InputError(f"variances must be true or false, not {variances!r:.50}")
        if program.shape not in (None, shape):
            raise InputError(f"shape is {list(said['shape'])}, but the program takes {list(program.shape or ())}")
        _check(program, shape, variances=variances, time=said["time"], classes=count)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    conditions = None if count is None else Classes(count, said.get("null"))
    images = "×".join(map(str, shape)) if shape else "images of any size"
    batch = "any batch" if program.batch is None else f"batches of {'' if program.fixed else 'up to '}{program.batch}"
    return VectorField(
        Exported(load, program, path, variances=variances),
        said["schedule"],
        predicts=said["predicts"],
        time=said["time"],
        shape=shape,
        name=str(path.absolute()),
        sha256=weights.hash_of(path, settings={"variances": variances, "told": words_of(conditions)}),
        details={"found": f"program, {images}, {batch}", "weights": "as saved", "assumed": []},
        conditions=conditions,
    )


class Exported(nn.Module):
    """A program as a network, which gets its inputs in the dtypes and batches that it was exported for."""

    keeps_dtype = True

    def __init__(
        self, load: Callable[[torch.device], Program], program: Program, path: Path, *, variances: bool
    ) -> None:
        super().__init__()
        self._load, self._path, self._variances = load, path, variances
        self._device = torch.device("cpu")
        self._take(program)

    def _take(self, program: Program) -> None:
        self.program = Adapted(program.network, variances=self._variances)
        self._dtypes, self._batch, self._fixed = program.dtypes, program.batch, program.fixed

    def forward(self, *given: Tensor) -> Tensor:
        """Evaluate x (B, C, H, W), t (B,), and labels (B,) if the program takes them -> (B, C, H, W)."""
        if self._dtypes:
            given = tuple(value.to(dtype) for value, dtype in zip(given, self._dtypes, strict=True))
        size = self._batch or len(given[0])
        blocks = []
        for parts in zip(*(torch.split(value, size) for value in given), strict=True):
            count = len(parts[0])
            if self._fixed and count < size:  # fill up with copies, whose results are dropped
                parts = tuple(torch.cat([part, part[:1].expand(size - count, *part.shape[1:])]) for part in parts)
            with failures_of(self._path, parts[0]):
                blocks.append(self.program(*parts)[:count])
        return torch.cat(blocks)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Exported:  # type: ignore[override]
        """Read this program again for another device. Its dtype is part of the program and cannot change.

        Args:
            device: The device; None for the present one.
            dtype: The program's own dtype, or None.

        Returns:
            This object.

        Raises:
            InputError: If the dtype is another one, or if the program cannot be moved to the device.
        """
        own = self._dtypes[0] if self._dtypes else None
        if dtype not in (None, own):
            name = str(own).removeprefix("torch.") if own else "its own dtype"
            raise InputError(f"{self._path} computes in {name}, which is part of the program: leave out dtype=...")
        if device is not None and torch.device(device).type != self._device.type:
            self._take(self._load(torch.device(device)))
            self._device = torch.device(device)
        return self

    def train(self, mode: bool = True) -> Exported:
        """Return this object: the mode, evaluation or training, is fixed when a program is exported."""
        return self


def _load(path: Path, device: torch.device) -> Program:
    try:
        return load_program(path.read_bytes(), device, numbers=(1, 2))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
    except Exception as error:  # PyTorch may raise any type on a damaged file
        raise InputError(f"{path} cannot be read as a program ({weights.line(error)}): export it again") from error


def _check(program: Program, shape: tuple[int, ...] | None, *, variances: bool, time: str, classes: int | None) -> None:
    """Raise an InputError if the program's inputs or outputs contradict the sidecar."""
    if program.dtypes and (len(program.dtypes) == 3) != (classes is not None):
        takes = (
            "takes classes: give their number as classes" if classes is None else "takes no classes: leave out classes"
        )
        raise InputError(f"the program {takes}")
    if program.dtypes and not program.dtypes[1].is_floating_point and time != "integer":
        raise InputError(f"time is {time}, but the program takes whole numbers as labels: time must be integer")
    if shape is not None and program.channels is not None:
        gives, wanted = program.channels, shape[0] * (2 if variances else 1)
        if gives != wanted:
            hint = "; if it also predicts variances, set variances to true" if gives == 2 * shape[0] else ""
            raise InputError(f"the program returns {gives} channels, not {wanted}{hint}")
