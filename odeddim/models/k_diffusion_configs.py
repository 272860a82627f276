"""The configurations of k-diffusion (github.com/crowsonkb/k-diffusion): which network one describes, and its images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from odeddim.models.networks.hourglass import HourglassTransformer
from odeddim.models.networks.image_transformer import ImageTransformer
from odeddim.models.networks.karras_unet import KarrasUNet
from odeddim.ode.conditions import Classes
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

_ABOVE = 10**6  # above any width, depth or size


class Description(NamedTuple):
    """What a configuration says.

    Args:
        kind: The type of the network, as k-diffusion calls it.
        make: The function that builds the network.
        shape: The shape (C, H, W) of the images.
        sigma_data: The standard deviation of the data in EDM's preconditioning.
        schedule: The noise levels.
        classes: The classes; None if there are none.
    """

    kind: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    sigma_data: float
    schedule: Schedule
    classes: Classes | None


def described(config: Any, tensors: int) -> Description:
    """Read a configuration.

    Args:
        config: The configuration.
        tensors: The number of tensors in the file, which bounds the number of blocks.

    Returns:
        What it says.

    Raises:
        InputError: If it describes no network, or one of another type. The message continues the name of its file.
    """
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping):
        raise InputError("the configuration has no settings of a model: copy it again")
    if not isinstance(kind := model.get("type"), str) or kind not in _READ:
        raise InputError(
            f"this is a network of type {kind!r:.50}, and of k-diffusion's networks {', '.join(_READ)} are read: "
            "export another one as a program (torch.export), with a sidecar"
        )
    for key in ("unet_cond_dim", "cross_cond_dim", "mapping_cond_dim", "skip_stages"):
        if model.get(key):
            raise InputError(f"networks with {key} are not read, because what they are told is not in the file")
    channels, sides = _number(model, "input_channels"), _row(model, "input_size")
    classes = None if kind == "image_v1" else _classes(config.get("dataset"))
    rows = 0 if classes is None else classes.count + 1
    make, least = _READ[kind](model, channels, sides, rows, tensors)
    if len(sides) != 2 or sides[0] % least[0] or sides[1] % least[1]:
        wanted = " and ".join(map(str, dict.fromkeys(least)))
        raise InputError(f"input_size must be [height, width], divisible by {wanted}, not {sides}")
    data, low, high = (
        float(_number(model, key, usual, whole=False))
        for key, usual in (("sigma_data", 1.0), ("sigma_min", None), ("sigma_max", None))
    )
    schedule = Schedule.edm(sigma_min=low, sigma_max=high)
    return Description(kind, make, (channels, sides[0], sides[1]), data, schedule, classes)


def _checked(key: str, value: Any, whole: bool = True) -> Any:
    good = type(value) is int or (not whole and type(value) is float)
    if not good or not 0 < value < _ABOVE:
        raise InputError(f"{key} must be {'a whole number' if whole else 'a number'} above 0, not {value!r:.50}")
    return value


def _number(model: Mapping[str, Any], key: str, usual: Any = None, *, whole: bool = True) -> Any:
    return _checked(key, model.get(key, usual), whole)


def _row(model: Mapping[str, Any], key: str, usual: Sequence[int] | None = None) -> list[int]:
    value = model.get(key) or usual
    if not isinstance(value, list) or not 0 < len(value) < 20:
        raise InputError(f"{key} must be a list with a number for each level or side, not {value!r:.50}")
    return [_checked(key, each) for each in value]


def _bound(blocks: int, tensors: int) -> None:
    if blocks > tensors:
        raise InputError(f"it asks for {blocks} blocks, but the file has only {tensors} tensors")


def _classes(dataset: Any) -> Classes | None:
    """The classes of a data set. The last row of the table of classes stands for none, if training came to use it."""
    said = dataset if isinstance(dataset, Mapping) else {}
    count, dropped = said.get("num_classes", 0), said.get("cond_dropout_rate", 0.1)
    if count == 0:
        return None
    if isinstance(dropped, bool) or not isinstance(dropped, (int, float)) or not 0 <= dropped <= 1:
        raise InputError(f"cond_dropout_rate must be a number from 0 to 1, not {dropped!r:.50}")
    return Classes(_checked("num_classes", count), count if dropped else None)


Made = tuple[Callable[[], nn.Module], tuple[int, int]]
"""The function that builds a network, and what height and width of its images must be divisible by."""


def _unet(model: Mapping[str, Any], channels: int, sides: Sequence[int], rows: int, tensors: int) -> Made:
    attention, variance = model.get("self_attn_depths"), model.get("has_variance", False)
    if not isinstance(attention, list) or not all(isinstance(each, bool) for each in attention):
        raise InputError(f"self_attn_depths must be a list of true and false, not {attention!r:.50}")
    if not isinstance(variance, bool):
        raise InputError(f"has_variance must be true or false, not {variance!r:.50}")
    patch, depths = _number(model, "patch_size", 1), _row(model, "depths")
    _bound(sum(depths), tensors)
    settings: dict[str, Any] = {
        "channels": channels,
        "widths": _row(model, "channels"),
        "depths": depths,
        "attention": attention,
        "features": _number(model, "mapping_out"),
        "patch": patch,
        "variance": variance,
    }
    multiple = patch * 2 ** (len(depths) - 1)
    return lambda: KarrasUNet(**settings), (multiple, multiple)


def _patch(model: Mapping[str, Any]) -> tuple[int, int]:
    """The height and width of a transformer's patches. Its networks predict no variance."""
    if model.get("has_variance"):
        raise InputError("has_variance is of U-Nets: k-diffusion's transformers predict no variance")
    patch = _row(model, "patch_size")
    if len(patch) != 2:
        raise InputError(f"patch_size must be [height, width], not {patch}")
    return patch[0], patch[1]


def _transformer(model: Mapping[str, Any], channels: int, sides: Sequence[int], rows: int, tensors: int) -> Made:
    patch, depth, width = _patch(model), _number(model, "depth"), _number(model, "width")
    _bound(depth, tensors)
    settings: dict[str, Any] = {
        "channels": channels,
        "patch": patch,
        "depth": depth,
        "width": width,
        "hidden": _checked("d_ff", model.get("d_ff") or _near_power(width * 8 / 3)),
        "classes": rows,
    }
    return lambda: ImageTransformer(**settings), patch


def _near_power(size: float) -> int:
    """A size, rounded to a multiple of the largest power of 2 below it that changes it by no more than 5%."""
    powers = [1 << each for each in range(math.ceil(math.log2(size)))]
    near = [round(size / power) * power for power in powers]
    return next((it for it in reversed(near) if abs(it - size) <= 0.05 * size), near[0])


def _hourglass(model: Mapping[str, Any], channels: int, sides: Sequence[int], rows: int, tensors: int) -> Made:
    patch, widths, depths = _patch(model), _row(model, "widths"), _row(model, "depths")
    features = _number(model, "mapping_width", 256)
    mapping = [
        _number(model, "mapping_depth", 2),
        features,
        _checked("mapping_d_ff", model.get("mapping_d_ff") or 3 * features),
    ]
    _bound(sum(depths) + mapping[0], tensors)
    hidden, attention = _row(model, "d_ffs", [3 * width for width in widths]), model.get("self_attns") or _usual(widths)
    lists = {"widths": widths, "depths": depths, "d_ffs": hidden, "self_attns": attention}
    if not isinstance(attention, list) or len({len(each) for each in lists.values()}) > 1:
        raise InputError(f"{', '.join(lists)} must be lists of one length, an element for each level")
    smallest = [
        [side // (part * 2**level) for side, part in zip(sides, patch, strict=False)] for level in range(len(widths))
    ]
    settings: dict[str, Any] = {
        "channels": channels,
        "patch": patch,
        "depths": depths,
        "widths": widths,
        "hidden": hidden,
        "attention": [_attends(each, at) for each, at in zip(attention, smallest, strict=True)],
        "mapping": mapping,
        "classes": rows,
    }
    merged = 2 ** (len(widths) - 1)
    return lambda: HourglassTransformer(**settings), (merged * patch[0], merged * patch[1])


def _usual(widths: Sequence[int]) -> list[dict[str, Any]]:
    """The attention of levels where the configuration names none."""
    return [{"type": "neighborhood"}] * (len(widths) - 1) + [{"type": "global"}]


def _attends(said: Any, at: Sequence[int]) -> tuple[str | int, ...] | None:
    """The attention of a level whose images have the sides `at`, as arguments of `hourglass.Attends`; None for none."""
    kind = said.get("type") if isinstance(said, Mapping) else None
    if kind == "none":
        return None
    if kind == "global":
        return kind, _number(said, "d_head", 64)
    if kind == "shifted-window":
        side = _number(said, "window_size")
        if any(length % side for length in at):
            raise InputError(
                f"windows of {side}×{side} do not tile the {'×'.join(map(str, at))} patches of their level"
            )
        return kind, _number(said, "d_head", 64), side
    if kind == "neighborhood":
        side = _number(said, "kernel_size", 7)
        if side % 2 == 0 or side == 1 or side > min(at):
            raise InputError(
                f"kernel_size must be odd, from 3 to the {'×'.join(map(str, at))} patches of its level, not {side}"
            )
        return kind, _number(said, "d_head", 64), side
    raise InputError(f"self_attns must be of type global, neighborhood, shifted-window or none, not {said!r:.80}")


_READ: dict[str, Callable[[Mapping[str, Any], int, Sequence[int], int, int], Made]] = {
    "image_v1": _unet,
    "image_transformer_v1": _transformer,
    "image_transformer_v2": _hourglass,
}
"""The types of networks that are read."""
