"""Devices and dtypes by their names, and products of float32 numbers that are float32 on a GPU too."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

from odeddim.storage.workers import local_rank
from odeddim.types import InputError, pick

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
"""Name -> dtype of a network. "tf32": stored as float32, and the products of a GPU in TF32, see `products`."""

_lock = threading.Lock()
_inside = {False: 0, True: 0}  # evaluations under way, by whether TF32 suits them
_before: list[str] = []  # torch's settings outside of them


def device_of(device: str | int | torch.device) -> torch.device:
    """The device of this name, tried out with one number. Errors: InputError for a device that is not there."""
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # NotImplementedError, of "meta", is a RuntimeError
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"the device {str(device)!r} cannot be used here ({reason}): use cpu") from error
    return place


def place_of(name: str | torch.device | None = None) -> torch.device:
    """The device where a run takes place, with torch set up so that the same run gives the same digits.

    Args:
        name: of the device. "cuda" is a GPU of its own for each of several processes of torchrun on one machine, as
            long as there are enough. Default: "cuda" if there is a GPU, else "cpu".

    Raises:
        InputError: for a device that is not there.
    """
    name = str(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name == "cuda":
        name = f"cuda:{local_rank() % max(torch.cuda.device_count(), 1)}"
    if name.startswith("cuda"):
        # Not torch.use_deterministic_algorithms: that refuses networks in the middle of a run for operations which some
        # of them have (cumsum of positions), and what it would change in those that run is their backward passes.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins, a moment later
        set_tf32(False)  # also for what is no VectorField: features of images, training
    return device_of(name)


def dtype_of(dtype: str | torch.dtype) -> tuple[torch.dtype, bool]:
    """A network's dtype, by its name in `DTYPES` or as torch has it, and whether its products are to be TF32.

    Errors: InputError for unknown names and for dtypes that are not floating point.
    """
    if isinstance(dtype, str):
        return DTYPES[pick(dtype, DTYPES, "dtype")], dtype == "tf32"
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"the dtype of a network is {', '.join(DTYPES)} or torch's own of that kind, not {dtype!r}")
    return dtype, False


@contextlib.contextmanager
def products(device: torch.device | None, *, tf32: bool = False) -> Iterator[None]:
    """While this is entered, CUDA multiplies float32 numbers as such: in TF32, of 10 bits, only if `tf32` says so.

    torch's own default is TF32 in convolutions. Emulated on the built-in model, that moved the latents of ab3 by
    1.9e-2 (rms), where its own error is 2.5e-3. The settings of the process are put back when the last of several
    threads has left; one that asks for float32 gets it, whatever the others do.
    """
    if device is None or device.type != "cuda":
        yield
        return
    with _lock:
        if not any(_inside.values()):
            _before[:] = _settings()
        _inside[tf32] += 1
        set_tf32(not _inside[False])
    try:
        yield
    finally:
        with _lock:
            _inside[tf32] -= 1
            if any(_inside.values()):
                set_tf32(not _inside[False])
            else:
                _put(_before)


def set_tf32(allowed: bool) -> None:
    """Whether CUDA may multiply float32 numbers in TF32, in convolutions and matrix products, from now on."""
    # Not allow_tf32 alone, which leaves "none": that follows whatever torch.backends.fp32_precision says.
    _put(["tf32" if allowed else "ieee"] * 3)


def _operations() -> tuple[Any, ...]:
    """What has a precision of its own: nothing before torch 2.9, which has allow_tf32 only."""
    cudnn: Any = torch.backends.cudnn
    return (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul) if hasattr(cudnn, "conv") else ()


def _settings() -> list[str]:
    """What is set now, as `_put` takes it."""
    if operations := _operations():  # here allow_tf32 is an error to read where it disagrees with these
        return [operation.fp32_precision for operation in operations]
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    return ["tf32" if allowed else "ieee" for allowed in (cudnn, cudnn, matmul)]


def _put(precisions: list[str]) -> None:
    """Set the precisions of convolutions, recurrent networks and matrix products, in both of torch's ways to say so:
    code that reads the older one would be an error where the newer one alone was set."""
    torch.backends.cudnn.allow_tf32 = precisions[0] == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precisions[2] == "tf32"
    for operation, precision in zip(_operations(), precisions, strict=False):
        operation.fp32_precision = precision
