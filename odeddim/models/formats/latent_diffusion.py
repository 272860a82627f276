"""diffusers' pipelines of latent models: a folder with model_index.json, an autoencoder, a network, a scheduler's file.

    unet/         UNet2DConditionModel: Stable Diffusion 1 and 2 (arXiv 2112.10752), SDXL (2307.01952), with prompts
                  UNet2DModel: latent diffusion without condition, or with classes
    transformer/  DiTTransformer2DModel: DiT (2212.09748), classes and a last label for none, learned variances
                  SD3Transformer2DModel: Stable Diffusion 3 (2403.03206), with prompts

The field is the network's, on the autoencoder's latents; its `codec` makes them of images. Networks are called with
real-valued labels. Schedule, prediction and labels are what the scheduler's file says of the network
(`odeddim.models.schedulers`), the scale of latents what the autoencoder's says (`odeddim.models.networks.autoencoder`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from odeddim.models import json_files, schedulers
from odeddim.models.components import CONFIG, check_sides, config_of, files_of, library, made, settings_of, size
from odeddim.models.guarded import Loaded
from odeddim.models.networks import autoencoder, text_encoders
from odeddim.models.networks.text_encoders import has
from odeddim.models.weights import hash_of
from odeddim.ode.conditions import Classes, Conditions, Prompts, words_of
from odeddim.ode.field import VectorField
from odeddim.types import InputError

INDEX = "model_index.json"
CODECS = ("vae", "vqvae")
_OF_TEXTS = ("tokenizer", "text_encoder")

_OF_OTHERS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")
"""Settings of networks with texts that take more than a text."""


def matches(path: Path) -> bool:
    """Whether this is the folder of a pipeline with an autoencoder, or the model_index.json in it."""
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
    """The model of a pipeline's folder. Raises InputError for parts that are missing, damaged or unknown."""
    folder = path.parent if path.name == INDEX else path
    index = config_of(folder, INDEX)
    where, kind = _network(folder, index)
    config = config_of(where)
    if config.get("_class_name") != kind:
        raise InputError(f"{where / CONFIG} describes a {config.get('_class_name')}, but {INDEX} says {kind}")
    shape = _shape(config, where)
    posed = schedulers.read(folder / "scheduler" / schedulers.NAME)
    # The smaller parts first: what they lack need not wait for gigabytes.
    codec_folder = folder / next((part for part in CODECS if has(index, part)), CODECS[0])
    codec, its_kind, assumed = autoencoder.read(codec_folder, shape)
    told = NETWORKS[kind](Pipeline(folder, index, config, where, codec.image_shape))
    make = getattr(library("diffusers"), told.made_by or kind).from_config
    network = made(lambda: make(config), where)
    parts = (where, *told.parts)
    files = [*(file for part in parts for file in files_of(part)), *_words(folder, index)]
    settings = {
        "codec": codec.sha256,
        "told": words_of(told.conditions),
        "parts": [settings_of(config_of(part)) for part in parts],
    }
    return Loaded(
        _Called(network, told.call, shape[0]),
        posed.schedule,
        predicts=posed.predicts,
        time=posed.time,
        shape=shape,
        name=str(folder.absolute()),
        sha256=hash_of(*files, settings=settings),
        details={
            "architecture": settings_of(config),
            "found": f"{index.get('_class_name', 'pipeline')}, {kind} of {size(network)}, {its_kind}, {posed.found}",
            "weights": "as saved",
            "assumed": [*posed.assumed, *assumed, *told.assumed],
        },
        conditions=told.conditions,
        codec=codec,
    )


def _network(folder: Path, index: Mapping[str, Any]) -> tuple[Path, str]:
    """Where the network of a pipeline lies, and its class."""
    where = folder / next((part for part in ("unet", "transformer") if has(index, part)), "unet")
    kind = str(index[where.name][1]) if has(index, where.name) else None
    if kind not in NETWORKS:
        raise InputError(
            f"{folder / INDEX} names {'no network' if kind is None else 'a ' + kind} as its {where.name}: "
            f"odeddim reads pipelines of {', '.join(NETWORKS)}"
        )
    return where, kind


def _words(folder: Path, index: Mapping[str, Any]) -> list[Path]:
    """The files of the tokenizers, which decide what a text is to the network."""
    found = [folder / part for part in sorted(index) if part.startswith("tokenizer") and has(index, part)]
    return sorted(file for part in found for file in part.glob("*") if file.is_file())


def _shape(config: Mapping[str, Any], where: Path) -> tuple[int, int, int]:
    """(c, h, w) of the data."""
    sides = config.get("sample_size")
    shape: list[Any] = [config.get("in_channels"), *(sides if isinstance(sides, list) else [sides, sides])]
    if len(shape) != 3 or not all(type(each) is int and 0 < each < 1 << 16 for each in shape):
        raise InputError(f"{where / CONFIG} must say in_channels and sample_size, whole numbers: write them into it")
    channels, height, width = shape
    answer = config.get("out_channels") or channels
    if answer not in (channels, 2 * channels):  # twice as many: it predicts variances too
        raise InputError(
            f"{where / CONFIG}: its network takes {channels} channels and makes {answer}: it is also told an image or "
            "a mask, which odeddim cannot give it"
        )
    return channels, height, width


@dataclass(frozen=True)
class Pipeline:
    """A folder and what it says: model_index.json, the network's config and where it is from, (C, H, W) of images."""

    folder: Path
    index: Mapping[str, Any]
    config: Mapping[str, Any]
    where: Path
    image_shape: tuple[int, ...]

    def refuse(self, why: str) -> InputError:
        """An error of the network's config."""
        return InputError(f"{self.where / CONFIG}: {why}")


Call = Callable[..., Any]


@dataclass(frozen=True)
class Told:
    """How a network is called and what it is told. call: (network, x, t, *given) -> what it answers.

    parts: folders with weights besides the network's and the autoencoder's. made_by: the class, if not by that name.
    """

    call: Call
    conditions: Conditions | None = None
    parts: Sequence[Path] = ()
    assumed: Sequence[str] = ()
    made_by: str | None = None


class _Called(nn.Module):
    """A network of diffusers as ε(x, t, *given): the first of its channels, without learned variances."""

    def __init__(self, network: nn.Module, call: Call, channels: int) -> None:
        super().__init__()
        self.network, self._call, self._channels = network, call, channels

    def forward(self, x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        answer: Tensor = self._call(self.network, x, t, *given).sample
        return answer[:, : self._channels]


def _with_text(of: Pipeline) -> Told:
    """Stable Diffusion 1 and 2, and SDXL."""
    for key in _OF_OTHERS:
        if of.config.get(key) is not None:
            raise of.refuse(f"its network is told more than a prompt ({key}): odeddim does not know how")
    summary = of.config.get("addition_embed_type")
    if summary not in (None, "text_time"):
        raise of.refuse(f"its network is told more than a prompt (addition_embed_type {summary!r})")
    assumed: list[str] = []
    if summary is None:
        embed, encoders = text_encoders.one(of.folder, of.index)
    else:
        height, width = of.image_shape[1:]
        embed, encoders = text_encoders.two(of.folder, of.index, (height, width, 0, 0, height, width))
        assumed.append(f"an image that was {height}×{width} and not cropped, which SDXL is told")
        told = 6 * of.config.get("addition_time_embed_dim", 0) + embed("")[1].shape[1]
        if told != of.config.get("projection_class_embeddings_input_dim"):
            raise of.refuse("its network is told something else than a summary and six sizes, as SDXL's refiner is")
    _check_width(of, "cross_attention_dim", sum(encoder.width for encoder in encoders))
    zeros = summary is not None and bool(of.index.get("force_zeros_for_empty_prompt", True))
    return Told(_called_with_text, Prompts(embed, zeros=zeros), [encoder.folder for encoder in encoders], assumed)


def _check_width(of: Pipeline, key: str, width: int) -> None:
    if of.config.get(key) != width:
        raise of.refuse(f"its network takes texts of {key} {of.config.get(key)}, but the text encoders give {width}")


def _plain(of: Pipeline) -> Told:
    """Latent diffusion without texts: a U-Net that knows classes, or nothing."""
    if of.config.get("class_embed_type") is not None:
        raise of.refuse(f"its network knows classes as {of.config['class_embed_type']!r}, which odeddim does not")
    check_sides(of.config, _shape(of.config, of.where), of.where)
    count = of.config.get("num_class_embeds")
    return Told(_called_plain, None if count is None else Classes(count))


def _dit(of: Pipeline) -> Told:
    """DiT: the label after the last class is none."""
    count = of.config.get("num_embeds_ada_norm")
    if of.config.get("norm_type") != "ada_norm_zero" or type(count) is not int:
        raise of.refuse("odeddim reads transformers with norm_type 'ada_norm_zero' and num_embeds_ada_norm, as DiT has")
    return Told(_called_dit, Classes(count, null=count), made_by="DiTTransformer2DModel")


def _sd3(of: Pipeline) -> Told:
    """Stable Diffusion 3."""
    embed, encoders = text_encoders.three(of.folder, of.index, of.config.get("joint_attention_dim", 0))
    _check_width(of, "pooled_projection_dim", embed("")[1].shape[1])
    return Told(_called_sd3, Prompts(embed), [encoder.folder for encoder in encoders])


# How each kind of network is called; functions with names, so that a field of theirs can be pickled.


def _called_with_text(network: nn.Module, x: Tensor, t: Tensor, text: Tensor, *more: Tensor) -> Any:
    added = dict(zip(("text_embeds", "time_ids"), more, strict=True)) if more else None
    return network(x, t, encoder_hidden_states=text, added_cond_kwargs=added)


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
