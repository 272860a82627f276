"""Checkpoints of guided-diffusion and improved-diffusion (github.com/openai): state dicts of their U-Net in a .pt file.

The weights' names and shapes show the widths, the depth, the attention, the classes and whether variances are learned.
The sidecar, NAME.json for NAME.pt, states the rest, under the names of guided-diffusion's flags or of odeddim's keys:

    {"image_size": 64, "num_head_channels": 64, "use_new_attention_order": true, "noise_schedule": "cosine",
     "diffusion_steps": 1000, "predict_xstart": false, "rescale_timesteps": false}

The checkpoints that OpenAI published need no sidecar: their flags, from the two READMEs, are known by the file's name.
The sidecar may also hold all other flags, which must agree with the weights. improved-diffusion has no flag
use_new_attention_order, and its attention has the old order. This order is assumed if nothing indicates
guided-diffusion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from odeddim.models import components, weights
from odeddim.models import sidecar as beside
from odeddim.models.guarded import Loaded
from odeddim.models.networks.adm import ADM, Resampling
from odeddim.models.published import PUBLISHED
from odeddim.ode.adapted import Adapted
from odeddim.ode.conditions import Classes, words_of
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError, pick

_NAMES = tuple(re.compile(rb"(?<![\w.])" + name) for name in (rb"time_embed\.0\.weight", rb"input_blocks\.0\.0\."))

_NEEDED = {
    "image_size": ("shape", 64),
    "num_heads": ("num_head_channels", 4),
    "use_new_attention_order": (None, False),
    "noise_schedule": ("schedule", "linear"),
    "diffusion_steps": ("schedule", 1000),
    "predict_xstart": ("predicts", False),
    "rescale_timesteps": ("time", False),
}
"""The flags that the weights do not show: each with odeddim's key for the same setting, and an example."""

_KINDS: dict[str, type] = {
    "image_size": int,
    "num_heads": int,
    "num_head_channels": int,
    "num_heads_upsample": int,
    "use_new_attention_order": bool,
    "noise_schedule": str,
    "diffusion_steps": int,
    "predict_xstart": bool,
    "rescale_timesteps": bool,
    # The weights show these flags too.
    "num_channels": int,
    "num_res_blocks": int,
    "channel_mult": str,
    "attention_resolutions": str,
    "class_cond": bool,
    "learn_sigma": bool,
    "use_scale_shift_norm": bool,
    "resblock_updown": bool,
}
_WORDS = {int: "a whole number", bool: "true or false", str: "a word"}
_OF_TRAINING = (
    "dropout",
    "sigma_small",
    "timestep_respacing",
    "use_checkpoint",
    "use_fp16",
    "use_kl",
    "rescale_learned_sigmas",
)
"""Flags that have no effect here. Respacing chooses nodes; in odeddim, `grid` and `steps` do."""
_OF_GUIDED = ("num_head_channels", "resblock_updown", "channel_mult", "use_new_attention_order")
"""Flags that improved-diffusion does not have."""


def matches(path: Path) -> bool:
    """Return whether a weights file holds the names of this U-Net. Nothing is unpickled."""
    if path.suffix.lower() not in weights.SUFFIXES:
        return False
    head = weights.names_in(path)
    return all(name.search(head) for name in _NAMES)


def read(path: Path) -> VectorField:
    """Read a checkpoint of guided-diffusion or improved-diffusion.

    Args:
        path: The checkpoint.

    Returns:
        The model.

    Raises:
        InputError: If the checkpoint is damaged or of another kind, if flags are missing, or if they contradict the
            weights.
    """
    state = weights.read(path)
    if not weights.is_state(state):
        raise InputError(
            f"{path} is not a state dict of guided-diffusion's U-Net: save the model's state_dict by itself"
        )
    read_off = architecture(state, path)
    flags, published = _flags(path, read_off)
    try:
        schedule, predicts, time, time_scale = _diffusion(flags)
        shape = _shape(flags, read_off)
        _check(flags, read_off, shape[1])
        conditions = _classes(flags, read_off)
        network = weights.described(lambda: ADM(**read_off, **_heads(flags), time_scale=time_scale))
    except InputError as error:
        source = f"{path}, with the flags of the published checkpoint of this name" if published else beside.place(path)
        raise InputError(f"{source}: {error}") from error
    weights.fit(network, state, path)
    times = ",".join(f"{width / read_off['channels']:g}" for width in read_off["widths"])
    found = f"guided-diffusion checkpoint, U-Net {read_off['channels']}×({times}), {components.size(network)}"
    return Loaded(
        Adapted(network, variances=_learns_variances(read_off)),
        schedule,
        predicts=predicts,
        time=time,
        shape=shape,
        name=str(path.absolute()),
        sha256=weights.hash_of(path, settings=network.config | {"told": words_of(conditions)}),
        details={
            "architecture": network.config,
            "found": found,
            "weights": "ema" if path.name.startswith("ema") else "as saved",
            "assumed": _assumed(path, flags, published),
        },
        conditions=conditions,
    )


# The settings that the weights show.


def architecture(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return the arguments of `ADM` that follow from names and shapes.

    Args:
        state: The weights by guided-diffusion's names.
        path: The file of the weights, for error messages.

    Returns:
        The arguments by name.

    Raises:
        InputError: If the weights are of another network.
    """
    if not any(name.startswith("output_blocks.") for name in state):
        raise InputError(
            f"{path} is a classifier (it has no output_blocks), not a diffusion model: give the diffusion model"
        )
    if any(".transformer_blocks." in name for name in state):
        raise InputError(
            f"{path} is a text-conditioned U-Net, not one of guided-diffusion: give the folder of its whole pipeline"
        )
    try:
        channels = state["time_embed.0.weight"].shape[1]
        in_channels, out_channels = state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"].shape[0]
        inputs = {int(name.split(".")[1]) for name in state if name.startswith("input_blocks.")}
        outputs = {int(name.split(".")[1]) for name in state if name.startswith("output_blocks.")}
        halvings, resampling = _halvings(state, inputs, outputs)
        levels = halvings + 1
        if levels > len(outputs):
            raise KeyError("input_blocks")
        stride = len(outputs) // levels  # the number of input_blocks in a level: residual blocks and the halving
        firsts = [f"input_blocks.{1 + stride * level}" for level in range(levels)]
        widths = [state[f"{first}.0.in_layers.2.weight"].shape[0] for first in firsts]
        told = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{path} is not a complete U-Net of guided-diffusion (missing {error}): copy it again"
        ) from error
    if in_channels == 6:
        raise InputError(
            f"{path} is an upsampler (3 of its 6 input channels are a small image), which cannot encode images: give "
            "another model"
        )
    if out_channels not in (in_channels, 2 * in_channels):
        raise InputError(
            f"{path} is not a diffusion model, because it takes {in_channels} channels and returns {out_channels}: "
            "check that it is the right file"
        )
    label_emb = state.get("label_emb.weight")
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "channels": channels,
        "widths": widths,
        "blocks": stride - 1,
        "attention": [level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in state],
        "scale_shift": told == 2 * widths[0],
        "resampling": resampling,
        "classes": None if label_emb is None else label_emb.shape[0],
    }


def _learns_variances(read_off: dict[str, Any]) -> bool:
    return bool(read_off["out_channels"] == 2 * read_off["in_channels"])


def _halvings(state: Mapping[str, Tensor], inputs: set[int], outputs: set[int]) -> tuple[int, Resampling]:
    """Return how often the image is halved, and how. Pooling has no weights, so it leaves gaps in the block numbers."""
    convolutions = sum(f"input_blocks.{i}.0.op.weight" in state for i in inputs)
    if convolutions:
        return convolutions, "convolution"
    blocks = sum(any(f"output_blocks.{i}.{place}.in_layers.2.weight" in state for place in (1, 2)) for i in outputs)
    return (blocks, "block") if blocks else (max(inputs) + 1 - len(inputs), "pooling")


# The settings in the sidecar.


def _flags(path: Path, read_off: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the flags of the sidecar or, without a sidecar, of a published checkpoint, and whether it is published."""
    file = beside.place(path)
    flags = beside.read(path, (*_KINDS, *_OF_TRAINING))
    if not flags and path.name in PUBLISHED:
        return PUBLISHED[path.name], True
    for key, value in flags.items():
        kind = _KINDS.get(key)
        if kind and type(value) is not kind:
            raise InputError(f"{file}: {key} must be {_WORDS[kind]}, not {value!r:.50}")
    guided = read_off["resampling"] == "block" or any(key in flags for key in _OF_GUIDED)
    if flags.get("num_head_channels") == -1:  # guided-diffusion's default: num_heads counts
        del flags["num_head_channels"]
    missing = {key: example for key, (other, example) in _NEEDED.items() if key not in flags and other not in flags}
    if "num_heads" in flags and not guided:
        del missing["use_new_attention_order"]
    if missing:
        raise InputError(
            f"{path} does not hold the settings {', '.join(missing)} of its network: write them into {file}, for "
            f"example {json.dumps(missing)} (num_head_channels in place of num_heads if it was trained with it)"
        )
    for key, (other, _) in _NEEDED.items():
        if key in flags and other in flags and key != "num_heads":
            raise InputError(f"{file}: {key} and {other} are the same setting: leave out one of them")
    return flags, False


def _assumed(path: Path, flags: dict[str, Any], published: bool) -> list[str]:
    """Return the settings that neither the weights nor the sidecar state, in words."""
    if published:
        return [f"the settings of the published {path.name}, because of its name"]
    return [] if "use_new_attention_order" in flags else ["use_new_attention_order false, as in improved-diffusion"]


def _diffusion(flags: dict[str, Any]) -> tuple[Schedule, str, str, float]:
    """Return the schedule, the prediction, the kind of label, and the factor that the network applies to the label."""
    schedule = flags.get("schedule")
    if schedule is None:
        name, T = pick(flags["noise_schedule"], ("linear", "cosine"), "noise_schedule"), flags["diffusion_steps"]
        scale = 1000 / max(T, 1)
        betas = {"beta_1": scale * 1e-4, "beta_T": scale * 0.02} if name == "linear" else {}
        schedule = Schedule.from_dict({"name": name, "T": T, **betas})
    predicts = flags.get("predicts") or ("x0" if flags["predict_xstart"] else "eps")
    return schedule, predicts, flags.get("time", "index"), 1000 / schedule.T if flags.get("rescale_timesteps") else 1.0


def _classes(flags: dict[str, Any], read_off: dict[str, Any]) -> Classes | None:
    count, null = read_off["classes"], flags.get("null")
    if null is not None and not 0 <= null < (count or 0):
        raise InputError(f"null must be one of the network's {count or 0} classes, not {null}")
    return None if count is None else Classes(count, null)


def _heads(flags: dict[str, Any]) -> dict[str, Any]:
    heads, width = flags.get("num_heads", 1), flags.get("num_head_channels")
    upwards = flags.get("num_heads_upsample", -1)
    up_heads = heads if upwards == -1 else upwards
    for key, value in (("num_heads", heads), ("num_heads_upsample", up_heads), ("num_head_channels", width)):
        if value is not None and value < 1:
            raise InputError(f"{key} must be above 0, not {value}")
    return {
        "heads": heads,
        "up_heads": up_heads,
        "head_channels": width,
        "heads_first": not flags.get("use_new_attention_order", False),
    }


def _shape(flags: dict[str, Any], read_off: dict[str, Any]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the images."""
    channels, factor = read_off["in_channels"], 2 ** (len(read_off["widths"]) - 1)
    shape = flags.get("shape") or (channels, flags["image_size"], flags["image_size"])
    if len(shape) != 3 or shape[0] != channels or any(size < 1 or size % factor for size in shape[1:]):
        has = "×".join(map(str, shape))
        raise InputError(
            f"images of {has} do not match the weights, which need {channels} channels and sizes that are divisible by "
            f"{factor}"
        )
    return channels, shape[1], shape[2]


def _check(flags: dict[str, Any], read_off: dict[str, Any], size: int) -> None:
    """Raise an InputError for the first flag that contradicts the weights."""
    widths, channels = read_off["widths"], read_off["channels"]
    sizes = [size // 2**level for level in range(len(widths))]
    attends = {sizes[level] for level in read_off["attention"]}
    facts = {
        "num_channels": channels,
        "num_res_blocks": read_off["blocks"],
        "class_cond": read_off["classes"] is not None,
        "classes": read_off["classes"],
        "learn_sigma": _learns_variances(read_off),
        "use_scale_shift_norm": read_off["scale_shift"],
        "resblock_updown": read_off["resampling"] == "block",
    }
    for key, fact in facts.items():
        if key in flags and flags[key] != fact:
            raise InputError(f"{key} is {flags[key]}, but the weights show {fact}")
    if flags.get("channel_mult") and _numbers(flags, "channel_mult") != [width / channels for width in widths]:
        by_weights = ",".join(f"{width / channels:g}" for width in widths)
        raise InputError(f"channel_mult is {flags['channel_mult']}, but the weights show {by_weights}")
    if flags.get("attention_resolutions"):
        said = {number for number in _numbers(flags, "attention_resolutions") if number in sizes}
        if said != attends:
            by_weights = ",".join(map(str, sorted(attends, reverse=True))) or "none"
            raise InputError(
                f"attention_resolutions is {flags['attention_resolutions']}, but the weights show {by_weights} for "
                f"images of {size} pixels"
            )


def _numbers(flags: dict[str, Any], key: str) -> list[float]:
    try:
        return [float(word) for word in flags[key].split(",")]
    except ValueError as error:
        raise InputError(f"{key} must be comma-separated numbers, not {flags[key]!r:.50}") from error
