"""Sana (arXiv 2410.10629): a linear transformer on a deep autoencoder's data, with Gemma's states of a prompt."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from odeddim.models.components import class_of
from odeddim.models.networks.text_encoders import GEMMA, Masked, TextEncoder
from odeddim.models.pipelines.told import Pipeline, Told
from odeddim.ode.conditions import Given, Prompts

TOKENS = 300


@dataclass(frozen=True)
class Instructed:
    """A text -> hidden states (1, 300, width), mask (1, 300), under an instruction to Gemma before the text.

    Of the tokens the first and the last 299 are kept, as many as there are for texts without an instruction.
    """

    encoder: TextEncoder
    instruction: str

    def __call__(self, text: str) -> Given:
        longest = self.encoder.count(self.instruction) + TOKENS - 2
        found = self.encoder(text.lower().strip(), self.instruction + "{}", longest)
        kept = [0, *range(1 - TOKENS, 0)]
        return found.last[:, kept], found.mask[:, kept]


def sana(of: Pipeline) -> Told:
    """Return how Sana's network is called. Its pipeline gives the instruction to prompts and not to negative ones."""
    if of.config.get("guidance_embeds"):
        raise of.refuse("the network was distilled to few steps (guidance_embeds), which odeddim does not support")
    scale = of.config.get("timestep_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not scale > 0:
        raise of.refuse(f"timestep_scale must be a number above 0, not {scale!r:.50}")
    encoder = TextEncoder(of.folder, of.index, kinds=GEMMA, longest=TOKENS, masked=True)
    of.check_width("caption_channels", encoder.width)
    parameters = inspect.signature(class_of("diffusers", "SanaPipeline").__call__).parameters
    instruction = "\n".join(parameters["complex_human_instruction"].default)
    conditions = Prompts(Instructed(encoder, instruction), negative=Masked(encoder, lower=True))
    return Told(
        partial(_sana, scale=scale),
        of.patches(1),
        conditions,
        (encoder,),
        ["prompts under the instruction of its pipeline", "texts in lower case, and not cleaned of anything"],
        adds=instruction,
    )


def _sana(network: nn.Module, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, *, scale: float) -> Any:
    return network(x, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=t * scale)
