"""Qwen-Image (arXiv 2508.02324): a transformer on packed data, with Qwen2.5-VL's hidden states of a prompt.

Texts are as long as they are: in one batch the shorter ones are filled up, under a mask. Its pipeline scales guided
answers: each token gets the length that it has for the prompt alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from odeddim.models.networks.text_encoders import QWEN, TextEncoder
from odeddim.models.pipelines.packed import packed, unpacked
from odeddim.models.pipelines.told import Pipeline, Told, empty_pipeline
from odeddim.ode.conditions import Given, Prompts
from odeddim.ode.sizes import Sizes

TOKENS = 512  # of a text, without those of the template before it


@dataclass(frozen=True)
class Texts:
    """A text -> hidden states (1, n, width), mask (1, n).

    Attributes:
        encoder: The encoder.
        around: The template of the conversation, with {} in place of the text.
        before: The number of tokens of the template before the text, whose hidden states are left out.
    """

    encoder: TextEncoder
    around: str
    before: int

    def __call__(self, text: str) -> Given:
        found = self.encoder(text, self.around, self.before + TOKENS)
        return found.last[:, self.before :], found.mask[:, self.before :]


def qwen_image(of: Pipeline) -> Told:
    """Return how Qwen-Image's network is called."""
    for key in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        if of.config.get(key):
            raise of.refuse(f"the network takes more inputs than a prompt ({key}), which odeddim does not support")
    empty = empty_pipeline("QwenImagePipeline")
    encoder = TextEncoder(of.folder, of.index, kinds=QWEN, masked=True, filled=False, longest=TOKENS)
    of.check_width("joint_attention_dim", encoder.width)
    texts = Texts(encoder, empty.prompt_template_encode, empty.prompt_template_encode_start_idx)
    assumed = [of.own_size, "prompts in the conversation of its pipeline"]
    conditions = Prompts(texts, length=_of_tokens, fills=True)
    return Told(_qwen_image, Sizes(of.shape, 2), conditions, (encoder,), assumed, adds=texts.around)


def _qwen_image(network: nn.Module, x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    tokens = network(
        packed(x),
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        timestep=t / 1000,
        img_shapes=[[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x),
        return_dict=False,
    )[0]
    return unpacked(tokens, x)


def _of_tokens(answer: Tensor) -> Tensor:
    """The length of each token, (B, 1, h, w): of the values of all channels in its 2×2 patch."""
    patches = 4 * avg_pool2d(answer.square().sum(dim=1, keepdim=True), 2)
    return interpolate(patches, scale_factor=2, mode="nearest").sqrt()
