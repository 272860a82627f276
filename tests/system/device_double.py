"""A stand-in for a GPU where there is none: arithmetic of the CPU under the name "cuda:0", and every wait counted.

    with Double() as double:
        field.to("cuda:0")
        odeddim.encode(images, "ab3", model=field)
    double.waits        # Counter {(what, file, line): times}

A tensor on the double is an `OnDevice`: it says that it lies on cuda:0 and holds a CPU tensor with its true values, so
that branches on data go where they would go. (Under torch's FakeTensorMode the first `.item()` is the end.)

RuntimeError where tensors of two devices meet, as CUDA has it: 0-dimensional tensors and indices on the CPU may. A wait
is whatever the host cannot go on without: a value that is read, copies between host and device that are not
`non_blocking`, results whose shape depends on data.

Not seen: gradients, streams and races, and the rounding of a GPU's own kernels. It leans on private names of torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

import odeddim

TORCH = "2.13."  # what it was made for
NAME = "stand-in"  # of the device, as CUDA would tell
PLACE = torch.device("cuda", 0)
ROOT = f"{Path(odeddim.__file__).resolve().parent.parent}/"
OURS = tuple(f"{ROOT}{folder}/" for folder in ("odeddim", "solvers", "cli"))

aten = torch.ops.aten
_COPIES = (aten._to_copy.default, aten.copy_.default)
_READS = {aten._local_scalar_dense.default: "item", aten.equal.default: "equal"}
_SHAPED_BY_DATA = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_SCALARS = {
    torch.Tensor.__bool__: "bool",
    torch.Tensor.__float__: "float",
    torch.Tensor.__int__: "int",
    torch.Tensor.__index__: "index",
    torch.Tensor.item: "item",
    torch.Tensor.tolist: "tolist",
}


class OnDevice(torch.Tensor):
    """A tensor on the double. inner: its values, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=PLACE,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on the double outside of `with Double()`")


def inner(value: Any) -> Any:
    """The same with the values of what is on the double; torch's own walk through arguments takes ten times as long."""
    if isinstance(value, OnDevice):
        return value.inner
    if isinstance(value, (tuple, list)):
        return type(value)(inner(part) for part in value) if type(value) in (tuple, list) else value
    return {key: inner(part) for key, part in value.items()} if isinstance(value, dict) else value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in arguments."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


class Double(TorchDispatchMode):
    """See the module. waits: what the host waited for, by what, file and line: the innermost ones of this project."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str, int]] = Counter()
        self._calls = _Calls(self)
        self._patches = (
            mock.patch.object(torch.cuda, "_lazy_init"),  # called first by whatever is told of CUDA
            mock.patch.object(torch.cuda, "synchronize"),
            mock.patch.object(torch.cuda, "get_device_name", return_value=NAME),
        )

    def __enter__(self) -> Double:
        torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as FakeTensorMode has it
        for patch in self._patches:
            patch.start()
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        # `Module.to` would put what lies on the double into the data of the plain Parameter.
        self._overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._calls.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._calls.__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrites)
        torch._C._set_only_lift_cpu_tensors(self._lifts)
        for patch in self._patches:
            patch.stop()

    def wait(self, what: str) -> None:
        """Note a wait at the innermost line of this project, or else of whoever is outside of torch."""
        frame, outside = sys._getframe(1), ("?", 0)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(OURS):
                outside = name.removeprefix(ROOT), frame.f_lineno
                break
            if outside == ("?", 0) and "/torch/" not in name and name != __file__:
                outside = name, frame.f_lineno
            frame = frame.f_back
        self.waits[(what, *outside)] += 1

    def index(self, tensor: torch.Tensor, index: Any, *, value: Any = None) -> None:
        """Note what indexing a tensor costs, where a value is written or read; RuntimeError where CUDA has one."""
        for part in _parts(index):
            if not isinstance(part, (torch.Tensor, list)) and type(part).__name__ != "ndarray":
                continue
            if isinstance(part, OnDevice) and not isinstance(tensor, OnDevice):
                raise RuntimeError("a tensor on cpu cannot be indexed by tensors on cuda:0")
            part = part if isinstance(part, torch.Tensor) else torch.as_tensor(part)
            here = isinstance(part, OnDevice)
            filled = value is not None and getattr(value, "ndim", 0) == 0  # one number where a mask is: no wait
            if part.dtype in (torch.bool, torch.uint8):
                if not (here and filled):
                    self.wait("index by a mask")
            elif not here and part.ndim > 0 and isinstance(tensor, OnDevice):
                self.wait("index to the device")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        tensors = tensors_in((args, kwargs))
        to_double = device is not None and torch.device(device).type == PLACE.type
        if not to_double and not any(isinstance(tensor, OnDevice) for tensor in tensors):
            return func(*args, **kwargs)
        self._check(func, args, tensors)
        self._note(func, args, kwargs)
        there = {"device": torch.device("cpu")} if device is not None else {}
        out = func(*inner(args), **{**inner(kwargs), **there})
        if (device is not None and not to_double) or func in _READS:
            return out
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            return args[0]
        out = tree_map_only(torch.Tensor, _on_device, out)
        return out if func is aten._to_copy.default else return_and_correct_aliasing(func, args, kwargs, out)

    def _check(self, func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
        """RuntimeError where CUDA refuses tensors of two devices."""
        name = func._schema.name.split("::")[1]
        if name in _INDEXED:
            if not isinstance(args[0], OnDevice):
                raise RuntimeError(f"{func}: a tensor on cpu cannot be indexed by tensors on cuda:0")
            if len(args) > 2 and not isinstance(args[2], OnDevice) and args[2].ndim:
                raise RuntimeError(f"{func}: values on cpu into a tensor on cuda:0")
            return
        far = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim]
        if far and func not in _COPIES and any(isinstance(tensor, OnDevice) for tensor in tensors):
            raise RuntimeError(f"{func}: tensors on cuda:0 and cpu (shapes {far})")

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note what of an operation the host waits for."""
        name = func._schema.name.split("::")[1]
        if func in _READS:
            self.wait(_READS[func])
        elif name in _SHAPED_BY_DATA:
            self.wait(name)
        elif name in _INDEXED:
            for part in args[1]:
                if part is not None:
                    self.index(args[0], part)
        elif func is aten._to_copy.default:
            target = PLACE.type if kwargs.get("device") is None else torch.device(kwargs["device"]).type
            if (target == PLACE.type) != isinstance(args[0], OnDevice) and not kwargs.get("non_blocking"):
                self.wait(f"copy to {target}")
        elif func is aten.copy_.default and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            self.wait("copy into the other device's")


def _on_device(tensor: torch.Tensor) -> OnDevice:
    return tensor if isinstance(tensor, OnDevice) else OnDevice(tensor)


class _Calls(TorchFunctionMode):
    """What torch decides by the device before anything is dispatched."""

    def __init__(self, double: Double) -> None:
        self.double = double

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func is torch.Tensor.__setitem__:
            return self._set(*args)
        if func is torch.Tensor.__getitem__ and any(isinstance(part, OnDevice) for part in (first, *_parts(args[1]))):
            self.double.index(first, args[1])
            return OnDevice(first.inner[inner(args[1])])
        if not isinstance(first, OnDevice):
            return func(*args, **kwargs)
        if func in _SCALARS:
            self.double.wait(_SCALARS[func])
            return func(first.inner, *args[1:], **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention:  # its kernel is chosen by the device
            if not all(isinstance(part, OnDevice) for part in args[:3]):
                raise RuntimeError(f"{func}: tensors on cuda:0 and cpu")
            return OnDevice(func(*inner(args), **inner(kwargs)))
        if func is torch.Tensor.__invert__:
            return torch.bitwise_not(first)
        if func is torch.Tensor.contiguous:
            return first if first.is_contiguous() else first.clone(memory_format=torch.contiguous_format)
        if func in (torch.Tensor.nonzero, torch.nonzero):
            self.double.wait("nonzero")
            return OnDevice(first.inner.nonzero())
        if func is torch.Tensor.new_tensor:
            to_cpu = torch.device(kwargs.pop("device", None) or PLACE).type == "cpu"
            made = first.inner.new_tensor(*args[1:], **kwargs)
            if to_cpu:
                return made
            self.double.wait("copy to cuda")
            return OnDevice(made)
        return func(*args, **kwargs)

    def _set(self, target: torch.Tensor, index: Any, value: Any) -> None:
        if any(isinstance(part, OnDevice) for part in (target, value, *_parts(index))):
            self.double.index(target, index, value=value)
            if (
                isinstance(value, torch.Tensor)
                and value.ndim
                and isinstance(value, OnDevice) != isinstance(target, OnDevice)
            ):
                self.double.wait("copy into the other device's")
        inner(target)[inner(index)] = inner(value)
