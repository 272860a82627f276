"""diffusers' pipelines of latent models: folders with model_index.json, an autoencoder, a network and a scheduler.

    unet/         UNet2DConditionModel, UNet2DModel: Stable Diffusion 1 and 2, SDXL, latent diffusion
    transformer/  DiT, Stable Diffusion 3, Flux, PixArt, Sana, Lumina-Image 2, Qwen-Image, Hunyuan-DiT; and of videos
                  Wan, CogVideoX

`odeddim.models.pipelines` says of each network how it is called and what its prompts are to it.

The field acts on the data that the autoencoder makes of images; its `codec` converts between the two. Networks take
real-valued labels. The scheduler's file states the schedule, the prediction and the labels of the network
(`odeddim.ode.scheduler_settings`). The autoencoder's config states the scale of the data
(`odeddim.models.networks.autoencoder`).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from odeddim.models import json_files, schedulers
from odeddim.models.components import CONFIG, changed_settings, class_of, config_of, made, settings_of, size
from odeddim.models.guarded import Loaded
from odeddim.models.networks import autoencoder
from odeddim.models.networks.text_encoders import has
from odeddim.models.pipelines.shapes import shape_of
from odeddim.models.pipelines.table import NETWORKS
from odeddim.models.pipelines.told import Call, Pipeline, second_of
from odeddim.models.weights import hash_of_networks
from odeddim.ode.conditions import words_of
from odeddim.ode.field import VectorField
from odeddim.ode.two_networks import TwoNetworks
from odeddim.types import InputError

INDEX = "model_index.json"
CODECS = ("vae", "vqvae")
_OF_IMAGES = ("controlnet", "adapter")
"""Parts of pipelines that take an image beside the data."""
_OF_PICTURES = re.compile("Kontext|QwenImage(Edit|Layered)|ImageToVideo")
"""Names of pipelines that begin with an image, of which some show it by neither a part nor a setting."""
_OF_TEXTS = ("tokenizer", "text_encoder")


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
    where, _ = _network(folder, index)
    read_too = (where.name, second_of(where).name, *CODECS)
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
    codecs = [part for part in CODECS if has(index, part)]
    codecs += [part for part in CODECS if part in index or (folder / part).is_dir()]
    shape = shape_of(kind, config, where, folder / CODECS[0])
    posed = schedulers.read(folder / "scheduler" / schedulers.NAME)
    # The smaller components first, so that an error in one of them does not wait for gigabytes of weights.
    codec, its_kind, assumed = autoencoder.read(folder / codecs[0], shape) if codecs else (None, "", [])
    told = NETWORKS[kind](Pipeline(folder, index, config, where, shape, codec.image_shape if codec else shape))
    if told.predicts and posed.predicts != "flow":
        raise InputError(
            f"{folder / 'scheduler' / schedulers.NAME}: the network predicts a flow, but a {posed.found} has no flow "
            "paths: give the scheduler that it was trained with"
        )
    make = class_of("diffusers", told.made_by or kind).from_config
    folders = [where] if told.boundary is None else [where, second_of(where)]
    networks = [made(functools.partial(make, config_of(its)), its) for its in folders]
    called = [_Called(network, told.call, shape[0]) for network in networks]
    lower = "" if told.boundary is None else f", a second one below t = {told.boundary:g}"
    settings = {
        "codec": codec.sha256 if codec else "",
        "told": words_of(told.conditions),
        "network": changed_settings(networks[0]),
        **({} if told.boundary is None else {"low": [told.boundary, changed_settings(networks[1])]}),
        "encoders": [encoder.settings for encoder in told.encoders],
        **({"adds": told.adds} if told.adds else {}),
    }
    parts = [index.get("_class_name"), f"{kind} of {size(networks[0])}{lower}", its_kind, posed.found]
    return Loaded(
        called[0] if told.boundary is None else TwoNetworks(called[0], called[1], told.boundary / (1 - told.boundary)),
        posed.schedule,
        predicts=told.predicts or posed.predicts,
        time=told.time or posed.time,
        shape=told.sizes,
        name=str(folder.absolute()),
        sha256=hash_of_networks(*networks, *(encoder.network for encoder in told.encoders), settings=settings),
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
    name = str(index.get("_class_name"))
    others = [part for part in _OF_IMAGES if has(index, part)]
    if others or _OF_PICTURES.search(name):
        raise InputError(
            f"{folder / INDEX}: the network of a {name} also takes an image{f' by its {others[0]}' if others else ''}, "
            "which odeddim does not support: give a pipeline that takes texts or classes alone"
        )
    where = folder / next((part for part in ("unet", "transformer") if has(index, part)), "unet")
    kind = str(index[where.name][1]) if has(index, where.name) else None
    if kind not in NETWORKS:
        raise InputError(
            f"{folder / INDEX} names {'no network' if kind is None else 'a ' + kind} as its {where.name}: "
            f"give a pipeline with one of {', '.join(NETWORKS)}"
        )
    return where, kind


class _Called(nn.Module):
    """A network of diffusers as a function of (x, t, *given). Of its output, learned variances are dropped."""

    def __init__(self, network: nn.Module, call: Call, channels: int) -> None:
        super().__init__()
        self.network, self._call, self._channels = network, call, channels

    def forward(self, x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        answer = self._call(self.network, x, t, *given)
        whole: Tensor = answer if isinstance(answer, Tensor) else answer.sample
        return whole[:, : self._channels]
