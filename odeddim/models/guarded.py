"""Networks read from files: an error that one of them raises when it is evaluated names its file.

A network can be made with settings that it cannot run with, and not every program runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.types import InputError, lacks_memory


class Loaded(VectorField):
    """The field of a network that was read from the file or folder `name`."""

    def _network(self, x: Tensor, labels: Tensor, guided: bool) -> Tensor:
        with failures_of(self.name, x):
            return super()._network(x, labels, guided)


@contextlib.contextmanager
def failures_of(path: str | Path, x: Tensor) -> Iterator[None]:
    """Within the block, errors of the network at `path` on images x (B, C, H, W) become InputErrors.

    Errors of too little memory stay as they are, for they are no fault of the file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # PyTorch's, or of other people's code: anything
        if lacks_memory(error):
            raise
        size = "×".join(map(str, x.shape))
        words = " ".join(str(error).split())[-200:]  # the end is where PyTorch gives the reason
        raise InputError(
            f"the network of {path} fails on {size} (images×channels×height×width): {type(error).__name__}: {words}"
        ) from error
