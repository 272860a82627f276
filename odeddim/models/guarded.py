"""Networks from files: if a network fails during an evaluation, the error names its file.

A network can have settings with which it can be built but not run, and a program from a file may not run either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from odeddim.ode.conditions import Given
from odeddim.ode.field import VectorField
from odeddim.ode.guidance import Way
from odeddim.storage.errors import axes_of
from odeddim.types import InputError, lacks_memory


class Loaded(VectorField):
    """A VectorField whose network was read from the file or folder `name`."""

    def _network(self, x: Tensor, labels: Tensor, way: Way, each: Given) -> Tensor:
        with failures_of(self.name, x):
            return super()._network(x, labels, way, each)


@contextlib.contextmanager
def failures_of(path: str | Path, x: Tensor) -> Iterator[None]:
    """Turn errors of a network into InputErrors within the block.

    Out-of-memory errors stay as they are, because the file does not cause them.

    Args:
        path: The file or folder of the network.
        x: The images (B, C, H, W) that the network is evaluated on; the message gives their shape.

    Raises:
        InputError: If the block raises an error other than InputError or an out-of-memory error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # PyTorch and foreign code may raise any type
        if lacks_memory(error):
            raise
        size = "×".join(map(str, x.shape))
        words = " ".join(str(error).split())[-200:]  # PyTorch gives the reason at the end
        raise InputError(
            f"the network of {path} fails on {size} (images×{axes_of(x.shape[1:])}): {type(error).__name__}: {words}"
        ) from error
