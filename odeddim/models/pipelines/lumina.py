"""Lumina-Image 2 (arXiv 2503.21758): a transformer with Gemma's hidden states of a prompt.

Its time runs from 0 at the noise to 1 at the image. Its pipeline scales guided answers: each row of a channel gets the
length that it has for the prompt alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from odeddim.models.networks.text_encoders import GEMMA, TextEncoder
from odeddim.models.pipelines.told import Pipeline, Told, empty_pipeline
from odeddim.ode.conditions import Given, Prompts

TOKENS = 256


@dataclass(frozen=True)
class Texts:
    """A text -> Gemma's last but one hidden states (1, 256, width), mask (1, 256).

    Attributes:
        encoder: The encoder.
        around: What is put around a text, with {} in its place.
    """

    encoder: TextEncoder
    around: str = "{}"

    def __call__(self, text: str) -> Given:
        found = self.encoder(text, self.around)
        return found.before, found.mask


def lumina2(of: Pipeline) -> Told:
    """Return how Lumina-Image 2's network is called. Its table of positions bounds the size of the data."""
    encoder = TextEncoder(of.folder, of.index, kinds=GEMMA, longest=TOKENS, masked=True)
    of.check_width("cap_feat_dim", encoder.width)
    around = f"{empty_pipeline('Lumina2Pipeline').system_prompt} <Prompt Start> {{}}"
    lengths = of.config.get("axes_lens")
    whole = isinstance(lengths, list) and len(lengths) == 3 and all(type(each) is int for each in lengths)
    if not isinstance(lengths, list) or not whole or lengths[0] <= TOKENS:
        raise of.refuse(f"axes_lens must be three whole numbers, the first of them above {TOKENS}: correct it")
    sizes = of.patches(2)
    return Told(
        _lumina2,
        of.patches(2, (sizes.multiple or 1) * min(lengths[1:])),
        Prompts(Texts(encoder, around), negative=Texts(encoder), length=_of_rows),
        (encoder,),
        ["prompts after the instruction of its pipeline"],
        adds=around,
        predicts="flow-to-data",
        time="reversed",
    )


def _lumina2(network: nn.Module, x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Any:
    return network(x, timestep=t, encoder_hidden_states=text, encoder_attention_mask=mask)


def _of_rows(answer: Tensor) -> Tensor:
    """The length of each row of each channel, (B, c, h, 1)."""
    return answer.square().sum(dim=-1, keepdim=True).sqrt()
