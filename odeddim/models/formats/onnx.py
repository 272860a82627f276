"""Networks as ONNX programs, NAME.onnx, with a sidecar NAME.json; they need onnxruntime, odeddim[onnx].

The inputs are x (B, C, H, W), t (B,) and, for a network with classes, labels (B,), in this order or by the names that
the sidecar gives, which also says what the numbers mean:

    {"schedule": {"name": "linear", "T": 1000}, "predicts": "eps", "time": "index",
     "inputs": {"x": "sample", "t": "timestep"}, "output": "out_sample"}

Weights may lie in further files of its folder, as torch.onnx.export(..., external_data=True) leaves them. The sidecar
takes "variances", "classes", "null" and "shape" too, as exported programs do. See `odeddim.models.onnx_programs` for
why reading a file runs no foreign code.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from odeddim.models import sidecar as beside
from odeddim.models import weights
from odeddim.models.formats import exported
from odeddim.models.onnx_files import beside as beside_program
from odeddim.models.onnx_files import look_into
from odeddim.models.onnx_programs import INPUTS, load_onnx
from odeddim.models.programs import Program
from odeddim.ode.field import VectorField
from odeddim.types import InputError


def matches(path: Path) -> bool:
    """Return whether a path is a file with the suffix .onnx. The file is not opened."""
    return path.suffix.lower() == ".onnx" and path.is_file()


def read(path: Path) -> VectorField:
    """Read an ONNX program and its sidecar.

    Args:
        path: The program.

    Returns:
        The model, without gradients.

    Raises:
        InputError: If onnxruntime is missing, if the program cannot be read, if the sidecar is incomplete, or if the
            two contradict each other.
    """
    said = exported.settings_of(path, ("inputs", "output"))
    inputs, output = said.pop("inputs", {}), said.pop("output", None)
    if not isinstance(inputs, dict) or not all(name in INPUTS and isinstance(its, str) for name, its in inputs.items()):
        raise InputError(
            f'{beside.place(path)}: inputs must be the names in the file, as {{"x": "sample", "t": "timestep"}}, not '
            f"{inputs!r:.80}"
        )
    if output is not None and not isinstance(output, str):
        raise InputError(f"{beside.place(path)}: output must be a name in the file, not {output!r:.80}")
    field = exported.field_of(path, said, functools.partial(_load, path, inputs, output))
    further = beside_program(path, look_into(path.read_bytes())[1])
    its = {"network": field.sha256, "inputs": inputs, "output": output}
    field.sha256 = weights.hash_of(path, *further.values(), settings=its)
    field.details["found"] = field.details["found"].replace("program", "ONNX program", 1)
    return field


def _load(path: Path, inputs: dict[str, Any], output: str | None, device: torch.device) -> Program:
    weights.size_of(path)
    try:
        return load_onnx(path, device, inputs, output)
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # onnxruntime may raise any type on a damaged file
        raise InputError(
            f"{path} cannot be read as an ONNX program ({weights.line(error)}): export it again"
        ) from error
