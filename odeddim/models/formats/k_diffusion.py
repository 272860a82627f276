"""Checkpoints of k-diffusion (github.com/crowsonkb/k-diffusion): its training's .pth, its converter's .safetensors.

Both hold the configuration that the network was trained with, the first also the averaged weights beside the raw ones.
For files without it, NAME.json beside NAME.pth is the configuration, as its `--config` takes it and as its script
config_from_inference.py writes it. NAME.json may also be {"weights": "raw"}, for the weights that are not averaged.

Read are its U-Nets (type image_v1). The network is F of EDM's preconditioning D(x, σ), and the configuration names the
range of noise levels. Augmentations are told to be none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from odeddim.models import components, json_files, weights
from odeddim.models import sidecar as beside
from odeddim.models.guarded import Loaded
from odeddim.models.networks.karras_unet import KarrasUNet
from odeddim.models.networks.preconditioned import Denoiser
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

_UNET = re.compile(rb"u_net\.d_blocks\.0\.")
_OTHERS = (re.compile(rb"image_transformer_v\d"), re.compile(rb"sigma_sample_density"))
_WRAPPER = "inner_model."
_RESIDUAL = {
    "norm1.told": "main.0.mapper",
    "conv1": "main.2",
    "norm2.told": "main.4.mapper",
    "conv2": "main.6",
    "shortcut": "skip",
}
_ATTENTION = {"norm.told": "norm_in.mapper", "qkv": "qkv_proj", "out": "out_proj"}
_WHOLE = {"dense1": "mapping.0", "dense2": "mapping.2", "first": "proj_in", "last": "proj_out"}
_ABOVE = 10**6  # above any width, depth or size


def matches(path: Path) -> bool:
    """Return whether a weights file holds k-diffusion's U-Net, or its configuration. Nothing is unpickled."""
    if path.suffix.lower() not in weights.SUFFIXES:
        return False
    head = weights.names_in(path)
    return _UNET.search(head) is not None or all(mark.search(head) for mark in _OTHERS)


def read(path: Path) -> VectorField:
    """Read a checkpoint of k-diffusion.

    Args:
        path: The checkpoint.

    Returns:
        The model, with the averaged weights if the file holds them and the sidecar does not choose the raw ones.

    Raises:
        InputError: If the file or its configuration cannot be used, or if the network is of another type.
    """
    config, wanted, source = _sidecar(path)
    which, state, inside = _held(path, wanted)
    config = inside if config is None else config
    if config is None:
        raise InputError(
            f"{path} does not hold the configuration of its network: write it into {beside.place(path)}, the JSON file "
            "that k-diffusion's train.py took as --config"
        )
    try:
        settings, sigmas, shape = _settings(config, len(state))
        data, low, high = sigmas
        schedule = Schedule.edm(sigma_min=low, sigma_max=high)
        network = weights.described(lambda: KarrasUNet(**settings))
    except InputError as error:
        raise InputError(f"{source or path}: {error}") from error
    called = _called(network)
    mine = {called.get(name, name): tensor for name, tensor in state.items() if not _is_left_out(name)}
    weights.fit(network, mine, path, called={ours: theirs for theirs, ours in called.items()})
    widths = ",".join(map(str, settings["widths"]))
    return Loaded(
        Denoiser(network, data),
        schedule,
        predicts="x0",
        shape=shape,
        name=str(path.absolute()),
        sha256=weights.hash_of(path, settings={**network.config, "sigma_data": data, "weights": which}),
        details={
            "architecture": network.config,
            "found": f"k-diffusion checkpoint, image_v1 ({widths}), {components.size(network)}",
            "weights": which,
            "assumed": [],
        },
    )


def _sidecar(path: Path) -> tuple[dict[str, Any] | None, Any, Path | None]:
    """Return the configuration beside a file if there is one, the choice of weights, and the configuration's file."""
    place = beside.place(path)
    if not os.path.lexists(place):
        return None, None, None
    found = json_files.read(place)
    if "model" in found:
        return found, None, place
    said = beside.read(path, ("weights",))
    if set(said) - {"weights"}:
        raise InputError(f"{place}: the configuration of k-diffusion says all but weights: leave out {min(said)}")
    if said.get("weights") not in ("ema", "raw"):
        raise InputError(f"{place}: weights must be ema or raw, not {said.get('weights')!r:.50}")
    return None, said["weights"], None


def _held(path: Path, wanted: str | None) -> tuple[str, dict[str, Tensor], Any]:
    """Return which weights are taken, these weights by k-diffusion's names, and the configuration in the file."""
    held = weights.read(path)
    if weights.is_state(held):
        if wanted is not None:
            raise InputError(f'{path} holds one set of weights: leave "weights" out of {beside.place(path)}')
        return "as saved", _unwrapped(held), _metadata(path)
    which = wanted or ("ema" if isinstance(held, Mapping) and "model_ema" in held else "raw")
    state: Any = held.get({"ema": "model_ema", "raw": "model"}[which]) if isinstance(held, Mapping) else None
    if not weights.is_state(state):
        raise InputError(f"{path} does not hold {which} weights as k-diffusion's train.py writes them: copy it again")
    return which, _unwrapped(state), held.get("config")


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}


def _metadata(path: Path) -> Any:
    """Return the configuration in the metadata of a safetensors file; None if it has none."""
    if path.suffix.lower() != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("config")
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} holds a configuration that is not JSON ({weights.line(error)}): copy it again"
        ) from error


def _is_left_out(name: str) -> bool:
    """Whether a tensor is not needed: the filters, which are the same in all networks, and what is told of none."""
    return name.endswith(".kernel") or name == "mapping_cond.weight"


def _settings(config: Any, tensors: int) -> tuple[dict[str, Any], tuple[float, float, float], tuple[int, int, int]]:
    """Return the arguments of `KarrasUNet`, σ of the data with the range of noise levels, and the shape of images."""
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping):
        raise InputError("the configuration has no settings of a model: copy it again")
    if (kind := model.get("type")) != "image_v1":
        raise InputError(
            f"this is a network of type {kind!r:.50}, and of k-diffusion's networks image_v1 is read: export another "
            "one as a program (torch.export), with a sidecar"
        )
    for key in ("unet_cond_dim", "cross_cond_dim", "mapping_cond_dim", "skip_stages"):
        if model.get(key):
            raise InputError(f"networks with {key} are not read, because what they are told is not in the file")

    def number(key: str, value: Any, whole: bool = True) -> Any:
        good = type(value) is int or (not whole and type(value) is float)
        if not good or not 0 < value < _ABOVE:
            raise InputError(f"{key} must be {'a whole number' if whole else 'a number'} above 0, not {value!r:.50}")
        return value

    def row(key: str) -> list[int]:
        value = model.get(key)
        if not isinstance(value, list) or not 0 < len(value) < 20:
            raise InputError(f"{key} must be a list with a number for each level, not {value!r:.50}")
        return [number(key, each) for each in value]

    attention, variance = model.get("self_attn_depths"), model.get("has_variance", False)
    if not isinstance(attention, list) or not all(isinstance(each, bool) for each in attention):
        raise InputError(f"self_attn_depths must be a list of true and false, not {attention!r:.50}")
    if not isinstance(variance, bool):
        raise InputError(f"has_variance must be true or false, not {variance!r:.50}")
    depths, widths, sides = row("depths"), row("channels"), row("input_size")
    channels, patch = (
        number("input_channels", model.get("input_channels")),
        number("patch_size", model.get("patch_size", 1)),
    )
    if sum(depths) > tensors:
        raise InputError(f"it asks for {sum(depths)} blocks, but the file has only {tensors} tensors")
    multiple = patch * 2 ** (len(depths) - 1)
    if len(sides) != 2 or any(side % multiple for side in sides):
        raise InputError(f"input_size must be [height, width], both divisible by {multiple}, not {sides}")
    defaults = {"sigma_data": 1.0, "sigma_min": None, "sigma_max": None}
    sigmas = [float(number(key, model.get(key, usual), whole=False)) for key, usual in defaults.items()]
    features = number("mapping_out", model.get("mapping_out"))
    settings = {"channels": channels, "widths": widths, "depths": depths, "attention": attention, "features": features}
    return {**settings, "patch": patch, "variance": variance}, (sigmas[0], sigmas[1], sigmas[2]), (channels, *sides)


def _called(network: KarrasUNet) -> dict[str, str]:
    """Return our name of each tensor by k-diffusion's."""
    named = {"timestep_embed.weight": "frequencies"}
    pairs = [(theirs, ours) for ours, theirs in _WHOLE.items()]
    for side, theirs, first in (("down", "d_blocks", 1), ("up", "u_blocks", 0)):
        for number, level in enumerate(getattr(network, side)):
            stride = 2 if len(level.attends) else 1
            for block in range(len(level.blocks)):
                place = f"u_net.{theirs}.{number}"
                at = first + stride * block
                pairs += [
                    (f"{place}.{at}.{its}", f"{side}.{number}.blocks.{block}.{ours}") for ours, its in _RESIDUAL.items()
                ]
                pairs += [
                    (f"{place}.{at + 1}.{its}", f"{side}.{number}.attends.{block}.{ours}")
                    for ours, its in _ATTENTION.items()
                    if stride == 2
                ]
    return named | {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in pairs for kind in ("weight", "bias")}
