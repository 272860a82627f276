"""Checkpoints of k-diffusion (github.com/crowsonkb/k-diffusion): its training's .pth, its converter's .safetensors.

Both hold the configuration that the network was trained with, the first also the averaged weights beside the raw ones.
For files without it, NAME.json beside NAME.pth is the configuration, as its `--config` takes it and as its script
config_from_inference.py writes it. NAME.json may also be {"weights": "raw"}, for the weights that are not averaged.

The network is F of EDM's preconditioning D(x, σ), and the configuration (`odeddim.models.k_diffusion_configs`) names
the range of noise levels. Augmentations are told to be none.
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

from odeddim.models import components, json_files, k_diffusion_configs, weights
from odeddim.models import sidecar as beside
from odeddim.models.guarded import Loaded
from odeddim.models.networks.karras_unet import KarrasUNet
from odeddim.models.networks.preconditioned import Denoiser
from odeddim.ode.conditions import words_of
from odeddim.ode.field import VectorField
from odeddim.types import InputError

_MARK = re.compile(rb"u_net\.d_blocks\.0\.|aug_in_proj\.weight|sigma_sample_density")
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


def matches(path: Path) -> bool:
    """Return whether a weights file holds a network of k-diffusion's, or its configuration. Nothing is unpickled."""
    return path.suffix.lower() in weights.SUFFIXES and _MARK.search(weights.names_in(path)) is not None


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
        said = k_diffusion_configs.described(config, len(state))
        network: Any = weights.described(said.make)
    except InputError as error:
        raise InputError(f"{source or path}: {error}") from error
    called = _called(network) if isinstance(network, KarrasUNet) else {}
    mine = {called.get(name, name): tensor for name, tensor in state.items() if not _is_left_out(name)}
    weights.fit(network, mine, path, called={ours: theirs for theirs, ours in called.items()})
    settings = network.config
    widths = settings["widths"] if "widths" in settings else [settings["width"]]
    told = {"told": words_of(said.classes)} if said.classes else {}
    classes = f", {said.classes.count} classes" if said.classes else ""
    return Loaded(
        Denoiser(network, said.sigma_data, said.classes.count + 1 if said.classes else 0),
        said.schedule,
        predicts="x0",
        shape=said.shape,
        name=str(path.absolute()),
        sha256=weights.hash_of(path, settings={**settings, "sigma_data": said.sigma_data, "weights": which, **told}),
        details={
            "architecture": settings,
            "found": f"k-diffusion checkpoint, {said.kind} ({','.join(map(str, widths))}){classes}, "
            f"{components.size(network)}",
            "weights": which,
            "assumed": [],
        },
        conditions=said.classes,
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
    return name.endswith(".kernel") or name in ("mapping_cond.weight", "aug_emb.weight")


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
