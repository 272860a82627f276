"""Adapted: wraps a network whose answer is more than one tensor, so that it returns one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeddim.types import InputError


class Adapted(torch.nn.Module):
    """A network whose answer may be a tensor, the first element of a tuple, or the attribute `sample` of an object.

    Args:
        network: The network, network(x (B, C, *), t (B,), *given) -> answer. A module becomes a submodule of this one
            and moves with it.
        variances: Whether the second half of the answer's channels are variances, which are left out.
    """

    def __init__(self, network: Callable[..., Any], *, variances: bool) -> None:
        super().__init__()
        self.network = network
        self.variances = variances

    def forward(self, x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: The network's input, (B, C, *).
            t: The labels, (B,).
            *given: What the network takes after x and t.

        Returns:
            The answer, (B, C, *), without variances.

        Raises:
            InputError: If the network returns no tensor.
        """
        out = self.network(x, t, *given)
        out = out[0] if isinstance(out, (tuple, list)) else getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            raise InputError(
                f"the network returns a {type(out).__name__}, not a tensor: wrap it in a function that returns one"
            )
        if self.variances and out.ndim > 1 and out.shape[1] == 2 * x.shape[1]:
            return out[:, : x.shape[1]]
        return out
