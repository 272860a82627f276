"""Checkpoints of flow_matching's image example (Lipman et al. 2024, arXiv 2412.06264; facebookresearch/flow_matching).

A checkpoint-N.pth holds {"model": weights, "args": the arguments of its train.py, ...}. With `--use_ema` the weights
are those of the network and of its average, which is taken; {"weights": "raw"} in the sidecar NAME.json takes the
others. The arguments name the data set, and with it the settings of the network that its weights do not show. For other
networks the sidecar states them, under the names of models/model_configs.py:

    {"image_size": 64, "num_heads": 4, "num_head_channels": 64, "use_new_attention_order": true}

The network is guided-diffusion's U-Net. It answers the velocity x0 - ε at t, where t = 0 is the noise and t = 1 the
image. Its last class stands for none, so guidance w of its sampler is 1 + w here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from odeddim.models import components, weights
from odeddim.models import sidecar as beside
from odeddim.models.formats import guided
from odeddim.models.guarded import Loaded
from odeddim.models.networks.adm import ADM
from odeddim.ode.adapted import Adapted
from odeddim.ode.conditions import Classes, words_of
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError, pick

CONFIGS: dict[str, dict[str, Any]] = {
    "cifar10": {"image_size": 32, "num_heads": 1, "num_head_channels": -1, "use_new_attention_order": True},
    "imagenet": {"image_size": 64, "num_heads": 4, "num_head_channels": 64, "use_new_attention_order": True},
}
"""The settings of its networks that the weights do not show, by the data set."""

_SETTINGS = ("image_size", "num_heads", "num_head_channels", "use_new_attention_order")
_ARGS = re.compile(rb"argparse.{1,12}Namespace", re.DOTALL)
_NETWORK, _SHADOWS = re.compile(rb"time_embed\.0\.weight"), re.compile(rb"shadow_params\.0(?!\d)")
_MODEL, _SHADOW = "model.", "shadow_params."


def matches(path: Path) -> bool:
    """Return whether a weights file holds this U-Net with the arguments of a training or its average."""
    if path.suffix.lower() not in weights.SUFFIXES:
        return False
    head = weights.names_in(path)
    return _NETWORK.search(head) is not None and any(mark.search(head) for mark in (_ARGS, _SHADOWS))


def read(path: Path) -> VectorField:
    """Read a checkpoint of flow_matching's image example.

    Args:
        path: The checkpoint.

    Returns:
        The model, with the averaged weights if the file holds them and the sidecar does not choose the raw ones.

    Raises:
        InputError: If the file or its sidecar cannot be used, or if it is of discrete flow matching.
    """
    said = beside.read(path, ("weights", "dataset", *_SETTINGS))
    held = weights.read(path, safe=(argparse.Namespace,))
    args = _arguments(held, path)
    state, which = _chosen(held, said.get("weights"), path)
    read_off = guided.architecture(state, path)
    try:
        settings, assumed = _settings(said, args)
        shape = _shape(said, read_off, settings["image_size"])
        network = weights.described(lambda: ADM(**read_off, **_heads(settings)))
    except InputError as error:
        raise InputError(f"{path}, with {beside.place(path).name} beside it: {error}") from error
    weights.fit(network, state, path)
    conditions = None if read_off["classes"] is None else Classes(read_off["classes"] - 1, read_off["classes"] - 1)
    classes = "" if conditions is None else f", {read_off['classes'] - 1} classes"
    return Loaded(
        Adapted(network, variances=False),
        Schedule.rectified_flow(),
        predicts="flow-to-data",
        time="reversed",
        shape=shape,
        name=str(path.absolute()),
        sha256=weights.hash_of(path, settings={**network.config, "weights": which, "told": words_of(conditions)}),
        details={
            "architecture": network.config,
            "found": f"flow_matching checkpoint, {'×'.join(map(str, shape))}{classes}, {components.size(network)}",
            "weights": which,
            "assumed": assumed,
        },
        conditions=conditions,
    )


def _arguments(held: Any, path: Path) -> dict[str, Any]:
    """Return the arguments of the training that are in a file."""
    args = held.get("args") if isinstance(held, Mapping) else None
    found = vars(args) if isinstance(args, argparse.Namespace) else {}
    if found.get("discrete_flow_matching"):
        raise InputError(f"{path} is of discrete flow matching, which has no noise levels: give another model")
    return found


def _chosen(held: Any, wanted: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the weights by the network's names, and which they are: "ema", "raw" or "as saved"."""
    place = beside.place(path)
    if wanted not in (None, "ema", "raw"):
        raise InputError(f"{place}: weights must be ema or raw, not {wanted!r:.50}")
    whole: Any = held if weights.is_state(held) else held.get("model") if isinstance(held, Mapping) else None
    if not weights.is_state(whole):
        raise InputError(f"{path} holds no weights of flow_matching's network under 'model': copy it again")
    shadows = {name: tensor for name, tensor in whole.items() if name.startswith(_SHADOW)}
    if not shadows:
        if wanted is not None:
            raise InputError(f'{path} holds one set of weights: leave "weights" out of {place}')
        return dict(whole), "as saved"
    state = {name.removeprefix(_MODEL): tensor for name, tensor in whole.items() if name.startswith(_MODEL)}
    if wanted == "raw":
        return state, "raw"
    averages = [shadows.get(f"{_SHADOW}{number}") for number in range(len(state))]  # in the order of the network's
    if len(shadows) != len(state) or any(average is None for average in averages):
        raise InputError(f"{path} does not hold an average of each of its {len(state)} weights: copy it again")
    return {name: average for name, average in zip(state, averages, strict=True) if average is not None}, "ema"


def _settings(said: Mapping[str, Any], args: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of the network that its weights do not show, and what was assumed."""
    for key in ("schedule", "predicts", "time", "classes", "null"):
        if key in said:
            raise InputError(f"{key} is that of flow_matching's training: leave it out")
    name = said.get("dataset", args.get("dataset"))
    known: dict[str, Any] = {}
    if "dataset" in said or name in CONFIGS:
        known = CONFIGS[pick(str(name), CONFIGS, "data set of flow_matching's example")]
    settings = {**known, **{key: said[key] for key in _SETTINGS if key in said}}
    missing = [key for key in _SETTINGS if key not in settings]
    if missing:
        raise InputError(
            f"the file does not say {', '.join(missing)} of its network: write them, or the data set that it was "
            'trained on as {"dataset": "cifar10"}, into the sidecar'
        )
    for key in _SETTINGS[:3]:
        least = -1 if key == "num_head_channels" else 1
        if type(settings[key]) is not int or not least <= settings[key] < 10**5 or settings[key] == 0:
            raise InputError(f"{key} must be a whole number above 0, not {settings[key]!r:.50}")
    if not isinstance(settings["use_new_attention_order"], bool):
        order = settings["use_new_attention_order"]
        raise InputError(f"use_new_attention_order must be true or false, not {order!r:.50}")
    taken = [key for key in _SETTINGS if key not in said]
    return settings, [f"{', '.join(taken)} of the example's network for {name}"] if taken else []


def _heads(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of attention of `ADM`."""
    width = settings["num_head_channels"]
    return {
        "heads": settings["num_heads"],
        "up_heads": settings["num_heads"],
        "head_channels": None if width == -1 else width,
        "heads_first": not settings["use_new_attention_order"],
    }


def _shape(said: Mapping[str, Any], read_off: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """Return the shape (C, H, W) of the images."""
    channels, factor = read_off["in_channels"], 2 ** (len(read_off["widths"]) - 1)
    if (answers := read_off["out_channels"]) != channels:
        raise InputError(f"the network answers {answers} channels for {channels}, which is no velocity")
    shape: tuple[int, ...] = said.get("shape", (channels, size, size))
    if len(shape) != 3 or shape[0] != channels or any(side % factor for side in shape[1:]):
        raise InputError(f"images must have {channels} channels and sides divisible by {factor}, unlike {list(shape)}")
    return shape
