"""Pipelines of U-Nets: Stable Diffusion 1 and 2 (arXiv 2112.10752), SDXL (2307.01952), latent diffusion."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from odeddim.models.components import check_sides, halvings
from odeddim.models.networks import text_encoders
from odeddim.models.pipelines.told import Call, Pipeline, Told
from odeddim.ode.conditions import Classes, Prompts
from odeddim.ode.sizes import Sizes

_OF_OTHERS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")
"""Settings of text-conditioned networks that take more inputs than a text."""


def with_text(of: Pipeline) -> Told:
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
    call: Call = _with_text
    if summary is None:
        embed, encoders = text_encoders.one(of.folder, of.index)
    else:
        call = partial(_sdxl, factor=of.image_shape[1] // of.shape[1])
        embed, encoders = text_encoders.two(of.folder, of.index)
        assumed.append("SDXL's size conditions: an original image of the size of the run, not cropped")
        told = 6 * of.config.get("addition_time_embed_dim", 0) + embed("")[1].shape[1]
        if told != of.config.get("projection_class_embeddings_input_dim"):
            raise of.refuse(
                "the network does not take a summary and six sizes as SDXL does (SDXL's refiner takes others), which "
                "odeddim does not support"
            )
    of.check_width("cross_attention_dim", sum(encoder.width for encoder in encoders))
    zeros = summary is not None and bool(of.index.get("force_zeros_for_empty_prompt", True))
    return Told(call, _halved(of), Prompts(embed, zeros=zeros), encoders, assumed)


def plain(of: Pipeline) -> Told:
    """Return how the U-Net of latent diffusion without texts is called, with or without classes."""
    if of.config.get("class_embed_type") is not None:
        raise of.refuse(f"odeddim does not support class_embed_type {of.config['class_embed_type']!r}")
    check_sides(of.config, of.shape, of.where)
    count = of.config.get("num_class_embeds")
    return Told(_plain, _halved(of), None if count is None else Classes(count))


def _halved(of: Pipeline) -> Sizes:
    """The sizes of a U-Net, which is convolutional: those that it can halve between its levels."""
    return Sizes(of.shape, 2 ** halvings(of.config))


# Calls of each kind of network. These are named functions because a field that holds one must be picklable.


def _with_text(network: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Any:
    return network(x, t, encoder_hidden_states=text)


def _sdxl(network: nn.Module, x: Tensor, t: Tensor, text: Tensor, summary: Tensor, *, factor: int) -> Any:
    """Call SDXL's network. Its six size conditions are in pixels, `factor` times the sides of the data: the height and
    width of the image before it was cropped, the top and left of the crop, and the height and width after it."""
    height, width = (factor * side for side in x.shape[2:])
    six = torch.tensor([[height, width, 0, 0, height, width]], device=x.device).expand(len(x), -1)
    return network(x, t, encoder_hidden_states=text, added_cond_kwargs={"text_embeds": summary, "time_ids": six})


def _plain(network: nn.Module, x: Tensor, t: Tensor, label: Tensor | None = None) -> Any:
    return network(x, t, class_labels=label)
