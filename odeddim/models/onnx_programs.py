"""Networks as ONNX programs, which onnxruntime runs.

An ONNX file is a graph of named operations and holds no code. onnxruntime knows the standard operations, and loads
libraries of others only where a program asks it to, which this one does not. Weights in further files are read here and
handed over, from the program's folder only: onnxruntime itself opens no file. Operations that draw random numbers are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim.models.onnx_files import beside, look_into
from odeddim.models.programs import Program
from odeddim.types import InputError

INPUTS = ("x", "t", "label")
"""What a network is given: images (B, C, H, W), labels of the noise level (B,), and perhaps classes (B,)."""

_TYPES = {
    "tensor(float16)": torch.float16,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}
_DRAWS = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def load_onnx(path: Path, device: torch.device, inputs: Mapping[str, str], output: str | None) -> Program:
    """Load the program in an ONNX file.

    Args:
        path: The file.
        device: The device that it runs on.
        inputs: The names of its inputs by our names (`INPUTS`); {} if they come in this order.
        output: The name of its output; None for the first.

    Returns:
        The program.

    Raises:
        InputError: If onnxruntime is missing or has no such device, or if the program is not that of a network. The
            message continues the file's name.
        Exception: onnxruntime may raise any other exception on a damaged file.
    """
    blob = path.read_bytes()
    kinds, places = look_into(blob)
    if found := sorted(kinds & _DRAWS):
        raise InputError(f"draws random numbers ({found[0]}): export the network after network.eval()")
    session = _session(blob, device, beside(path, places))
    taken = {one.name: one for one in session.get_inputs()}
    names = _named(list(taken), inputs)
    ranks = [4, 1, 1]
    for name, rank in zip(names, ranks, strict=False):
        if taken[name].type not in _TYPES or len(taken[name].shape) != rank:
            words = f"{taken[name].type.removeprefix('tensor')[1:-1]} of shape {list(taken[name].shape)}"
            raise InputError(
                f"has the input {name!r}, {words}, where {rank} dimensions are needed: export it with these"
            )
    outputs = {one.name: one for one in session.get_outputs()}
    answer = next(iter(outputs)) if output is None else output
    if answer not in outputs:
        raise InputError(f"has no output {answer!r:.80}: give one of {', '.join(outputs)} as output in the sidecar")
    batch, *sizes = taken[names[0]].shape
    answers = outputs[answer].shape
    return Program(
        _Runner(session, names, answer),
        batch if isinstance(batch, int) else None,
        isinstance(batch, int),
        tuple(sizes) if all(isinstance(size, int) for size in sizes) else None,
        tuple(_TYPES[taken[name].type] for name in names),
        answers[1] if len(answers) == 4 and isinstance(answers[1], int) else None,
    )


class _Runner:
    """A session as a function of tensors."""

    def __init__(self, session: Any, names: Sequence[str], output: str) -> None:
        self.session, self.names, self.output = session, names, output

    def __call__(self, *given: Tensor) -> Tensor:
        if any(value.requires_grad for value in given) and torch.is_grad_enabled():
            raise InputError("an ONNX program has no gradients: evaluate it within torch.no_grad()")
        feeds = {name: value.detach().cpu().numpy() for name, value in zip(self.names, given, strict=True)}
        (out,) = self.session.run([self.output], feeds)
        return torch.from_numpy(out).to(given[0].device)


def _session(blob: bytes, device: torch.device, further: Mapping[str, Path]) -> Any:
    """Load a program by onnxruntime, which says nothing and computes the same digits in each run."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("needs the package onnxruntime: pip install 'odeddim[onnx]'") from error
    provider = _PROVIDERS.get(device.type, "")
    if provider not in onnxruntime.get_available_providers():
        raise InputError(f"cannot run on {device.type} with this onnxruntime: leave out device=...")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    options.use_deterministic_compute = True
    options.intra_op_num_threads = torch.get_num_threads()
    if further:
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            raise InputError(
                "keeps weights in further files, which needs a newer onnxruntime: pip install -U onnxruntime"
            )
        held = [np.memmap(file, mode="r") for file in further.values()]  # until the session is there
        options.add_external_initializers_from_files_in_memory(list(further), held, [len(its) for its in held])
    return onnxruntime.InferenceSession(blob, options, providers=[provider])


def _named(names: Sequence[str], inputs: Mapping[str, str]) -> list[str]:
    """The names of the inputs in our order."""
    found = [inputs[ours] for ours in INPUTS if ours in inputs] if inputs else list(names)
    if sorted(found) != sorted(names) or len(found) not in (2, 3):
        wanted = '{"x": NAME, "t": NAME} and, for classes, "label"'
        has = ", ".join(map(repr, names[:8]))
        raise InputError(f"takes {has}: name each of 2 or 3 inputs once as inputs in the sidecar, {wanted}")
    return found
