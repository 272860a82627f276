"""Two networks of one model: one for the noise levels from a boundary on, and one for those below it."""

from __future__ import annotations

from torch import Tensor, nn


class TwoNetworks(nn.Module):
    """The networks of a model that has two. A `VectorField` chooses one by σ, which is known without the device.

    Args:
        high: The network for σ at the boundary and above, network(x (B, *), t (B,), *given) -> (B, *).
        low: The network for σ below it, likewise.
        boundary: The noise level.
    """

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary

    def forward(self, x: Tensor, t: Tensor, *given: Tensor, low: bool) -> Tensor:
        """Evaluate one of the networks: the lower one, or the other."""
        answer: Tensor = (self.low if low else self.high)(x, t, *given)
        return answer
