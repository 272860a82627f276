"""Adapted: a network of other people as one that returns a tensor and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeddim.types import InputError


class Adapted(torch.nn.Module):
    """A network whose answer may be a tensor, the first of a tuple, or the attribute `sample` of an object.

    Args:
        network: network(x (B, C, *), t (B,), *given) -> its answer. A module becomes a part of this one and moves
            with it.
        variances: whether the second half of the answer's channels are variances, which are left out.
    """

    def __init__(self, network: Callable[..., Any], *, variances: bool) -> None:
        super().__init__()
        self.network = network
        self.variances = variances

    def forward(self, x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        """x (B, C, *), t (B,) -> (B, C, *)."""
        out = self.network(x, t, *given)
        out = out[0] if isinstance(out, (tuple, list)) else getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            raise InputError(
                f"the network returns a {type(out).__name__}, not a tensor: wrap it in a function that returns one"
            )
        if self.variances and out.ndim > 1 and out.shape[1] == 2 * x.shape[1]:
            return out[:, : x.shape[1]]
        return out
