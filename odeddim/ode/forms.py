"""The form of a network: where it lies, its dtype, how its tensors lie in memory, and whether it is compiled."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odeddim.ode.devices import Numbers
from odeddim.types import InputError

_COMPILERS = ("torch._dynamo", "torch._inductor")
_AS_THE_STATE = Numbers(None)


@dataclass
class Form:
    """The form of a network: one object for all fields that share the network.

    Attributes:
        device: Where the network lies; None if it runs where the state is.
        numbers: Its dtype, and what products are made in.
        channels_last: Whether images lie in memory with their channels side by side, as convolutions like it.
        compiled: Whether torch compiles the network, for each size of batch that it is given.
    """

    device: torch.device | None = None
    numbers: Numbers = _AS_THE_STATE
    channels_last: bool = False
    compiled: bool = False
    _made: dict[int, Callable[..., Tensor]] = field(default_factory=dict, repr=False)

    def change(self, network: Any, name: str, channels_last: bool | None, compiled: bool | None) -> None:
        """Give the network another form; what is None stays as it is.

        Args:
            network: The network.
            name: The name of the model, for messages.
            channels_last, compiled: See the class.

        Raises:
            InputError: If the network is no module of torch, or an exported program.
        """
        fixed = not isinstance(network, torch.nn.Module) or getattr(network, "keeps_dtype", False)
        for said, argument in ((channels_last, "channels_last"), (compiled, "compile")):
            if said and fixed:
                raise InputError(
                    f"the network of {name!r} is no module of torch whose form can be changed: leave out "
                    f"{argument}=True"
                )
        if channels_last and any(part.ndim == 5 for part in network.parameters()):
            raise InputError(
                f"the network of {name!r} convolves videos, for which there is no such form: leave out "
                "channels_last=True"
            )
        if channels_last is not None and channels_last != self.channels_last:
            network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
            self.channels_last = channels_last
        self.compiled = self.compiled if compiled is None else compiled

    def of(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The network in its form: as it is, or a function that evaluates it."""
        if not (self.channels_last or self.compiled or self.numbers.autocast):
            return network
        return functools.partial(self._answer, network)

    def _answer(self, network: Callable[..., Tensor], x: Tensor, *rest: Tensor, **which: bool) -> Tensor:
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        lower = self.numbers.autocast
        with torch.autocast(x.device.type, lower) if lower else contextlib.nullcontext():
            run = functools.partial(self._run_compiled, network) if self.compiled else network
            out = run(x, *rest, **which)
        return out.contiguous()

    def _run_compiled(self, network: Callable[..., Tensor], x: Tensor, *rest: Tensor, **which: bool) -> Tensor:
        """The answer of the network as torch compiles it: on CUDA replayed as a graph, whose output is copied.

        A graph writes each answer into the same memory, which a solver may still need.
        """
        graphs = x.device.type == "cuda"
        if id(network) not in self._made:
            mode = "reduce-overhead" if graphs else None
            self._made = {id(network): torch.compile(network, dynamic=False, mode=mode)}
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            out = self._made[id(network)](x, *rest, **which)
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILERS):
                raise
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"torch cannot compile the network here ({type(error).__name__}: {reason:.200}): leave out compile=True"
            ) from error
        return out.clone() if graphs else out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}  # a compiled network cannot be pickled, and is made again

    def __deepcopy__(self, memo: dict[int, Any]) -> Form:
        return Form(self.device, self.numbers, self.channels_last, self.compiled)
