"""Two networks of one model: one for the noise levels from a boundary on, and one for those below it."""

from __future__ import annotations

from torch import nn


class TwoNetworks(nn.Module):
    """The networks of a model that has two. A `VectorField` chooses one by σ, which is known without the device.

    Args:
        high: The network for σ at the boundary and above.
        low: The network for σ below it.
        boundary: The noise level.
    """

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary

    def of(self, *, low: bool) -> nn.Module:
        """The network for the noise levels below the boundary, or that for the others."""
        return self.low if low else self.high
