"""diffusers' pixel models: a UNet2DModel in its own folder or in that of a pipeline (github.com/huggingface/diffusers).

    model_index.json  unet/  scheduler/           a pipeline, such as DDPMPipeline or DDIMPipeline
    config.json  scheduler_config.json, weights   everything in one folder, as in the first published models
    unet/                                         the network's own folder, with scheduler/ beside it

If there is a folder unet_ema/ beside unet/, its weights are used, because they are better. The scheduler's file states
the schedule, the prediction and the labels (`odeddim.ode.scheduler_settings`). A file odeddim.json in the folder can
state what the folder does not, with the keys of `odeddim.models.sidecar`: {"schedule": ..., "predicts": ...} if there
is no scheduler, {"shape": [3, 32, 32]}, or {"null": 10} for the class that stands for no class.

If the settings of the network are those of DDPM's network, it becomes the `UNet` of DDIM's checkpoints, which needs no
other package. diffusers builds all other networks. Both kinds take real-valued labels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from odeddim.models import components, json_files, schedulers, weights
from odeddim.models import sidecar as beside
from odeddim.models.components import CONFIG
from odeddim.models.guarded import Loaded
from odeddim.models.networks.unet import UNet
from odeddim.models.schedulers import Posed
from odeddim.ode.adapted import Adapted
from odeddim.ode.conditions import Classes, words_of
from odeddim.ode.field import VectorField
from odeddim.types import InputError

INDEX, UNET, EMA = "model_index.json", "unet", "unet_ema"
CLASS = "UNet2DModel"
SAID = "odeddim.json"
MOST = 64  # the most levels, and layers in a level: a foreign config.json must not fill the memory
_CODECS = ("vae", "vqvae")

_OWN = {
    "_class_name": CLASS,
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_scale_factor": 1,
    "time_embedding_type": "positional",
}
"""The settings of DDPM's network, which is the class `UNet`."""

_OWN_LATER = {
    "add_attention": True,
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_type": "UNetMidBlock2D",
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "upsample_type": "conv",
}
"""Further settings of DDPM's network, which are diffusers' defaults. Older files do not have these keys."""

_BUILT_FROM = (
    *("block_out_channels", "down_block_types", "dropout", "in_channels", "layers_per_block", "norm_eps"),
    *("norm_num_groups", "out_channels", "sample_size", "up_block_types"),
)
_OF_EMA = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
"""The keys that diffusers' training adds to the network's settings in the config of unet_ema/."""

_THEIRS = (
    (r"^temb\.dense\.0", "time_embedding.linear_1"),
    (r"^temb\.dense\.1", "time_embedding.linear_2"),
    (r"^norm_out", "conv_norm_out"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^(down|up)\.(\d+)\.", r"\1_blocks.\2."),
    (r"\.block\.(\d+)", r".resnets.\1"),
    (r"\.attn\.(\d+)", r".attentions.\1"),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"\.([qkv])\.", r".to_\1."),
    (r"\.proj_out\.", ".to_out.0."),
    (r"\.temb_proj\.", ".time_emb_proj."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
"""Patterns of the names in `UNet` -> diffusers' names. diffusers counts the levels on the way up from the coarsest."""


def matches(path: Path) -> bool:
    """Return whether a path is a folder with a UNet2DModel for pixels, or the model_index.json or config.json in it."""
    folder = _folder(path)
    index = json_files.glance(folder / INDEX)
    if any(f'"{codec}"' in index for codec in _CODECS):
        return False
    said = f'"{CLASS}"'
    return said in index or any(
        said in json_files.glance(where / CONFIG) for where in (folder, folder / UNET, folder / EMA)
    )


def parts(folder: Path) -> list[str]:
    """The part whose weights `read` reads, "" being the folder itself."""
    return ["" if (where := _where(folder)) == folder else where.name]


def read(path: Path) -> VectorField:
    """Read the model of a folder.

    Args:
        path: The folder, or the model_index.json or config.json in it.

    Returns:
        The model.

    Raises:
        InputError: If a component is missing, damaged or unknown, or if settings contradict each other.
    """
    folder = _folder(path)
    if os.path.lexists(folder / INDEX):
        components.config_of(folder, INDEX)  # a damaged file may have named other components
    where = _where(folder)
    config = components.config_of(where)
    if config.get("_class_name") != CLASS:
        raise InputError(f"{where / CONFIG} describes a {config.get('_class_name')!r:.60}, not a {CLASS}")
    if any((where.parent / codec).is_dir() for codec in _CODECS):
        raise InputError(
            f"{where} is the network of a latent model: give the folder of the whole pipeline, {where.parent}"
        )
    if not _within(config.get("layers_per_block", 2)) or not _within(config.get("block_out_channels", [])):
        raise InputError(f"{where / CONFIG} asks for more than {MOST} layers or levels: copy it again")
    said = beside.read(folder / SAID)
    posed = _posed(folder, where, said)
    shape = _shape(config, where, said, folder)
    components.check_sides(config, shape, where)
    variances = _variances(config, posed, where)
    conditions = _classes(config, where, said, folder)
    settings = _own(config, shape)
    network: Any = _made(config, where) if settings is None else _converted(settings, where)
    by = f"{CLASS} of diffusers" if settings is None else f"{CLASS}, {network.words}"
    left = ", its variances left out" if variances else ""
    return Loaded(
        Adapted(network, variances=variances) if settings is None or variances else network,
        posed.schedule,
        predicts=posed.predicts,
        time=posed.time,
        shape=shape,
        name=str(folder.absolute()),
        sha256=weights.hash_of_networks(
            network,
            settings=(components.changed_settings(network) if settings is None else network.config)
            | {"told": words_of(conditions)},
        ),
        details={
            "architecture": components.settings_of(config) if settings is None else network.config,
            "found": f"{by}, {components.size(network)}{left}, {posed.found}",
            "weights": "ema" if where.name == EMA else "as saved",
            "assumed": posed.assumed,
        },
        conditions=conditions,
    )


def _within(value: Any) -> bool:
    """Return whether a number of layers, or the length of a list of them, is at most `MOST`."""
    return not (isinstance(value, int) and value > MOST) and not (isinstance(value, list) and len(value) > MOST)


def _where(folder: Path) -> Path:
    """Where the network lies."""
    return next((one for one in (folder / EMA, folder / UNET) if (one / CONFIG).is_file()), folder)


def _folder(path: Path) -> Path:
    return path.parent if path.name in (INDEX, CONFIG) else path


def _posed(folder: Path, where: Path, said: Mapping[str, Any]) -> Posed:
    """Return the network's conventions from the scheduler's file, or from odeddim.json if there is no such file."""
    places = (where, folder, folder / "scheduler", where.parent / "scheduler", folder.parent / "scheduler")
    found = next((place / schedulers.NAME for place in places if (place / schedulers.NAME).is_file()), None)
    again = [key for key in ("schedule", "predicts", "time") if key in said]
    if found is not None:
        if again:
            raise InputError(f"{folder / SAID} and {found} both state {again[0]}: leave it out of {SAID}")
        return schedulers.read(found)
    if "schedule" not in said or "predicts" not in said:
        raise InputError(
            f"{folder} has no {schedulers.NAME}, so the schedule and the prediction of the network are unknown: add "
            f'that file, or {SAID} with the values of the model, such as {{"schedule": {{"name": "linear"}}, '
            '"predicts": "eps"}'
        )
    return Posed(said["schedule"], said["predicts"], said.get("time", "index"), f"schedule of {SAID}")


def _shape(config: Mapping[str, Any], where: Path, said: Mapping[str, Any], folder: Path) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the images."""
    channels, sides = config.get("in_channels", 3), config.get("sample_size")
    if sides is None and "shape" in said:
        shape = said["shape"]
        if len(shape) != 3 or shape[0] != channels:
            raise InputError(f"{folder / SAID}: shape must be [{channels}, HEIGHT, WIDTH], not {list(shape)}")
        return channels, shape[1], shape[2]
    if "shape" in said:
        raise InputError(f"{folder / SAID} and {where / CONFIG} both state the shape: leave it out of {SAID}")
    sides = sides if isinstance(sides, list) else [sides, sides]
    if len(sides) != 2 or not all(type(one) is int and 0 < one < 1 << 16 for one in (channels, *sides)):
        raise InputError(
            f"{where / CONFIG} does not give the size of the images (sample_size is "
            f"{config.get('sample_size')!r:.50}): "
            f'add {folder / SAID} with {{"shape": [{channels!r:.20}, HEIGHT, WIDTH]}}'
        )
    return channels, sides[0], sides[1]


def _variances(config: Mapping[str, Any], posed: Posed, where: Path) -> bool:
    """Return whether the network also predicts variances. Its channels and its scheduler must agree."""
    inner, outer = config.get("in_channels", 3), config.get("out_channels", 3)
    if outer not in (inner, 2 * inner):
        raise InputError(
            f"{where / CONFIG}: the network has {outer!r:.20} output channels for images of {inner} channels, but ε, "
            f"x0 or v has {inner}, and {2 * inner} with variances: copy it again"
        )
    learned: bool = outer == 2 * inner
    if posed.variances not in (None, learned):
        told = "learned" if posed.variances else "fixed"
        raise InputError(
            f"{where / CONFIG} and {schedulers.NAME} contradict each other: the network has {outer} output channels "
            f"for images of {inner} channels, but its variances are {told}"
        )
    return learned


def _classes(config: Mapping[str, Any], where: Path, said: Mapping[str, Any], folder: Path) -> Classes | None:
    kind, known = config.get("class_embed_type"), config.get("num_class_embeds")
    if kind not in (None, "timestep"):
        raise InputError(f"{where / CONFIG}: odeddim does not support class_embed_type {kind!r:.50}")
    if known is not None and type(known) is not int:
        raise InputError(f"{where / CONFIG}: num_class_embeds must be a whole number, not {known!r:.50}")
    count, null = said.get("classes", known if kind is None else None), said.get("null")
    if count is None:
        if kind is not None:
            raise InputError(
                f'{where / CONFIG} does not give the number of classes: add {folder / SAID} with {{"classes": N}}'
            )
        if null is not None:
            raise InputError(f"{folder / SAID}: the network takes no classes: leave out null")
        return None
    if kind is None and (known is None or not all(0 <= one < known for one in (count - 1, null or 0))):
        raise InputError(
            f"{folder / SAID} and {where / CONFIG} contradict each other: classes is {count} and null is {null}, but "
            f"num_class_embeds is {known}"
        )
    return Classes(count, null)


def _own(config: Mapping[str, Any], shape: tuple[int, int, int]) -> dict[str, Any] | None:
    """Return the settings of the `UNet` that equals this network; None if it is another kind of network."""
    known = {*_OWN, *_OWN_LATER, *_BUILT_FROM, *_OF_EMA}
    if any(key not in known and not key.startswith("_") for key in config):
        return None
    if any(config.get(key, ...) != value for key, value in _OWN.items()):
        return None
    if any(config.get(key, value) != value for key, value in _OWN_LATER.items()):
        return None
    try:
        widths, down, up = (list(config[key]) for key in ("block_out_channels", "down_block_types", "up_block_types"))
        multipliers = [width / widths[0] for width in widths]
        ours = (
            all(multiplier.is_integer() for multiplier in multipliers)
            and len(down) == len(widths)
            and {*down} <= {"DownBlock2D", "AttnDownBlock2D"}
            and up == [kind.replace("Down", "Up") for kind in reversed(down)]
            and not any(side % 2 ** (len(widths) - 1) for side in shape[1:])
        )
        settings = {
            "in_channels": shape[0],
            "out_channels": config["out_channels"],
            "image_size": shape[1],
            "channels": widths[0],
            "multipliers": [int(multiplier) for multiplier in multipliers],
            "blocks": config["layers_per_block"],
            "attention": [shape[1] >> level for level, kind in enumerate(down) if kind.startswith("Attn")],
            "groups": config["norm_num_groups"],
            "eps": config["norm_eps"],
        }
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError):
        return None  # diffusers has defaults for missing settings, and messages for wrong ones
    return settings if ours and settings["groups"] is not None else None


def _made(config: Mapping[str, Any], where: Path) -> nn.Module:
    """Build the network with diffusers."""
    kind = config.get("time_embedding_type", "positional")
    if kind != "positional":
        raise InputError(f"{where / CONFIG}: odeddim does not support time_embedding_type {kind!r:.50}")
    make = components.library("diffusers").UNet2DModel.from_config
    return components.made(lambda: make(config), where)


def _converted(settings: Mapping[str, Any], where: Path) -> UNet:
    """Build a `UNet`, and give it diffusers' weights."""
    state, place, owner = components.weights_of(where)
    levels = len(settings["multipliers"])
    try:
        unet = weights.described(lambda: UNet(**settings))
    except InputError as error:
        raise InputError(f"{where / CONFIG}: {error}") from error
    wanted = unet.state_dict()
    theirs = {name: _theirs(name, levels) for name in wanted}
    ours = {its: name for name, its in theirs.items()} | {_once(its): name for name, its in theirs.items()}
    called = {ours.get(its, its): its for its in state}
    found = {name: state[its] for name, its in called.items()}
    if lacks := [its for name, its in theirs.items() if name not in found]:
        raise InputError(f"{place} does not match {where / CONFIG} (missing {weights.some(lacks)}): copy both again")
    for name, tensor in wanted.items():
        if tensor.ndim == 4 and found[name].ndim == 2:  # the linear layers of attention are 1×1 convolutions in `UNet`
            found[name] = found[name][:, :, None, None]
    weights.fit(unet, found, place, called=called, shared=owner is not None)
    return unet


def _theirs(name: str, levels: int) -> str:
    """Return diffusers' name of a parameter of `UNet`."""
    for pattern, called in _THEIRS:
        name = re.sub(pattern, called, name)
    return re.sub(r"^up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name)


def _once(name: str) -> str:
    """Return the name that a parameter had in diffusers before version 0.15."""
    for now, once in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        name = name.replace(now, once)
    return name
