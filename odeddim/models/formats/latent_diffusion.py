"""diffusers' pipelines of latent models: folders with model_index.json, an autoencoder, a network and a scheduler.

    unet/         UNet2DConditionModel: Stable Diffusion 1 and 2 (arXiv 2112.10752), SDXL (2307.01952), with prompts
                  UNet2DModel: latent diffusion, unconditional or with classes
    transformer/  DiTTransformer2DModel: DiT (2212.09748), with classes, a last label for no class, learned variances
                  SD3Transformer2DModel: Stable Diffusion 3 (2403.03206), with prompts

The field acts on the data that the autoencoder makes of images; its `codec` converts between the two. Networks take
real-valued labels. The scheduler's file states the schedule, the prediction and the labels of the network
(`odeddim.ode.scheduler_settings`). The autoencoder's config states the scale of the data
(`odeddim.models.networks.autoencoder`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odeddim.models import json_files, schedulers
from odeddim.models.components import (
    CONFIG,
    changed_settings,
    check_sides,
    config_of,
    halvings,
    library,
    made,
    settings_of,
    size,
)
from odeddim.models.guarded import Loaded
from odeddim.models.networks import autoencoder, text_encoders
from odeddim.models.networks.text_encoders import TextEncoder, has
from odeddim.models.weights import hash_of_networks
from odeddim.ode.conditions import Classes, Conditions, Prompts, words_of
from odeddim.ode.field import VectorField
from odeddim.ode.sizes import Sizes
from odeddim.types import InputError

INDEX = "model_index.json"
CODECS = ("vae", "vqvae")
_OF_TEXTS = ("tokenizer", "text_encoder")

_OF_OTHERS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")
"""Settings of text-conditioned networks that take more inputs than a text."""


def matches(path: Path) -> bool:
    """Return whether a path is the folder of a pipeline with an autoencoder, or the model_index.json in it."""
    index = path if path.name == INDEX else path / INDEX
    if not os.path.exists(index):
        return False
    text = json_files.glance(index)
    return any(os.path.isdir(index.parent / part) or f'"{part}"' in text for part in CODECS)


def parts(folder: Path) -> list[str]:
    """The parts that `read` reads: those with weights, and tokenizers. Raises InputError for a network of others."""
    index = config_of(folder, INDEX)
    read_too = (_network(folder, index)[0].name, *CODECS)
    return [part for part in index if has(index, part) and (part in read_too or part.startswith(_OF_TEXTS))]


def read(path: Path) -> VectorField:
    """Read the model of a pipeline's folder.

    Args:
        path: The folder, or the model_index.json in it.

    Returns:
        The model, with its autoencoder.

    Raises:
        InputError: If a component is missing, damaged or unknown, or if components do not belong together.
    """
    folder = path.parent if path.name == INDEX else path
    index = config_of(folder, INDEX)
    where, kind = _network(folder, index)
    config = config_of(where)
    if config.get("_class_name") != kind:
        raise InputError(f"{where / CONFIG} describes a {config.get('_class_name')}, but {INDEX} names a {kind}")
    shape = _shape(config, where)
    posed = schedulers.read(folder / "scheduler" / schedulers.NAME)
    # The smaller components first, so that an error in one of them does not wait for gigabytes of weights.
    codecs = [part for part in CODECS if has(index, part)]
    codecs += [part for part in CODECS if part in index or (folder / part).is_dir()]
    codec, its_kind, assumed = autoencoder.read(folder / codecs[0], shape) if codecs else (None, "", [])
    told = NETWORKS[kind](Pipeline(folder, index, config, where, shape, codec.image_shape if codec else shape))
    make = getattr(library("diffusers"), told.made_by or kind).from_config
    network = made(lambda: make(config), where)
    settings = {
        "codec": codec.sha256 if codec else "",
        "told": words_of(told.conditions),
        "network": changed_settings(network),
        "encoders": [encoder.settings for encoder in told.encoders],
    }
    parts = [index.get("_class_name"), f"{kind} of {size(network)}", its_kind, posed.found]
    return Loaded(
        _Called(network, told.call, shape[0]),
        posed.schedule,
        predicts=posed.predicts,
        time=posed.time,
        shape=told.sizes,
        name=str(folder.absolute()),
        sha256=hash_of_networks(network, *(encoder.network for encoder in told.encoders), settings=settings),
        details={
            "architecture": settings_of(config),
            "found": ", ".join(str(part) for part in parts if part),
            "weights": "as saved",
            "assumed": [*posed.assumed, *assumed, *told.assumed],
        },
        conditions=told.conditions,
        codec=codec,
    )


def _network(folder: Path, index: Mapping[str, Any]) -> tuple[Path, str]:
    """Return the folder of a pipeline's network, and the network's class."""
    where = folder / next((part for part in ("unet", "transformer") if has(index, part)), "unet")
    kind = str(index[where.name][1]) if has(index, where.name) else None
    if kind not in NETWORKS:
        raise InputError(
            f"{folder / INDEX} names {'no network' if kind is None else 'a ' + kind} as its {where.name}: "
            f"give a pipeline with one of {', '.join(NETWORKS)}"
        )
    return where, kind


def _shape(config: Mapping[str, Any], where: Path) -> tuple[int, int, int]:
    """Return the shape (c, h, w) of the data."""
    sides = config.get("sample_size")
    shape: list[Any] = [config.get("in_channels"), *(sides if isinstance(sides, list) else [sides, sides])]
    if len(shape) != 3 or not all(type(each) is int and 0 < each < 1 << 16 for each in shape):
        raise InputError(f"{where / CONFIG} must give in_channels and sample_size as whole numbers: write them into it")
    channels, height, width = shape
    answer = config.get("out_channels") or channels
    if answer not in (channels, 2 * channels):  # twice as many: it predicts variances too
        raise InputError(
            f"{where / CONFIG}: the network takes {channels} channels and returns {answer}, so it also needs an image "
            "or a mask as its input, which odeddim does not support"
        )
    return channels, height, width


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's folder and its settings.

    Attributes:
        folder: The folder.
        index: The content of model_index.json.
        config: The config of the network.
        where: The folder of the network.
        shape: The shape (c, h, w) of the network's own data.
        image_shape: The shape (C, H, W) of the images of these data.
    """

    folder: Path
    index: Mapping[str, Any]
    config: Mapping[str, Any]
    where: Path
    shape: tuple[int, ...]
    image_shape: tuple[int, ...]

    def refuse(self, why: str) -> InputError:
        """Return an error about the network's config."""
        return InputError(f"{self.where / CONFIG}: {why}")


Call = Callable[..., Any]


@dataclass(frozen=True)
class Told:
    """How a network is called, and under which conditions.

    Attributes:
        call: The function (network, x, t, *given) -> the network's output, an object of diffusers.
        sizes: The sizes of data that the network takes.
        conditions: The conditions that the network takes; None for an unconditional network.
        encoders: The encoders of texts, whose weights are part of the model's hash.
        assumed: The values that the folder does not state, in words.
        made_by: The class that builds the network, if it is not the class that the config names.
    """

    call: Call
    sizes: Sizes
    conditions: Conditions | None = None
    encoders: Sequence[TextEncoder] = ()
    assumed: Sequence[str] = ()
    made_by: str | None = None


class _Called(nn.Module):
    """A network of diffusers as a function of (x, t, *given). Of its output, learned variances are dropped."""

    def __init__(self, network: nn.Module, call: Call, channels: int) -> None:
        super().__init__()
        self.network, self._call, self._channels = network, call, channels

    def forward(self, x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        answer: Tensor = self._call(self.network, x, t, *given).sample
        return answer[:, : self._channels]


def _with_text(of: Pipeline) -> Told:
    """Return how the networks of Stable Diffusion 1 and 2 and SDXL are called."""
    for key in _OF_OTHERS:
        if of.config.get(key) is not None:
            raise of.refuse(f"the network takes more inputs than a prompt ({key}), which odeddim does not support")
    summary = of.config.get("addition_embed_type")
    if summary not in (None, "text_time"):
        raise of.refuse(
            f"the network takes more inputs than a prompt (addition_embed_type {summary!r}), which odeddim does not "
            "support"
        )
    assumed: list[str] = []
    call: Call = _called_with_text
    if summary is None:
        embed, encoders = text_encoders.one(of.folder, of.index)
    else:
        call = partial(_called_sdxl, factor=of.image_shape[1] // of.shape[1])
        embed, encoders = text_encoders.two(of.folder, of.index)
        assumed.append("SDXL's size conditions: an original image of the size of the run, not cropped")
        told = 6 * of.config.get("addition_time_embed_dim", 0) + embed("")[1].shape[1]
        if told != of.config.get("projection_class_embeddings_input_dim"):
            raise of.refuse(
                "the network does not take a summary and six sizes as SDXL does (SDXL's refiner takes others), which "
                "odeddim does not support"
            )
    _check_width(of, "cross_attention_dim", sum(encoder.width for encoder in encoders))
    zeros = summary is not None and bool(of.index.get("force_zeros_for_empty_prompt", True))
    return Told(call, _halved(of), Prompts(embed, zeros=zeros), encoders, assumed)


def _halved(of: Pipeline) -> Sizes:
    """The sizes of a U-Net, which is convolutional: those that it can halve between its levels."""
    return Sizes(of.shape, 2 ** halvings(of.config))


def _check_width(of: Pipeline, key: str, width: int) -> None:
    if of.config.get(key) != width:
        raise of.refuse(f"the network has {key} {of.config.get(key)}, but its text encoders return width {width}")


def _plain(of: Pipeline) -> Told:
    """Return how the U-Net of latent diffusion without texts is called, with or without classes."""
    if of.config.get("class_embed_type") is not None:
        raise of.refuse(f"odeddim does not support class_embed_type {of.config['class_embed_type']!r}")
    check_sides(of.config, of.shape, of.where)
    count = of.config.get("num_class_embeds")
    return Told(_called_plain, _halved(of), None if count is None else Classes(count))


def _dit(of: Pipeline) -> Told:
    """Return how DiT is called. The label after the last class means no class. Its answers are square."""
    count = of.config.get("num_embeds_ada_norm")
    if of.config.get("norm_type") != "ada_norm_zero" or type(count) is not int:
        raise of.refuse(
            "the transformer is not a DiT, which has norm_type 'ada_norm_zero' and num_embeds_ada_norm, and odeddim "
            "supports no others"
        )
    return Told(_called_dit, Sizes(of.shape), Classes(count, null=count), made_by="DiTTransformer2DModel")


def _sd3(of: Pipeline) -> Told:
    """Return how the network of Stable Diffusion 3 is called. Its table of positions is cropped to smaller data."""
    embed, encoders = text_encoders.three(of.folder, of.index, of.config.get("joint_attention_dim", 0))
    _check_width(of, "pooled_projection_dim", embed("")[1].shape[1])
    patch, positions = of.config.get("patch_size", 2), of.config.get("pos_embed_max_size", 96)
    cropped = all(type(each) is int and each > 0 for each in (patch, positions))
    sizes = Sizes(of.shape, patch, patch * positions) if cropped else Sizes(of.shape)
    return Told(_called_sd3, sizes, Prompts(embed), encoders)


# Calls of each kind of network. These are named functions because a field that holds one must be picklable.


def _called_with_text(network: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Any:
    return network(x, t, encoder_hidden_states=text)


def _called_sdxl(network: nn.Module, x: Tensor, t: Tensor, text: Tensor, summary: Tensor, *, factor: int) -> Any:
    """Call SDXL's network. Its six size conditions are in pixels, `factor` times the sides of the data: the height and
    width of the image before it was cropped, the top and left of the crop, and the height and width after it."""
    height, width = (factor * side for side in x.shape[2:])
    six = torch.tensor([[height, width, 0, 0, height, width]], device=x.device).expand(len(x), -1)
    return network(x, t, encoder_hidden_states=text, added_cond_kwargs={"text_embeds": summary, "time_ids": six})


def _called_plain(network: nn.Module, x: Tensor, t: Tensor, label: Tensor | None = None) -> Any:
    return network(x, t, class_labels=label)


def _called_dit(network: nn.Module, x: Tensor, t: Tensor, label: Tensor) -> Any:
    return network(x, timestep=t, class_labels=label)


def _called_sd3(network: nn.Module, x: Tensor, t: Tensor, text: Tensor, summary: Tensor) -> Any:
    return network(x, encoder_hidden_states=text, pooled_projections=summary, timestep=t)


NETWORKS: dict[str, Callable[[Pipeline], Told]] = {
    "UNet2DConditionModel": _with_text,
    "UNet2DModel": _plain,
    "DiTTransformer2DModel": _dit,
    "Transformer2DModel": _dit,  # as DiT's files call it
    "SD3Transformer2DModel": _sd3,
}
"""The supported classes of networks, each with the function that returns how its network is called."""
