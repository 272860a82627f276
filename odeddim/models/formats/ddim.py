"""DDIM's checkpoints, and DDPM's own weights in the same names: what its experiments were made with.

Files are state dicts of `Model` of github.com/ermongroup/ddim, as github.com/pesser/pytorch_diffusion publishes them,
or what its training writes: [model, optimizer, epoch, step, EMA], the model's names behind "module.". They hold no
settings: those of the network are read from names and shapes, the size of its images from where it attends (all of
DDIM's configurations do at 16×16), and NAME.json (`odeddim.models.sidecar`) says what else differs from the paper's:

    {"weights": "raw"}                            the weights themselves, where the EMA is there too
    {"shape": [3, 64, 64]}                        of a network that attends elsewhere, or nowhere
    {"schedule": {"name": "cosine", "T": 4000}}   other noise levels than DDPM's
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
GROUPS = 32  # of every norm in DDIM's code, however narrow
PARALLEL = "module."  # what DataParallel puts before every name
# A name of no other software's network, as pickles and safetensors write it: with its length or a quote before it.
_MARK = re.compile(rb'(?:"|X....|\x8c.)(?:module\.)?temb\.dense\.0\.weight', re.DOTALL)
_BEGINNING = 1 << 22  # bytes, in which torch and safetensors write all names


def matches(path: Path) -> bool:
    """Whether the names in this file are those of DDIM's network; odeddim's own weights, too, have them."""
    if path.suffix.lower() not in weights.SUFFIXES or path.name == native.WEIGHTS:
        return False
    try:
        with path.open("rb") as file:
            return _MARK.search(file.read(_BEGINNING)) is not None
    except OSError:
        return False


def read(path: Path) -> VectorField:
    """The network of such a file, with its EMA weights if it has them. Raises InputError for what it cannot use."""
    said = beside.read(path, ("weights",))
    for key in ("classes", "null"):
        if key in said:
            raise InputError(f"{beside.place(path)}: DDIM's network has no classes: leave {key} out")
    which, state = _chosen(weights.read(path), said.get("weights"), path)
    shape, settings = architecture(state, path, said.get("shape"))
    try:
        unet = weights.described(lambda: UNet(**settings))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    weights.fit(unet, state, path, spare=("logvar",))
    variances = settings["out_channels"] == 2 * settings["in_channels"]
    assumed = [] if "schedule" in said else ["DDPM's noise levels, β linear from 1e-4 to 0.02 in 1000"]
    assumed += [] if "predicts" in said else ["predicts ε"]
    assumed += [] if "shape" in said else [f"attends at {ATTENDS}×{ATTENDS}, so images of {shape[1]}×{shape[2]}"]
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
    """The settings of the `UNet` whose weights these are, from names and shapes.

    Args:
        state: the weights by name.
        path: of their file, for messages.
        shape: (C, H, W) of the images, if it is known. Default: such that the network attends at 16×16.

    Returns:
        (C, H, W) of the images, and the settings.

    Raises:
        InputError: for weights of another network, and where the shape is needed.
    """
    found = [re.match(r"down\.(\d{1,3})\.(block|attn)\.(\d{1,3})\.", name) for name in state]
    places = {(int(one[1]), one[2], int(one[3])) for one in found if one}
    levels = 1 + max((level for level, _, _ in places), default=0)
    if len(places) < levels:  # fewer tensors than levels, which would be made for nothing
        raise InputError(f"{path} misses levels of DDIM's U-Net that its names mention: is it the right file?")
    outer = [_size(state, f"down.{level}.block.0.conv2.weight", 0, path) for level in range(levels)]
    channels, in_channels = (_size(state, "conv_in.weight", side, path) for side in (0, 1))
    out_channels = _size(state, "conv_out.weight", 0, path)
    if out_channels not in (in_channels, 2 * in_channels):
        raise InputError(
            f"{path} gives {out_channels} channels for images of {in_channels}, neither ε nor ε and "
            "variances: is it the right file?"
        )
    if any(width % channels for width in outer):
        raise InputError(
            f"{path} is not DDIM's U-Net, for its widths {outer} are no multiples of {channels}: is it the right file?"
        )
    attends = sorted({level for level, kind, _ in places if kind == "attn"})
    if shape is None:
        if len(attends) != 1:
            where = f"at {len(attends)} levels" if attends else "nowhere"
            raise InputError(
                f"{path} attends {where}, which does not tell the size of its images: say it in {beside.place(path)} "
                f'as {{"shape": [{in_channels}, HEIGHT, WIDTH]}}'
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
    """Which weights are taken ("ema", "raw" or "as saved"), and these weights by the names of the network."""
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
            raise InputError(f'{path} holds one set of weights: leave "weights" out of {beside.place(path)}')
        which, state = "as saved", held
    else:
        raise InputError(
            f"{path} is neither a state dict nor a list that begins with one, as DDIM's training writes: "
            "save its state dict"
        )
    return which, {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}


def _size(state: Mapping[str, Tensor], name: str, side: int, path: Path) -> int:
    """One side of a convolution's weights."""
    if name not in state or state[name].ndim != 4 or not state[name].numel():
        raise InputError(f"{path} has no convolution {name}, which DDIM's U-Net has: is it the right file?")
    return state[name].shape[side]
