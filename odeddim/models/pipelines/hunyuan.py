"""Hunyuan-DiT (arXiv 2405.08748): a transformer with BERT's and T5's hidden states of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from odeddim.models.components import library
from odeddim.models.networks.text_encoders import BERT, T5, TextEncoder
from odeddim.models.pipelines.told import Pipeline, Told
from odeddim.ode.conditions import Given, Prompts

BASE = 64  # the side of data whose positions are those of the network's first training
ORIGINAL = 1024  # pixels, the side of the original image that its pipeline tells the network of


@dataclass(frozen=True)
class Texts:
    """A text -> BERT's hidden states (1, n, width) and mask (1, n), and T5's."""

    bert: TextEncoder
    t5: TextEncoder

    def __call__(self, text: str) -> Given:
        first, second = self.bert(text), self.t5(text)
        return first.last, first.mask, second.last, second.mask


def hunyuan_dit(of: Pipeline) -> Told:
    """Return how Hunyuan-DiT's network is called."""
    lengths = of.config.get("text_len", 77), of.config.get("text_len_t5", 256)
    if not all(type(each) is int and each > 0 for each in lengths):
        raise of.refuse("text_len and text_len_t5 must be whole numbers: correct them")
    texts = Texts(
        TextEncoder(of.folder, of.index, kinds=BERT, longest=lengths[0], masked=True),
        TextEncoder(of.folder, of.index, "_2", kinds=T5, longest=lengths[1], masked=True),
    )
    of.check_width("cross_attention_dim", texts.bert.width)
    of.check_width("cross_attention_dim_t5", texts.t5.width)
    told = of.config.get("use_style_cond_and_image_meta_size", True)
    sizes = f"an original image of {ORIGINAL}×{ORIGINAL}, not cropped, and of the size of the run"
    return Told(
        partial(_hunyuan_dit, factor=of.factor),
        of.patches(2),
        Prompts(texts),
        (texts.bert, texts.t5),
        [f"Hunyuan-DiT's size conditions: {sizes}"] if told else [],
    )


def _hunyuan_dit(
    network: Any, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, more: Tensor, its_mask: Tensor, *, factor: int
) -> Any:
    """Call Hunyuan-DiT's network. It takes labels in the dtype of its numbers only."""
    height, width = (factor * side for side in x.shape[2:])
    sizes = torch.tensor([[ORIGINAL, ORIGINAL, height, width, 0, 0]], device=x.device, dtype=x.dtype)
    return network(
        x,
        t.to(x.dtype),
        encoder_hidden_states=text,
        text_embedding_mask=mask,
        encoder_hidden_states_t5=more.contiguous(),
        text_embedding_mask_t5=its_mask,
        image_meta_size=sizes.repeat(len(x), 1),
        style=torch.zeros(len(x), device=x.device, dtype=torch.long),
        image_rotary_emb=_positions(network, x),
    )


def _positions(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of patches: those of the square of `BASE`, whose shorter side is cropped about the middle."""
    config: Any = network.config
    grid = [side // config.patch_size for side in x.shape[2:]]
    base = BASE // config.patch_size
    sides = [round(base / max(grid) * side) for side in grid]
    begin = [round((base - side) / 2) for side in sides]
    end = [first + side for first, side in zip(begin, sides, strict=True)]
    of_grid = library("diffusers").models.embeddings.get_2d_rotary_pos_embed
    width = config.attention_head_dim
    found: tuple[Tensor, Tensor] = of_grid(
        width, (tuple(begin), tuple(end)), tuple(grid), device=x.device, output_type="pt"
    )
    return found
