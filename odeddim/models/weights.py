"""Weights files of other software: read without running anything in them, and fitted into a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from odeddim.types import InputError

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
NAMED = 3  # of tensors that lack or are too many


def read(path: Path) -> Any:
    """What a weights file holds: safetensors as a dict, or what `torch.save` wrote, tensors and plain values only.

    Errors: InputError for files that cannot be read, are damaged, or hold objects that only their own code can make.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or line(error)}): check path and rights") from None
    except Exception as error:  # a parser of foreign bytes: whatever it raises means the same
        words = line(error)
        if "weights_only" in words or "Unsupported" in words:
            raise InputError(
                f"{path} holds more than tensors and plain values, or is damaged: save its state_dict by itself "
                "(torch.save(model.state_dict(), ...)), or copy it again"
            ) from None
        raise InputError(f"{path} cannot be read as weights ({words}): copy it again") from None


def is_state(value: Any) -> bool:
    """Whether this is a state dict: names and tensors, at least one."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())
    )


def fit(network: nn.Module, state: Mapping[str, Tensor], path: Path, *, spare: Sequence[str] = ()) -> nn.Module:
    """The network, made on the device "meta", with these weights: float32, frozen, in evaluation mode.

    spare: names that may be in the file and not in the network. Errors: InputError naming what lacks or is too many.
    """
    wanted = network.state_dict()
    lacks = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted and name not in spare]
    if lacks or extra:
        said = " and ".join([*(["lacks " + some(lacks)] if lacks else []), *(["has " + some(extra)] if extra else [])])
        raise InputError(f"{path} does not fit the network that it should be ({said}): is it the right file?")
    for name, has in wanted.items():
        if has.shape != state[name].shape:
            raise InputError(
                f"{path} does not fit the network that it should be: {name} has the shape {tuple(state[name].shape)} "
                f"where {tuple(has.shape)} is wanted"
            )
        if not _is_whole(state[name]):
            raise InputError(f"{path} is damaged: it does not hold all of {name}: copy it again")
    for name in wanted:
        if state[name].is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            raise InputError(f"{path} is damaged: {name} holds NaN or infinite values")
    network.to_empty(device="cpu").load_state_dict({name: state[name] for name in wanted})
    return network.float().eval().requires_grad_(False)


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
    """What latent files know a model by: the sha256 of the contents of files, one after the other, and of settings.

    settings: what else decides what the network answers, as the number of heads, which no weights tell; JSON-able.
    """
    found = hashlib.sha256()
    if settings is not None:
        found.update(json.dumps(settings, sort_keys=True).encode())
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
    return found.hexdigest()


def line(error: BaseException) -> str:
    """What a library said, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
