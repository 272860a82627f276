"""The components in the folder of a diffusers pipeline. Each is a folder with a config.json and weights.

A component is built by the class of diffusers or transformers that its config names, from the settings in the config.
Its weights are read as tensors only, and each must match a tensor of the module by name. No code from the folder runs.
Within `standing_in`, the weights of objects in memory (`odeddim.models.objects`) take the place of a folder's weights,
and the components share them.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from odeddim.models import json_files, weights
from odeddim.types import InputError

CONFIG = "config.json"
WEIGHTS = tuple(
    stem + kind
    for kind in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
)
"""The names of weights files, in order of preference: weights in 16 bits are used only if there are no others."""

_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The names of attention layers in older files of diffusers -> their present names."""
_WRITTEN = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""What transformers writes into a config.json besides the network's settings."""
_CLIP = "text_model."
_QWEN = {"model.": "model.language_model.", "visual.": "model.visual."}
_LAYERS = re.compile("^(?!max_).*(layers|blocks|depth)")
_PER_BLOCK = "per_block"  # the numbers of these layers multiply: there are so many in each block
_MOST_UNSAVED = 1 << 28  # values that are computed and not read, 1 GB: DiT's table of positions has 2²⁰


def library(name: str) -> ModuleType:
    """Import the package diffusers or transformers. Raises InputError if the package is not installed."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"this model needs the package {name}: pip install 'odeddim[diffusers]'") from error


def class_of(package: str, name: str) -> Any:
    """A class of diffusers or transformers. Raises InputError if the installed package is missing or too old for it."""
    if (kind := getattr(library(package), name, None)) is None:
        raise InputError(f"this model needs a newer {package}, with {name}: pip install --upgrade {package}")
    return kind


def config_of(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Read the settings in a folder's JSON file. Raises InputError if the file is missing or holds no settings."""
    return json_files.read(folder / name, "copy the whole folder of the pipeline")


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a network's output depends on: all except those about the software that wrote them."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in _WRITTEN}


def changed_settings(network: nn.Module) -> dict[str, Any]:
    """Return the settings of a network of diffusers or transformers that differ from its class's defaults."""
    config: Any = network.config
    if hasattr(config, "to_diff_dict"):
        found: dict[str, Any] = json.loads(json.dumps(settings_of(config.to_diff_dict())))
        return found
    taken = inspect.signature(type(network).__init__).parameters
    usual = {name: json.dumps(it.default) for name, it in taken.items() if it.default is not it.empty}
    said = {key: json.dumps(value) for key, value in settings_of(config).items()}
    return {key: json.loads(value) for key, value in said.items() if value != usual.get(key)}


def files_of(folder: Path) -> list[Path]:
    """List the weights files of a component: one file, or the pieces that an index lists.

    Args:
        folder: The folder of the component.

    Returns:
        The files.

    Raises:
        InputError: If the folder holds no weights, or if the index is damaged.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = f"{name}.index.json"
        if (folder / index).is_file():
            pieces = config_of(folder, index).get("weight_map")
            if not isinstance(pieces, dict) or not pieces or not all(_is_name(piece) for piece in pieces.values()):
                raise InputError(f"{folder / index} does not list the files of the weights: copy it again")
            return [folder / piece for piece in sorted(set(pieces.values()))]
    raise InputError(f"{folder} holds no weights (such as {WEIGHTS[0]}): copy the whole folder of the pipeline")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", "..") and Path(value).name == value


def state_of(files: Sequence[Path]) -> dict[str, Tensor]:
    """Read the tensors in these files by name. Raises InputError if a file holds anything else."""
    state: dict[str, Tensor] = {}
    for path in files:
        found = weights.read(path)
        if not weights.is_state(found):
            raise InputError(f"{path} does not hold weights by name: copy it again")
        state |= found
    return state


_standing_in: ContextVar[Mapping[Path, Any] | None] = ContextVar("_standing_in", default=None)


@contextlib.contextmanager
def standing_in(parts: Mapping[Path, Any]) -> Iterator[None]:
    """A context in which objects stand in for what lies in folders: the networks' weights, the tokenizers."""
    before = _standing_in.set(parts)
    try:
        yield
    finally:
        _standing_in.reset(before)


def object_at(folder: Path) -> Any | None:
    """The object that stands in for a folder; None if the folder's files count."""
    return (_standing_in.get() or {}).get(folder)


class Weights(NamedTuple):
    """The weights of a part by name, where they are from for messages, and the object that they are shared with."""

    state: dict[str, Tensor]
    place: Path
    owner: nn.Module | None


def weights_of(folder: Path) -> Weights:
    """The weights in a folder, or of the object that stands in for it. Raises InputError if there are none."""
    owner = object_at(folder)
    if owner is None:
        files = files_of(folder)
        return Weights(state_of(files), files[0] if len(files) == 1 else folder, None)
    state = dict(owner.state_dict())
    if any(tensor.is_meta for tensor in state.values()):
        raise InputError(f"{folder} has weights that are not in memory: load it without sequential offloading")
    return Weights(state, folder, owner)


def made(make: Callable[[], nn.Module], folder: Path) -> nn.Module:
    """Build the module of a component, with its weights.

    Args:
        make: The function that builds the module from the settings in the folder.
        folder: The folder of the component.

    Returns:
        The module: frozen, in evaluation mode; float32, or in the dtype of the object whose weights it shares.

    Raises:
        InputError: If no module can be built from the settings, or if the weights do not match the module.
    """
    state, place, owner = weights_of(folder)
    try:
        if (layers := _layers(config_of(folder))) > len(state):
            raise InputError(f"it asks for {layers} layers, but its weights have only {len(state)} tensors")
        network = weights.described(make)
        unsaved = _computed(network)
        sizes = {name: sum(part.numel() for part in parts) for name, parts in unsaved.items()}
        if sum(sizes.values()) > _MOST_UNSAVED:
            raise InputError(
                f"{max(sizes, key=sizes.__getitem__)} would be larger than in any known network: copy it again"
            )
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    known = {*network.state_dict(), *unsaved}
    called = {_today(name, known): name for name in state}
    state = {name: state[its] for name, its in called.items()}
    for names in _tied(network):  # a file holds a tied tensor under one of its names only
        found = next((name for name in names if name in state), None)
        state |= {} if found is None else dict.fromkeys(names, state[found])
    network = weights.fit(network, state, place, spare=list(unsaved), called=called, shared=owner is not None)
    if unsaved:  # what the constructor computes has no values on "meta"
        whole = weights.hollow(make) if owner is None else owner
        for name in unsaved:
            module, _, its = name.rpartition(".")
            setattr(network.get_submodule(module), its, getattr(whole.get_submodule(module), its))
    return network


def _computed(network: nn.Module) -> dict[str, list[Tensor]]:
    """Return the tensors that a network computes and no file holds: in buffers, in attributes and in lists there."""
    saved = network.state_dict()
    found = {name: [part] for name, part in network.named_buffers() if name not in saved}
    for where, module in network.named_modules():
        for name, value in vars(module).items():
            parts = list(value) if isinstance(value, (list, tuple)) else [value]
            if parts and all(isinstance(part, Tensor) for part in parts):
                found[f"{where}.{name}".removeprefix(".")] = parts
    return found


def _layers(config: Mapping[str, Any]) -> int:
    """Return the least number of layers that these settings ask for. Each layer has at least one tensor."""
    inner = [_layers(value) for value in config.values() if isinstance(value, dict)]
    counts = {key: max(_whole(value), default=0) for key, value in config.items() if _LAYERS.search(key)}
    lists = [len(value) for value in config.values() if isinstance(value, list)]
    nested = math.prod(max(count, 1) for key, count in counts.items() if key.endswith(_PER_BLOCK))
    return max([nested, *counts.values(), *lists, *inner])


def _whole(value: Any) -> Iterator[int]:
    """Yield the whole numbers in a setting."""
    for each in value if isinstance(value, list) else [value]:
        yield from _whole(each) if isinstance(each, list) else [each] if type(each) is int else []


def _tied(network: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several names."""
    names: dict[int, list[str]] = {}
    for name, part in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(part), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _today(name: str, known: Collection[str]) -> str:
    """Return the present name of a tensor in a file: the libraries renamed attention, and prefixes of text encoders."""
    *path, layer, kind = ["", "", *name.split(".")]
    others = [".".join([*path[2:], _RENAMED.get(layer, layer), kind]), name.removeprefix(_CLIP), _CLIP + name]
    others += [now + name.removeprefix(then) for then, now in _QWEN.items() if name.startswith(then)]
    return next((other for other in (name, *others) if other in known), name)


def halvings(config: Mapping[str, Any]) -> int:
    """How often a UNet2DModel or UNet2DConditionModel with this config halves its images, between its levels."""
    widths = config.get("block_out_channels")
    return (len(widths) if isinstance(widths, list) else 4) - 1  # 4 is both classes' default


def check_sides(config: Mapping[str, Any], shape: Sequence[int], where: Path) -> None:
    """Raise an InputError if a UNet2DModel with this config cannot halve images (C, H, W) between its levels."""
    times = halvings(config)
    if any(side % 2**times for side in shape[1:]):
        raise InputError(
            f"{where / CONFIG}: images of {shape[1]}×{shape[2]} cannot be halved {times} times, as the network "
            "does between its levels (block_out_channels): correct sample_size"
        )


def size(network: nn.Module) -> str:
    """Return the size of a network in words, such as "859.5 M parameters"."""
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{count / 1e6:.1f} M parameters" if count >= 1e5 else f"{count} parameters"
