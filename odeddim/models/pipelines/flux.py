"""Flux.1: a transformer on packed data, with CLIP's summary and T5's hidden states of a prompt.

Flux.1 dev is distilled from guidance (arXiv 2210.03142), whose weight is an input of its network. With a guidance other
than 1 it is evaluated without the prompt as well, as any other network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odeddim.models.networks.text_encoders import CLIPS, T5, TextEncoder
from odeddim.models.pipelines.packed import packed, unpacked
from odeddim.models.pipelines.told import Pipeline, Told
from odeddim.ode.conditions import Given, Prompts
from odeddim.ode.sizes import Sizes

TOKENS = 512  # of T5, as in its pipeline


@dataclass(frozen=True)
class Texts:
    """A text -> T5's hidden states (1, 512, width) and CLIP's summary (1, d)."""

    clip: TextEncoder
    t5: TextEncoder

    def __call__(self, text: str) -> Given:
        summary = self.clip(text).summary
        assert summary is not None
        return self.t5(text).last, summary


def flux(of: Pipeline) -> Told:
    """Return how Flux's network is called."""
    texts = Texts(
        TextEncoder(of.folder, of.index, kinds=CLIPS[:1], cut=True),
        TextEncoder(of.folder, of.index, "_2", kinds=T5, longest=TOKENS, masked=False),
    )
    of.check_width("joint_attention_dim", texts.t5.width)
    of.check_width("pooled_projection_dim", texts.clip.width)
    distilled = bool(of.config.get("guidance_embeds", False))
    assumed = [of.own_size, "CLIP's summary of as many tokens of a prompt as it takes"]
    conditions = Prompts(texts, distilled=distilled)
    return Told(_flux, Sizes(of.shape, 2), conditions, (texts.clip, texts.t5), assumed)


def _flux(
    network: nn.Module, x: Tensor, t: Tensor, text: Tensor, summary: Tensor, guidance: Tensor | None = None
) -> Tensor:
    """Call Flux's network. A token's place is (0, its row, its column), and that of every word is 0."""
    rows, columns = torch.meshgrid(*(torch.arange(side // 2, device=x.device) for side in x.shape[2:]), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=2).reshape(-1, 3)
    tokens = network(
        packed(x),
        encoder_hidden_states=text,
        pooled_projections=summary,
        timestep=t / 1000,
        img_ids=places,
        txt_ids=places.new_zeros(text.shape[1], 3),
        guidance=guidance,
        return_dict=False,
    )[0]
    return unpacked(tokens, x)
