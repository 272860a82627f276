"""Networks as programs: torch.export's .pt2, or TorchScript's .pt, with a JSON file beside it, NAME.json for NAME.pt2.

    torch.export.save(torch.export.export(network.eval(), (x, t), dynamic_shapes=({0: B}, {0: B})), "NAME.pt2")

x (B, C, H, W), t (B,) and, of a network with classes, labels (B,) int64. What the numbers mean no program says:

    {"schedule": {"name": "linear", "T": 1000}, "predicts": "eps", "time": "index"}

says it, with "variances": true for a network that predicts variances too, "classes" and "null" for labels, and "shape"
where the program does not fix it. No file runs code of its own; see `odeddim.models.programs`.
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
    """Whether this is named .pt2, or is TorchScript's archive; nothing of it is loaded."""
    if path.suffix.lower() == ".pt2":
        return path.is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2].partition("/")[0] for name in archive.namelist()}
    except Exception:  # of any file at all: another format may know what it is
        return False
    return {"code", "constants.pkl"} <= parts


def read(path: Path) -> VectorField:
    """The program of a file, with the JSON file beside it."""
    said, place = beside.read(path, ("variances",)), beside.place(path)
    missing = [key for key in ("schedule", "predicts", "time") if key not in said]
    if missing:
        raise InputError(
            f"{path} is a program, which does not say its {', '.join(missing)}: write them into {place}, "
            f"for example {EXAMPLE}"
        )
    variances, count = said.get("variances", False), said.get("classes")
    load = functools.partial(_load, path)
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
    """A program as a network: inputs in the dtypes and batches that it was exported for."""

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
        """x (B, C, H, W), t (B,), and labels (B,) if the program takes them -> (B, C, H, W)."""
        if self._dtypes:
            given = tuple(value.to(dtype) for value, dtype in zip(given, self._dtypes, strict=True))
        size = self._batch or len(given[0])
        blocks = []
        for parts in zip(*(torch.split(value, size) for value in given), strict=True):
            count = len(parts[0])
            if self._fixed and count < size:  # any image will do
                parts = tuple(torch.cat([part, part[:1].expand(size - count, *part.shape[1:])]) for part in parts)
            with failures_of(self._path, parts[0]):
                blocks.append(self.program(*parts)[:count])
        return torch.cat(blocks)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Exported:  # type: ignore[override]
        """This program, read again for another device; its dtype is a part of it.

        Raises:
            InputError: for another dtype, and for a device that it cannot be moved to.
        """
        own = self._dtypes[0] if self._dtypes else None
        if dtype not in (None, own):
            name = str(own).removeprefix("torch.") if own else "its own dtype"
            raise InputError(f"{self._path} computes in {name}, which is a part of the program: leave dtype out")
        if device is not None and torch.device(device).type != self._device.type:
            self._take(self._load(torch.device(device)))
            self._device = torch.device(device)
        return self

    def train(self, mode: bool = True) -> Exported:
        """The program as it is: evaluation or training is decided when it is exported."""
        return self


def _load(path: Path, device: torch.device) -> Program:
    try:
        return load_program(path.read_bytes(), device, numbers=(1, 2))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check path and rights") from error
    except Exception as error:  # PyTorch's, of a damaged file: nearly anything
        raise InputError(f"{path} cannot be read as a program ({weights.line(error)}): export it again") from error


def _check(program: Program, shape: tuple[int, ...] | None, *, variances: bool, time: str, classes: int | None) -> None:
    """Raise an InputError where the program's inputs and outputs are not those of a network like this."""
    if program.dtypes and (len(program.dtypes) == 3) != (classes is not None):
        takes = "takes classes: say how many, as classes" if classes is None else f"takes none of {classes} classes"
        raise InputError(f"the program {takes}")
    if program.dtypes and not program.dtypes[1].is_floating_point and time != "integer":
        raise InputError(f"time is {time}, but the program takes whole numbers: it must be integer")
    if shape is not None and program.channels is not None:
        gives, wanted = program.channels, shape[0] * (2 if variances else 1)
        if gives != wanted:
            hint = "; does it predict variances?" if gives == 2 * shape[0] else ""
            raise InputError(f"the program gives {gives} channels, not {wanted}{hint}")
