"""Weights in files of other software: reading one runs no code from it, and the weights are put into a network."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from odeddim.types import InputError

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
NAMED = 3  # the most tensors that a message names
_HEAD = 1 << 20  # bytes; a file that is not an archive holds its names within them
_LARGEST_INDEX = 1 << 24  # bytes of the list of names in an archive

Network = TypeVar("Network", bound=nn.Module)


def size_of(path: Path, remedy: str = "check the path and its permissions") -> int:
    """Return the size of a regular file in bytes.

    Args:
        path: The file.
        remedy: What the user should do if the file cannot be read, for the error message.

    Returns:
        The size.

    Raises:
        InputError: If the file cannot be read, or if it is a folder, a pipe or a device. Reading from a pipe or a
            device might never end.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is a folder, a pipe or a device, not a file: {remedy}")
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): {remedy}") from error
    return status.st_size


def read(path: Path, safe: Sequence[type] = ()) -> Any:
    """Read a weights file without running code from it.

    Args:
        path: The file, safetensors or the output of `torch.save`.
        safe: Classes that the file may hold besides: plain records, which run nothing when they are made.

    Returns:
        The content: a dict of tensors for safetensors, otherwise the saved object of tensors and plain values.

    Raises:
        InputError: If the file cannot be read, is damaged, or holds objects other than tensors and plain values.
    """
    size_of(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(safe)):
            warnings.simplefilter("ignore")  # torch also warns about pickles that it refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of foreign bytes may raise any type
        words = line(error)
        if "weights_only" in words or "Unsupported" in words:
            raise InputError(
                f"{path} holds more than tensors and plain values, or is damaged: save its state_dict by itself "
                "(torch.save(model.state_dict(), ...)), or copy it again"
            ) from error
        raise InputError(f"{path} cannot be read as weights ({words}): copy it again") from error


def names_in(path: Path) -> bytes:
    """Return the bytes of a file that would hold the names of its tensors, whatever kind of file it is.

    Nothing is unpickled, so that formats can be told apart.

    Args:
        path: The file.

    Returns:
        The bytes; none if the file is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return file.read(_HEAD)
        with zipfile.ZipFile(path) as archive:
            index = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
            return archive.read(index) if index.file_size <= _LARGEST_INDEX else b""
    except Exception:  # the file may be anything, and another format may know it
        return b""


def is_state(value: Any) -> bool:
    """Return whether a value is a state dict: at least one tensor, each under a name."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())
    )


def described(make: Callable[[], Network]) -> Network:
    """Build a network on the device "meta", where it takes no memory, however large its settings claim it is.

    Args:
        make: The function that builds the network from its settings.

    Returns:
        The network, without weights.

    Raises:
        InputError: If the settings do not describe a network. The message continues the name of the settings' file.
    """
    try:
        with torch.device("meta"):
            return make()
    except InputError:
        raise
    except Exception as error:  # PyTorch and foreign constructors may raise any type
        raise InputError(f"no network can be built from its settings ({line(error)}): copy it again") from error


class _Hollow(TorchFunctionMode):
    """Within it, what is made empty or drawn has no memory, as weights are, and what is computed has its values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.rand, torch.randn) and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def hollow(make: Callable[[], Network]) -> Network:
    """Build a network whose large weights take no memory, and whose computed tensors, such as positions, are there.

    Args:
        make: The function that builds the network from its settings, of which `described` made one.
    """
    with _Hollow():
        return make()


def fit(
    network: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    *,
    spare: Sequence[str] = (),
    called: Mapping[str, str] | None = None,
    shared: bool = False,
) -> nn.Module:
    """Put weights into a network that was built on the device "meta".

    Args:
        network: The network, from `described`.
        state: The weights by name.
        path: The file of the weights, for error messages.
        spare: The names that may be in the file although the network does not have them.
        called: The file's name of each tensor, by the network's name, where the two differ.
        shared: Whether the weights are those of an object in memory, which the network is to share.

    Returns:
        The network with its weights: frozen, in evaluation mode; float32 unless it shares its weights.

    Raises:
        InputError: If tensors are missing, unexpected or damaged, or have another shape or kind of number. The message
            names them.
    """
    called = called or {}
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted and name not in spare]
    if missing or extra:
        said = [f"{word} {some(names)}" for word, names in (("missing", missing), ("unexpected", extra)) if names]
        remedy = "take out adapters such as LoRA or of images first" if shared else "check that it is the right file"
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
            raise InputError(f"{path} is damaged (it does not hold all values of {its}): copy it again")
    for name in wanted:
        # In float32, the dtype that the network gets: isfinite is not defined for the narrowest dtypes.
        if state[name].is_floating_point() and not bool(torch.isfinite(state[name].float()).all()):
            raise InputError(
                f"{path} is damaged ({called.get(name, name)} holds NaN or infinite values): copy it again"
            )
    weights = {name: state[name] for name in wanted}
    if shared:
        network.load_state_dict(weights, assign=True)
    else:
        network.to_empty(device="cpu").load_state_dict(weights)
        network.float()
    return network.eval().requires_grad_(False)


def _kind(tensor: Tensor) -> str:
    """Return a tensor's dtype in words, such as "int64"."""
    return str(tensor.dtype).removeprefix("torch.")


def _is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor's storage holds all of its values. A tensor of stride 0 may claim any size."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def some(names: Sequence[str]) -> str:
    """Return the first few names in words, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def hash_of(*paths: Path, settings: Mapping[str, Any] | None = None) -> str:
    """Return the SHA-256 by which latent files identify a model.

    Args:
        *paths: The files whose contents are hashed, one after the other.
        settings: Other settings that the network's output depends on and that the weights do not show, such as the
            number of heads. They must be JSON-able.

    Returns:
        The hash, 64 hexadecimal digits.
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
    """Return the message of an error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
