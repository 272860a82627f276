"""Weights files of other software: read without running anything in them, and fitted into a network."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from odeddim.types import InputError

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
NAMED = 3  # of tensors that are missing or unexpected, in a message

Network = TypeVar("Network", bound=nn.Module)


def size_of(path: Path, remedy: str = "check path and rights") -> int:
    """How many bytes an ordinary file has.

    Args:
        path: of the file.
        remedy: what to do if it cannot be read, for the message.

    Raises:
        InputError: for a file that cannot be read, and for a pipe or a device, which might never end.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no file, but a folder, a pipe or a device: {remedy}")
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): {remedy}") from error
    return status.st_size


def read(path: Path) -> Any:
    """What a weights file holds: safetensors as a dict, or what `torch.save` wrote, tensors and plain values only.

    Raises:
        InputError: for files that cannot be read, are damaged, or hold objects that only their own code can make.
    """
    size_of(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused, it also warns
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of foreign bytes: whatever it raises means the same
        words = line(error)
        if "weights_only" in words or "Unsupported" in words:
            raise InputError(
                f"{path} holds more than tensors and plain values, or is damaged: save its state_dict by itself "
                "(torch.save(model.state_dict(), ...)), or copy it again"
            ) from error
        raise InputError(f"{path} cannot be read as weights ({words}): copy it again") from error


def is_state(value: Any) -> bool:
    """Whether this is a state dict: names and tensors, at least one."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())
    )


def described(make: Callable[[], Network]) -> Network:
    """The network that `make` makes of settings, on the device "meta": no memory is reserved for what they only claim.

    Raises:
        InputError: in words that go behind the name of the settings' file.
    """
    try:
        with torch.device("meta"):
            return make()
    except InputError:
        raise
    except Exception as error:  # PyTorch's, or of other people's constructors: whatever they raise means the same
        raise InputError(f"it describes no network ({line(error)}): copy it again") from error


def fit(
    network: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    *,
    spare: Sequence[str] = (),
    called: Mapping[str, str] | None = None,
    shared: bool = False,
) -> nn.Module:
    """Put weights into a network that was made on the device "meta".

    Args:
        network: from `described`.
        state: the weights by name.
        path: of their file, for messages.
        spare: names that may be in the file and not in the network.
        called: what the file calls the network's tensors, where it calls them something else.
        shared: whether the weights are those of an object in memory, which the network is to share.

    Returns:
        The network: frozen, in evaluation mode; float32 unless it shares its weights.

    Raises:
        InputError: naming the tensors that are missing, unexpected, of another shape or kind, or damaged.
    """
    called = called or {}
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted and name not in spare]
    if missing or extra:
        said = [f"{word} {some(names)}" for word, names in (("missing", missing), ("unexpected", extra)) if names]
        remedy = "take out adapters such as LoRA first" if shared else "is it the right file?"
        raise InputError(f"{path} does not match the expected network ({'; '.join(said)}): {remedy}")
    for name, has in wanted.items():
        its, tensor = called.get(name, name), state[name]
        if has.shape != tensor.shape:
            raise InputError(
                f"{path} does not match the expected network: {its} has the shape {tuple(tensor.shape)}, not "
                f"{tuple(has.shape)}"
            )
        if has.is_floating_point() != tensor.is_floating_point() or tensor.is_complex():
            raise InputError(
                f"{path} does not match the expected network: {its} holds {_kind(tensor)}, not {_kind(has)}"
            )
        if not _is_whole(tensor):
            raise InputError(f"{path} is damaged: it does not hold all of {its}: copy it again")
    for name in wanted:
        # In float32, which the network will have: the narrowest dtypes know no isfinite.
        if state[name].is_floating_point() and not bool(torch.isfinite(state[name].float()).all()):
            raise InputError(f"{path} is damaged: {called.get(name, name)} holds NaN or infinite values: copy it again")
    weights = {name: state[name] for name in wanted}
    if shared:
        network.load_state_dict(weights, assign=True)
    else:
        network.to_empty(device="cpu").load_state_dict(weights)
        network.float()
    return network.eval().requires_grad_(False)


def _kind(tensor: Tensor) -> str:
    """Its dtype: "int64"."""
    return str(tensor.dtype).removeprefix("torch.")


def _is_whole(tensor: Tensor) -> bool:
    """Whether a number is there for each place: a tensor of stride 0 claims any size."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def hash_of(*paths: Path, settings: Mapping[str, Any] | None = None) -> str:
    """The sha256 by which latent files know a model.

    Args:
        *paths: of files, whose contents are hashed one after the other.
        settings: what else decides what the network answers and no weights tell, such as the number of heads;
            JSON-able.
    """
    found = hashlib.sha256()
    if settings is not None:
        found.update(json.dumps(settings, sort_keys=True).encode())
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
    return found.hexdigest()


def hash_of_networks(*networks: nn.Module, settings: Mapping[str, Any]) -> str:
    """The sha256 of networks by their numbers, whatever the file or the object in memory that they come from.

    Args:
        *networks: The networks. Their numbers are hashed as float32, which holds those of 16 bits exactly, with their
            names and shapes.
        settings: What else decides what they answer, such as the number of heads; JSON-able.
    """
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            found.update(f"{name} {tuple(tensor.shape)}".encode())
            numbers = tensor.float() if tensor.is_floating_point() else tensor
            found.update(numbers.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def line(error: BaseException) -> str:
    """The message of an error, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
