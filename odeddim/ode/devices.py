"""Devices and dtypes by name, and the setting that makes a GPU multiply float32 numbers in float32."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from odeddim.storage.workers import local_rank
from odeddim.types import InputError, pick

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "autocast-bfloat16": torch.float32,
    "autocast-float16": torch.float32,
}
"""The dtypes of a network by name. "tf32" is float32, with products on a GPU in TF32; see `products`. "autocast-..." is
float32 with those operations in a smaller dtype that torch.autocast takes for safe in it."""


class Numbers(NamedTuple):
    """What a network computes in.

    Attributes:
        dtype: Its dtype; None for that of the state.
        tf32: Whether a GPU may multiply float32 numbers in TF32.
        autocast: The dtype of torch.autocast; None for none.
    """

    dtype: torch.dtype | None
    tf32: bool = False
    autocast: torch.dtype | None = None

    @property
    def name(self) -> str:
        """The name in `DTYPES`, or that of the dtype."""
        if self.autocast is not None:
            return f"autocast-{str(self.autocast).removeprefix('torch.')}"
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")


_lock = threading.Lock()
_inside = {False: 0, True: 0}  # the number of evaluations in progress, by whether they allow TF32
_before: list[str] = []  # torch's settings before the first of them


def device_of(device: str | int | torch.device) -> torch.device:
    """The device of a name. It is tried with one number.

    Args:
        device: The name, such as "cuda:1", or the device itself.

    Returns:
        The device.

    Raises:
        InputError: If this machine has no such device.
    """
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # NotImplementedError, of "meta", is a RuntimeError
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"the device {str(device)!r} cannot be used here ({reason}): use cpu") from error
    return place


def place_of(name: str | torch.device | None = None) -> torch.device:
    """The device of a run. torch is set so that the same run gives the same digits.

    Args:
        name: The name of the device. With "cuda", each process that torchrun starts on a machine takes a GPU of its
            own, as long as there are enough. By default "cuda" if there is a GPU, else "cpu".

    Returns:
        The device.

    Raises:
        InputError: If this machine has no such device.
    """
    name = str(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name == "cuda":
        name = f"cuda:{local_rank() % max(torch.cuda.device_count(), 1)}"
    if name.startswith("cuda"):
        # Not torch.use_deterministic_algorithms: that refuses networks in the middle of a run for operations which some
        # of them have (cumsum of positions), and what it would change in those that run is their backward passes.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins, a moment later
        set_tf32(False)  # also for networks outside a VectorField: features of images, training
    return device_of(name)


def dtype_of(dtype: str | torch.dtype) -> Numbers:
    """The dtype of a network.

    Args:
        dtype: A name in `DTYPES`, or a floating point dtype of torch.

    Returns:
        The dtype, whether products on a GPU are in TF32, and the dtype of autocast.

    Raises:
        InputError: If the name is unknown, or the dtype is not a floating point one.
    """
    if isinstance(dtype, str):
        kind = DTYPES[pick(dtype, DTYPES, "dtype")]
        _, lower, smaller = dtype.rpartition("autocast-")
        return Numbers(kind, dtype == "tf32", DTYPES[smaller] if lower else None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(
            f"the dtype of a network must be {', '.join(DTYPES)} or a floating point dtype of torch, not {dtype!r}"
        )
    return Numbers(dtype)


@contextlib.contextmanager
def products(device: torch.device | None, *, tf32: bool = False) -> Iterator[None]:
    """A context in which CUDA multiplies float32 numbers in float32, or in TF32 (10 bits) if `tf32` is true.

    torch's own default is TF32 in convolutions. Emulated on the built-in model, that moved the latents of ab3 by
    1.9e-2 (rms), where its own error is 2.5e-3. The settings of the process are restored when the last of several
    threads leaves the context. A thread that asks for float32 gets it, whatever the other threads ask for.

    Args:
        device: The device of the network. On any device but CUDA the context does nothing.
        tf32: Whether TF32 is allowed.
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
    """Set whether CUDA may multiply float32 numbers in TF32, in convolutions and in matrix products."""
    # Not allow_tf32 alone, which leaves "none": that follows whatever torch.backends.fp32_precision says.
    _put(["tf32" if allowed else "ieee"] * 3)


def _operations() -> tuple[Any, ...]:
    """torch's settings of precision for each operation: none before torch 2.9, which has allow_tf32 only."""
    cudnn: Any = torch.backends.cudnn
    return (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul) if hasattr(cudnn, "conv") else ()


def _settings() -> list[str]:
    """The present settings, as `_put` takes them."""
    if operations := _operations():  # reading allow_tf32 would raise an error where it contradicts these
        return [operation.fp32_precision for operation in operations]
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    return ["tf32" if allowed else "ieee" for allowed in (cudnn, cudnn, matmul)]


def _put(precisions: list[str]) -> None:
    """Set the precisions of convolutions, recurrent networks and matrix products, in both interfaces of torch.

    If the newer interface alone were set, code that reads the older one would raise an error.
    """
    torch.backends.cudnn.allow_tf32 = precisions[0] == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precisions[2] == "tf32"
    for operation, precision in zip(_operations(), precisions, strict=False):
        operation.fp32_precision = precision
