"""DDIM's checkpoints, and DDPM's own weights with the same names.

A file is a state dict of `Model` of github.com/ermongroup/ddim, as github.com/pesser/pytorch_diffusion publishes them,
or what DDIM's training writes: [model, optimizer, epoch, step, EMA], where "module." stands before each of the model's
names. The files hold no settings. The settings of the network follow from names and shapes. The size of the images
follows from the level with attention, which is at 16×16 in all of DDIM's configurations. The sidecar NAME.json
(`odeddim.models.sidecar`) states what differs from the paper:

    {"weights": "raw"}                            the raw weights, if the file also holds the EMA
    {"shape": [3, 64, 64]}                        the shape of images, for a network with attention elsewhere, or none
    {"schedule": {"name": "cosine", "T": 4000}}   noise levels other than DDPM's
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from odeddim.models import sidecar as beside
from odeddim.models import weights
from odeddim.models.components import size
from odeddim.models.formats import native
from odeddim.models.guarded import Loaded
from odeddim.models.networks.unet import UNet
from odeddim.ode.adapted import Adapted
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError, pick

ATTENDS = 16  # pixels
GROUPS = 32  # in every norm of DDIM's code, whatever the width
PARALLEL = "module."  # the prefix that DataParallel gives every name
# A name that only DDIM's network has, as pickles and safetensors write it: after its length or a quote.
_MARK = re.compile(rb'(?:"|X....|\x8c.)(?:module\.)?temb\.dense\.0\.weight', re.DOTALL)
_BEGINNING = 1 << 22  # bytes; torch and safetensors write all names within them


def matches(path: Path) -> bool:
    """Return whether the names in a file are those of DDIM's network. odeddim's own weights have them too."""
    if path.suffix.lower() not in weights.SUFFIXES or path.name == native.WEIGHTS:
        return False
    try:
        with path.open("rb") as file:
            return _MARK.search(file.read(_BEGINNING)) is not None
    except OSError:
        return False


def read(path: Path) -> VectorField:
    """Read a checkpoint of DDIM.

    Args:
        path: The checkpoint.

    Returns:
        The model, with the EMA weights if the file holds them and the sidecar does not choose the raw ones.

    Raises:
        InputError: If the file or its sidecar cannot be used.
    """
    said = beside.read(path, ("weights",))
    for key in ("classes", "null"):
        if key in said:
            raise InputError(f"{beside.place(path)}: DDIM's network takes no classes: leave out {key}")
    which, state = _chosen(weights.read(path), said.get("weights"), path)
    shape, settings = architecture(state, path, said.get("shape"))
    try:
        unet = weights.described(lambda: UNet(**settings))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    weights.fit(unet, state, path, spare=("logvar",))
    variances = settings["out_channels"] == 2 * settings["in_channels"]
    assumed = [] if "schedule" in said else ["DDPM's noise levels: β linear from 1e-4 to 0.02 in 1000 levels"]
    assumed += [] if "predicts" in said else ["predicts ε"]
    assumed += [] if "shape" in said else [f"attention at {ATTENDS}×{ATTENDS}, so images of {shape[1]}×{shape[2]}"]
    return Loaded(
        Adapted(unet, variances=True) if variances else unet,
        said.get("schedule", Schedule.linear()),
        predicts=said.get("predicts", "eps"),
        time=said.get("time"),
        shape=shape,
        name=str(path.absolute()),
        sha256=weights.hash_of(path, settings={**unet.config, "weights": which}),
        details={
            "architecture": unet.config,
            "found": f"DDIM checkpoint, {unet.words}, {size(unet)}" + (", its variances left out" if variances else ""),
            "weights": which,
            "assumed": assumed,
        },
    )


def architecture(
    state: Mapping[str, Tensor], path: Path, shape: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Derive the settings of a `UNet` from the names and shapes of its weights.

    Args:
        state: The weights by name.
        path: The file of the weights, for error messages.
        shape: The shape (C, H, W) of the images. By default, the shape that puts the attention at 16×16.

    Returns:
        The shape (C, H, W) of the images, and the settings.

    Raises:
        InputError: If the weights belong to another network, or if they do not show the shape and it is not given.
    """
    found = [re.match(r"down\.(\d{1,3})\.(block|attn)\.(\d{1,3})\.", name) for name in state]
    places = {(int(one[1]), one[2], int(one[3])) for one in found if one}
    levels = 1 + max((level for level, _, _ in places), default=0)
    if len(places) < levels:  # fewer tensors than levels: do not build the levels
        raise InputError(f"{path} lacks levels of DDIM's U-Net that its names mention: check that it is the right file")
    outer = [_size(state, f"down.{level}.block.0.conv2.weight", 0, path) for level in range(levels)]
    channels, in_channels = (_size(state, "conv_in.weight", side, path) for side in (0, 1))
    out_channels = _size(state, "conv_out.weight", 0, path)
    if out_channels not in (in_channels, 2 * in_channels):
        raise InputError(
            f"{path} is a network with {out_channels} output channels for images of {in_channels} channels, which is "
            "neither ε nor ε and variances: check that it is the right file"
        )
    if any(width % channels for width in outer):
        raise InputError(
            f"{path} is not DDIM's U-Net, because its widths {outer} are not multiples of {channels}: check that it is "
            "the right file"
        )
    attends = sorted({level for level, kind, _ in places if kind == "attn"})
    if shape is None:
        if len(attends) != 1:
            where = f"attention at {len(attends)} levels" if attends else "no attention"
            raise InputError(
                f"{path} has {where}, so the size of its images is unknown: give it in {beside.place(path)} as "
                f'{{"shape": [{in_channels}, HEIGHT, WIDTH]}}'
            )
        shape = (in_channels, ATTENDS << attends[0], ATTENDS << attends[0])
    factor = 2 ** (levels - 1)
    if len(shape) != 3 or shape[0] != in_channels or any(side % factor for side in shape[1:]):
        raise InputError(
            f"{beside.place(path)}: for this network shape must be [{in_channels}, HEIGHT, WIDTH], both divisible by "
            f"{factor}, not {list(shape)}"
        )
    return shape, {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "image_size": shape[1],
        "channels": channels,
        "multipliers": [width // channels for width in outer],
        "blocks": len({block for level, kind, block in places if level == 0 and kind == "block"}),
        "attention": [shape[1] >> level for level in attends],
        "groups": GROUPS,
        "convolves": levels == 1 or "down.0.downsample.conv.weight" in state,
    }


def _chosen(held: Any, wanted: Any, path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return which weights are used ("ema", "raw" or "as saved"), and these weights by the network's names."""
    if wanted is not None:
        try:
            pick(str(wanted), ("ema", "raw"), "choice of weights")
        except InputError as error:
            raise InputError(f"{beside.place(path)}: {error}") from error
    if isinstance(held, (list, tuple)) and held and weights.is_state(held[0]):
        ema = held[-1] if len(held) > 4 and weights.is_state(held[-1]) else None
        if wanted == "ema" and ema is None:
            raise InputError(f'{path} holds no EMA weights: leave "weights" out of {beside.place(path)}')
        which = "raw" if ema is None or wanted == "raw" else "ema"
        state = held[0] if ema is None or wanted == "raw" else ema
    elif weights.is_state(held):
        if wanted is not None:
            raise InputError(f'{path} holds only one set of weights: leave "weights" out of {beside.place(path)}')
        which, state = "as saved", held
    else:
        raise InputError(
            f"{path} holds neither a state dict nor a list that starts with one, as DDIM's training writes it: save "
            "the state dict"
        )
    return which, {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}


def _size(state: Mapping[str, Tensor], name: str, side: int, path: Path) -> int:
    """Return one side of the weights of a convolution."""
    if name not in state or state[name].ndim != 4 or not state[name].numel():
        raise InputError(f"{path} lacks the convolution {name} of DDIM's U-Net: check that it is the right file")
    return state[name].shape[side]
