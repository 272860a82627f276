"""Checkpoints of guided-diffusion and improved-diffusion (github.com/openai): state dicts of their U-Net in a .pt file.

Widths, depth, attention, classes and learned variances can be read from names and shapes. The rest is said in a JSON
file beside the checkpoint, NAME.json for NAME.pt, in the names of guided-diffusion's own flags, or in odeddim's:

    {"image_size": 64, "num_head_channels": 64, "use_new_attention_order": true, "noise_schedule": "cosine",
     "diffusion_steps": 1000, "predict_xstart": false, "rescale_timesteps": false}

or, for the checkpoints that OpenAI published, known by the file's name, with the flags of the two READMEs. All other
flags may be in the file too and must agree with the weights. improved-diffusion has no use_new_attention_order: its
attention is the old order, which is assumed where nothing says that the network is guided-diffusion's.
"""

from __future__ import annotations

import json
import re
import zipfile
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
_HEAD = 1 << 20  # bytes of a file that hold its names, where it is no archive
_LARGEST_INDEX = 1 << 24  # bytes of an archive's list of names

_NEEDED = {
    "image_size": ("shape", 64),
    "num_heads": ("num_head_channels", 4),
    "use_new_attention_order": (None, False),
    "noise_schedule": ("schedule", "linear"),
    "diffusion_steps": ("schedule", 1000),
    "predict_xstart": ("predicts", False),
    "rescale_timesteps": ("time", False),
}
"""What the weights do not say: the key, another one that says the same, an example."""

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
    # What the weights say too.
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
"""Flags that change nothing here: respacing chooses nodes, and nodes are chosen by `grid` and `steps`."""
_OF_GUIDED = ("num_head_channels", "resblock_updown", "channel_mult", "use_new_attention_order")
"""Flags that improved-diffusion does not have."""


def matches(path: Path) -> bool:
    """Whether names of this U-Net stand where a weights file has its names; nothing is unpickled."""
    if path.suffix.lower() not in weights.SUFFIXES:
        return False
    head = _names_in(path)
    return all(name.search(head) for name in _NAMES)


def _names_in(path: Path) -> bytes:
    """The bytes of a file that hold the names of its tensors, whatever it is."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return file.read(_HEAD)
        with zipfile.ZipFile(path) as archive:
            index = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
            return archive.read(index) if index.file_size <= _LARGEST_INDEX else b""
    except Exception:  # of any file at all: another format may know what it is
        return b""


def read(path: Path) -> VectorField:
    """The model of a checkpoint, with what its name or the JSON file beside it says."""
    state = weights.read(path)
    if not weights.is_state(state):
        raise InputError(f"{path} is no state dict of guided-diffusion's U-Net: save the model's state_dict by itself")
    read_off = _architecture(state, path)
    flags, published = _flags(path, read_off)
    try:
        schedule, predicts, time, time_scale = _diffusion(flags)
        shape = _shape(flags, read_off)
        _check(flags, read_off, shape[1])
        conditions = _classes(flags, read_off)
        network = weights.described(lambda: ADM(**read_off, **_heads(flags), time_scale=time_scale))
    except InputError as error:
        source = f"{path}, taken for the published checkpoint of this name" if published else beside.place(path)
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


# What the weights say.


def _architecture(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The arguments of `ADM` that names and shapes tell."""
    if not any(name.startswith("output_blocks.") for name in state):
        raise InputError(
            f"{path} is a classifier (it has no output_blocks), not a diffusion model: give the model that goes with it"
        )
    if any(".transformer_blocks." in name for name in state):
        raise InputError(
            f"{path} is a text-conditioned U-Net, which guided-diffusion's is not: load its whole pipeline"
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
        stride = len(outputs) // levels  # of input_blocks from level to level: blocks, and what halves
        firsts = [f"input_blocks.{1 + stride * level}" for level in range(levels)]
        widths = [state[f"{first}.0.in_layers.2.weight"].shape[0] for first in firsts]
        told = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path} is no whole U-Net of guided-diffusion (missing {error}): copy it again") from error
    if in_channels == 6:
        raise InputError(f"{path} is an upsampler (it takes 6 channels, 3 of them a small image): it has no latents")
    if out_channels not in (in_channels, 2 * in_channels):
        raise InputError(
            f"{path} takes {in_channels} channels and gives {out_channels}, as no diffusion model does: "
            "is it the right file?"
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
    """How often the image is halved, and how; where pooling does it, it leaves gaps in the numbers of the blocks."""
    convolutions = sum(f"input_blocks.{i}.0.op.weight" in state for i in inputs)
    if convolutions:
        return convolutions, "convolution"
    blocks = sum(any(f"output_blocks.{i}.{place}.in_layers.2.weight" in state for place in (1, 2)) for i in outputs)
    return (blocks, "block") if blocks else (max(inputs) + 1 - len(inputs), "pooling")


# What is said beside them.


def _flags(path: Path, read_off: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Settings of the JSON file, or, if there is none, of a published checkpoint; and whether it was the latter."""
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
            f"{path} does not say {', '.join(missing)} of its network: write them into {file}, for example "
            f"{json.dumps(missing)} (num_head_channels instead of num_heads if it was trained so)"
        )
    for key, (other, _) in _NEEDED.items():
        if key in flags and other in flags and key != "num_heads":
            raise InputError(f"{file}: {key} and {other} say the same thing: leave one of them out")
    return flags, False


def _assumed(path: Path, flags: dict[str, Any], published: bool) -> list[str]:
    """What neither the weights nor the JSON file say."""
    if published:
        return [f"the settings of the published {path.name}, for its name"]
    return [] if "use_new_attention_order" in flags else ["use_new_attention_order false, as in improved-diffusion"]


def _diffusion(flags: dict[str, Any]) -> tuple[Schedule, str, str, float]:
    """The schedule, what is predicted, what the label is, and what the network multiplies it by."""
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
        raise InputError(f"null must be one of the {count or 0} classes of the weights, not {null}")
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
    """(C, H, W)."""
    channels, factor = read_off["in_channels"], 2 ** (len(read_off["widths"]) - 1)
    shape = flags.get("shape") or (channels, flags["image_size"], flags["image_size"])
    if len(shape) != 3 or shape[0] != channels or any(size < 1 or size % factor for size in shape[1:]):
        has = "×".join(map(str, shape))
        raise InputError(f"images of {has} do not match the weights ({channels} channels, sizes divisible by {factor})")
    return channels, shape[1], shape[2]


def _check(flags: dict[str, Any], read_off: dict[str, Any], size: int) -> None:
    """Raise an InputError for the first flag that says another thing than the weights."""
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
            raise InputError(f"{key} is {flags[key]}, but by its weights it is {fact}")
    if flags.get("channel_mult") and _numbers(flags, "channel_mult") != [width / channels for width in widths]:
        by_weights = ",".join(f"{width / channels:g}" for width in widths)
        raise InputError(f"channel_mult is {flags['channel_mult']}, but by its weights it is {by_weights}")
    if flags.get("attention_resolutions"):
        said = {number for number in _numbers(flags, "attention_resolutions") if number in sizes}
        if said != attends:
            by_weights = ",".join(map(str, sorted(attends, reverse=True))) or "none"
            raise InputError(
                f"attention_resolutions is {flags['attention_resolutions']}, but by its weights, for images of {size} "
                f"pixels, it is {by_weights}"
            )


def _numbers(flags: dict[str, Any], key: str) -> list[float]:
    try:
        return [float(word) for word in flags[key].split(",")]
    except ValueError as error:
        raise InputError(f"{key} must be numbers with commas between them, not {flags[key]!r:.50}") from error
