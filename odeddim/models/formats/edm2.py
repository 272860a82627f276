"""EDM2's networks as plain weights (Karras et al. 2024, arXiv 2312.02696; github.com/NVlabs/edm2), which run no code.

NVIDIA publishes pickles, which `odeddim.models.formats.edm` reads. The state dict of the network in one,

    torch.save(pickle.load(file)["ema"].state_dict(), "edm2-img64-s.pt")

or the same tensors as safetensors, show the images, the widths, the attention and the classes. What they do not show
is assumed to be as in the paper. The sidecar NAME.json (`odeddim.models.sidecar`) states what differs, for example

    {"sigma_data": 0.5, "head_channels": 64, "balance": 0.3}

Networks of 4 channels work on data of Stable Diffusion's autoencoder. {"autoencoder": "sd-vae-ft-mse"} names its
folder, from the sidecar's own: an AutoencoderKL of diffusers. EDM2 gives it images in [0, 1], and brings each channel
of its means z to data of mean 0 and standard deviation 0.5.

The state that EDM2's training keeps to go on (training-state-*.pt) holds several averages of the weights, each with the
relative width of its average: {"std": 0.1} chooses one, the first being taken otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from odeddim.models import components, weights
from odeddim.models import sidecar as beside
from odeddim.models.formats.edm import LATENT
from odeddim.models.guarded import Loaded
from odeddim.models.networks import autoencoder
from odeddim.models.networks.autoencoder import Autoencoder, Units
from odeddim.models.networks.edm2 import MagnitudeUNet
from odeddim.models.networks.preconditioned import Denoiser
from odeddim.ode.conditions import Classes, words_of
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

PAPER = {"sigma_data": 0.5, "head_channels": 64, "balance": 0.3}
"""The settings that the weights do not show, with the paper's values."""
UNITS = Units(0.5, shift=(5.81, 3.25, 0.12, -2.15), spread=(4.17, 4.62, 3.71, 3.28), from_zero=True)
"""The data of EDM2's latent models: the mean and the standard deviation that it assumes of each channel of z."""

_MARK = re.compile(rb"unet\.enc\.\d+x\d+_conv\.weight")
_PARTS = {
    "emb_gain": "gain",
    "conv_res0.weight": "first.weight",
    "emb_linear.weight": "told.weight",
    "conv_res1.weight": "second.weight",
    "conv_skip.weight": "shortcut.weight",
    "attn_qkv.weight": "qkv.weight",
    "attn_proj.weight": "out.weight",
}
_WHOLE = {
    "unet.out_gain": "gain",
    "unet.emb_fourier.freqs": "fourier.frequencies",
    "unet.emb_fourier.phases": "fourier.phases",
    "unet.emb_noise.weight": "noise.weight",
    "unet.emb_label.weight": "label.weight",
    "unet.out_conv.weight": "last.weight",
}


def matches(path: Path) -> bool:
    """Return whether a weights file holds the names of EDM2's network. Nothing is unpickled."""
    return path.suffix.lower() in weights.SUFFIXES and _MARK.search(weights.names_in(path)) is not None


def read(path: Path) -> VectorField:
    """Read the weights of a network of EDM2.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        InputError: If the file or its sidecar cannot be used.
    """
    said = beside.read(path, (*PAPER, "std", "autoencoder"))
    which, state = _chosen(weights.read(path), said.get("std"), path)
    size, config = _architecture(state, path)
    settings = {key: _number(said, key, path) for key in PAPER}
    try:
        network = weights.described(
            lambda: MagnitudeUNet(**config, head_channels=int(settings["head_channels"]), balance=settings["balance"])
        )
        shape = (config["channels"], size, size)
        _check(said, shape, config["classes"])
    except InputError as error:
        raise InputError(f"{path}, with {beside.place(path).name} beside it: {error}") from error
    codec, its_kind = _codec(said, shape, path)
    called = _called(size, config)
    mine = {called.get(name, name): tensor for name, tensor in state.items() if not name.startswith("logvar_")}
    weights.fit(network, mine, path, called={ours: theirs for theirs, ours in called.items()})
    assumed = [f"{key} {value:g}, as in the paper" for key, value in PAPER.items() if key not in said]
    conditions = Classes(config["classes"], said.get("null")) if config["classes"] else None
    classes = f", {config['classes']} classes" if config["classes"] else ""
    hashed = {**settings, "weights": which, "told": words_of(conditions), **({"codec": codec.sha256} if codec else {})}
    return Loaded(
        Denoiser(network, settings["sigma_data"], config["classes"]),
        said.get("schedule", Schedule.edm()),
        predicts="x0",
        shape=shape,
        name=str(path.absolute()),
        sha256=weights.hash_of(path, settings=hashed),
        details={
            "architecture": network.config,
            "found": f"EDM2 network, {'×'.join(map(str, shape))}{classes}, {components.size(network)}{its_kind}",
            "weights": which,
            "assumed": assumed + ([LATENT] if shape[0] == 4 and codec is None else []),
        },
        conditions=conditions,
        codec=codec,
    )


def _codec(said: Mapping[str, Any], shape: tuple[int, ...], path: Path) -> tuple[Autoencoder | None, str]:
    """Return the autoencoder that the sidecar names, and what it is, for the end of a list; None and "" for none."""
    folder = said.get("autoencoder")
    if folder is None:
        return None, ""
    file = beside.place(path)
    if not isinstance(folder, str) or not os.path.isdir(file.parent / folder):
        raise InputError(
            f"{file}: autoencoder must be the folder of a diffusers AutoencoderKL such as sd-vae-ft-mse, and "
            f"{folder!r:.80} is no folder: correct the path"
        )
    if shape[0] != len(UNITS.shift):
        raise InputError(
            f"{file}: the network takes images of {shape[0]} channels and no autoencoder's data: leave out autoencoder"
        )
    codec, kind, _ = autoencoder.read(file.parent / folder, shape, UNITS)
    return codec, f", {kind}"


def _chosen(held: Any, std: Any, path: Path) -> tuple[str, Mapping[str, Tensor]]:
    """Return which weights are used, and these weights by name."""
    if weights.is_state(held):
        if std is not None:
            raise InputError(f"{path} holds one set of weights: leave std out of {beside.place(path)}")
        return "as saved", held
    averages = held.get("ema") if isinstance(held, Mapping) else None
    if not isinstance(averages, Mapping):
        raise InputError(f"{path} is no state dict of EDM2's network: save the network's state_dict by itself")
    stds, states = averages.get("stds"), averages.get("emas")
    if not isinstance(stds, list) or not isinstance(states, list) or not states or len(stds) != len(states):
        raise InputError(f"{path} does not hold averaged weights as EDM2's training writes them: copy it again")
    wanted = stds[0] if std is None else std
    if wanted not in stds or not weights.is_state(states[stds.index(wanted)]):
        known = ", ".join(map(str, stds[:8]))
        raise InputError(
            f"{beside.place(path)}: std is one of {known}, the averages that {path} holds, not {wanted!r:.50}"
        )
    return f"ema {wanted}", states[stds.index(wanted)]


def _architecture(state: Mapping[str, Tensor], path: Path) -> tuple[int, dict[str, Any]]:
    """Return the size of the images, and the arguments of `MagnitudeUNet` that names and shapes show."""
    try:
        sides = {int(found[1]) for name in state if (found := re.match(r"unet\.enc\.(\d{1,5})x\1_conv\.weight$", name))}
        (size,) = sides
        blocks = {
            (int(found[1]), int(found[2]))
            for name in state
            if (found := re.match(r"unet\.enc\.(\d{1,5})x\1_block(\d{1,3})\.conv_res1\.weight$", name))
        }
        levels = sorted({side for side, _ in blocks}, reverse=True)
        if levels != [size >> level for level in range(len(levels))] or not levels:
            raise ValueError("the levels of the network")
        firsts = [f"unet.enc.{side}x{side}_block0" for side in levels]
        label = state.get("unet.emb_label.weight")
        return size, {
            "channels": state[f"unet.enc.{size}x{size}_conv.weight"].shape[1] - 1,
            "widths": [state[f"{first}.conv_res1.weight"].shape[0] for first in firsts],
            "blocks": sum(side == size for side, _ in blocks),
            "attention": [level for level, first in enumerate(firsts) if f"{first}.attn_qkv.weight" in state],
            "waves": state["unet.emb_fourier.freqs"].shape[0],
            "features": state["unet.emb_noise.weight"].shape[0],
            "classes": 0 if label is None else label.shape[1],
        }
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{path} is not a complete network of EDM2 (missing {error}): check that it is the right file"
        ) from error


def _called(size: int, config: Mapping[str, Any]) -> dict[str, str]:
    """Return our name of each tensor by EDM2's."""
    sides = [size >> level for level in range(len(config["widths"]))]
    down, up = [], []
    for level, side in enumerate(sides):
        down += [f"{side}x{side}_down"] if level else []
        down += [f"{side}x{side}_block{number}" for number in range(config["blocks"])]
    for level, side in reversed(list(enumerate(sides))):
        up += [f"{side}x{side}_up"] if level < len(sides) - 1 else []
        up += [f"{side}x{side}_block{number}" for number in range(config["blocks"] + 1)]
    middle = [f"{sides[-1]}x{sides[-1]}_in{number}" for number in (0, 1)]
    named = {f"unet.enc.{size}x{size}_conv.weight": "first.weight", **_WHOLE}
    for part, ours, blocks in (("enc", "down", down), ("dec", "middle", middle), ("dec", "up", up)):
        for number, block in enumerate(blocks):
            named |= {f"unet.{part}.{block}.{theirs}": f"{ours}.{number}.{its}" for theirs, its in _PARTS.items()}
    return named


def _number(said: Mapping[str, Any], key: str, path: Path) -> float:
    """Return a setting of the sidecar, or the paper's."""
    value = said.get(key, PAPER[key])
    whole = key == "head_channels"
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not good or not 0 < value < (1 if key == "balance" else 1e6):
        kind = "a whole number above 0" if whole else "a number between 0 and 1" if key == "balance" else "above 0"
        raise InputError(f"{beside.place(path)}: {key} must be {kind}, not {value!r:.50}")
    return float(value)


def _check(said: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> None:
    """Raise an InputError for a setting that contradicts the weights."""
    facts = {"shape": shape, "classes": classes, "predicts": "x0", "time": "sigma"}
    for key, fact in facts.items():
        if key in said and said[key] != fact:
            raise InputError(f"{key} is {said[key]}, but the weights show {fact}")
    if "null" in said and said["null"] > classes:
        raise InputError(f"null must be at most the number of classes, {classes}, not {said['null']}")
