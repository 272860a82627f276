"""Prompts for the networks in diffusers' pipelines: tokenizers and text encoders of transformers.

    Stable Diffusion 1, 2   CLIP's last hidden states
    SDXL (2307.01952)       the last but one hidden states of two CLIPs, side by side; the projected summary of the
                            second CLIP
    SD3 (2403.03206)        the same hidden states, padded with zeros, followed by T5's; both projected summaries

The encoders run in float32 on the CPU, those of a pipeline in memory in its dtype on its device: once for each text,
however many images there are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from odeddim.models.components import changed_settings, class_of, config_of, library, made, object_at
from odeddim.models.weights import line
from odeddim.ode.conditions import Given
from odeddim.types import InputError

_KINDS = ("Tokenizer", "TokenizerFast")

Embed = Callable[[str], Given]
"""A function from a text to the tensors that the network takes for it."""

CLIPS = ("CLIPTextModel", "CLIPTextModelWithProjection")
T5 = ("T5EncoderModel",)
UMT5 = ("UMT5EncoderModel",)
BERT = ("BertModel",)
GEMMA = ("Gemma2Model",)
QWEN = ("Qwen2_5_VLForConditionalGeneration",)
"""The classes of text encoders."""
TOKENIZERS = tuple(f"{name}{fast}" for name in ("CLIP", "T5", "Bert", "Gemma", "Qwen2") for fast in _KINDS)
VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("vocab.txt",),
)
"""The files of a tokenizer's vocabulary, in any of these forms. Without one, transformers builds an empty tokenizer."""
_ANY_TEXT = "A cat's  Photo: ÄÖ é, 3.14 <b>2nd</b>\nof 東京!"
"""A text that tokenizers of the same vocabulary divide alike only if they treat capitals, accents and spaces alike."""
T5_TOKENS = 256  # tokens of a text, as in SD3's training and in its pipeline


class Encoded(NamedTuple):
    """What a text encoder returns for a text.

    Attributes:
        last: The last hidden states, (1, n, width).
        before: The last but one hidden states, (1, n, width).
        summary: The summary, (1, d): projected, or as pooled; None if the encoder has none.
        mask: Which of the n are tokens of the text, (1, n) int64, and not there to fill it up.
    """

    last: Tensor
    before: Tensor
    summary: Tensor | None
    mask: Tensor


class TextEncoder:
    """A tokenizer and its text encoder, from two components of a pipeline.

    Attributes:
        folder: The folder of the text encoder.
        width: The width of the hidden states.
        summarizes: Whether the encoder returns a projected summary.
    """

    def __init__(
        self,
        folder: Path,
        index: Mapping[str, Any],
        number: str = "",
        *,
        kinds: tuple[str, ...] = (*CLIPS, *T5),
        longest: int | None = None,
        masked: bool | None = None,
        filled: bool = True,
        cut: bool = False,
    ) -> None:
        """Read a tokenizer and its text encoder.

        Args:
            folder: The folder of the pipeline.
            index: The content of model_index.json.
            number: The suffix of the two components' names: "", "_2" or "_3".
            kinds: The classes that the encoder may be of.
            longest: The tokens of the longest text; by default as many as the tokenizer and the encoder take.
            masked: Whether the encoder is told which tokens only fill up a text; by default as its config says.
            filled: Whether texts are filled up to the longest one.
            cut: Whether the tokens beyond the longest text are left out, where otherwise the text is refused.

        Raises:
            InputError: If a component is missing, damaged or unknown, or if the two do not belong together.
        """
        self._tokenizer = _tokenizer(folder, index, f"tokenizer{number}")
        if self._tokenizer.padding_side != "right":  # as Gemma's; an object in memory stays as it is
            self._tokenizer = copy.deepcopy(self._tokenizer)
            self._tokenizer.padding_side = "right"
        words = len(self._tokenizer)
        where = folder / f"text_encoder{number}"
        kind = _named(folder, index, where.name, kinds)
        make, config = class_of("transformers", kind), config_of(where)
        self._encoder = made(lambda: make(make.config_class.from_dict(config)), where)
        its: Any = self._encoder.config
        its = its.get_text_config() if kind in QWEN else its
        if words > its.vocab_size:
            raise InputError(
                f"{folder / f'tokenizer{number}'} has {words} tokens, but {where} has only {its.vocab_size}: "
                "copy both from one pipeline"
            )
        self.width: int = its.hidden_size
        self.summarizes = kind == "CLIPTextModelWithProjection"
        most = self._tokenizer.model_max_length if longest is None else longest
        self._longest = min(most, getattr(its, "max_position_embeddings", longest or T5_TOKENS))
        self._masked = bool(config.get("use_attention_mask")) if masked is None else masked
        self._filled, self._cut = filled, cut

    @property
    def network(self) -> nn.Module:
        """The encoder."""
        return self._encoder

    @property
    def settings(self) -> dict[str, Any]:
        """What decides, besides the weights, what a text is to the network: JSON-able."""
        return {
            "encoder": changed_settings(self._encoder),
            "masked": self._masked,
            "words": sorted(self._tokenizer.get_vocab().items()),
            "a text": self._tokenizer(_ANY_TEXT, truncation=True, max_length=self._longest).input_ids,
            "no text": self._padded("")[0].tolist(),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, with the encoder as its class, settings and weights.

        transformers adds functions to an encoder that cannot be pickled.
        """
        encoder = self._encoder
        parts = (type(encoder).__name__, encoder.config, encoder.state_dict())
        return {**self.__dict__, "_encoder": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kind, config, weights = state["_encoder"]
        encoder = getattr(library("transformers"), kind)(config)
        encoder.load_state_dict(weights)
        self.__dict__.update(state, _encoder=encoder.eval().requires_grad_(False))

    def _padded(self, text: str, longest: int | None = None) -> tuple[Tensor, Tensor]:
        """The tokens of a text and their mask, (1, n) each, filled up to the longest text."""
        tokens = self._tokenizer(
            text,
            padding="max_length" if self._filled else False,
            max_length=longest or self._longest,
            truncation=self._cut,
            return_tensors="pt",
        )
        return tokens.input_ids, tokens.attention_mask

    def count(self, text: str) -> int:
        """The number of tokens of a text, with those for start and end."""
        return len(self._tokenizer(text).input_ids)

    def __call__(self, text: str, around: str = "{}", longest: int | None = None) -> Encoded:
        """Encode a text.

        Args:
            text: The text.
            around: What the pipeline puts around it, with {} in its place.
            longest: The tokens of the longest text with what is around it; by default the encoder's.

        Returns:
            What the encoder returns.

        Raises:
            InputError: If the text is too long.
        """
        whole, longest = around.replace("{}", text), longest or self._longest
        if not self._cut and (count := self.count(whole)) > longest:
            raise InputError(
                f"the prompt {text[:40] + '...'!r} has {count} tokens, with those that are put around it, but this "
                f"model takes at most {longest}: shorten it"
            )
        ids, mask = (part.to(next(self._encoder.parameters()).device) for part in self._padded(whole, longest))
        with torch.no_grad():
            found = self._encoder(ids, attention_mask=mask if self._masked else None, output_hidden_states=True)
        summary = getattr(found, "text_embeds" if self.summarizes else "pooler_output", None)
        last = getattr(found, "last_hidden_state", found.hidden_states[-1])
        return Encoded(last, found.hidden_states[-2], summary, mask)


@dataclass(frozen=True)
class One:
    """Stable Diffusion's text encoder: a text -> hidden states (1, n, width)."""

    encoder: TextEncoder

    def __call__(self, text: str) -> Given:
        return (self.encoder(text).last,)


@dataclass(frozen=True)
class Masked:
    """A text encoder whose network is told where the text ends: a text -> hidden states (1, n, width), mask (1, n).

    Attributes:
        encoder: The encoder.
        lower: Whether texts are put in lower case, and white space around them is left out.
    """

    encoder: TextEncoder
    lower: bool = False

    def __call__(self, text: str) -> Given:
        found = self.encoder(text.lower().strip() if self.lower else text)
        return found.last, found.mask


@dataclass(frozen=True)
class Two:
    """SDXL's text encoders: a text -> hidden states (1, n, widths) and summary (1, d)."""

    first: TextEncoder
    second: TextEncoder

    def __call__(self, text: str) -> Given:
        first, second = self.first(text), self.second(text)
        assert second.summary is not None
        return torch.cat([first.before, second.before], dim=2), second.summary


@dataclass(frozen=True)
class Three:
    """SD3's text encoders: a text -> hidden states (1, n, width) and summaries (1, d). Zeros replace a missing T5."""

    first: TextEncoder
    second: TextEncoder
    third: TextEncoder | None
    width: int

    def __call__(self, text: str) -> Given:
        first, second = self.first(text), self.second(text)
        assert first.summary is not None
        assert second.summary is not None
        both = torch.cat([first.before, second.before], dim=2)
        last = self.third(text).last if self.third else both.new_zeros(1, T5_TOKENS, self.width)
        states = torch.cat([pad(both, (0, self.width - both.shape[2])), last], dim=1)
        return states, torch.cat([first.summary, second.summary], dim=1)


def one(folder: Path, index: Mapping[str, Any]) -> tuple[Embed, list[TextEncoder]]:
    """Read Stable Diffusion's text encoder."""
    encoder = TextEncoder(folder, index)
    return One(encoder), [encoder]


def two(folder: Path, index: Mapping[str, Any]) -> tuple[Embed, list[TextEncoder]]:
    """Read SDXL's two text encoders."""
    first, second = TextEncoder(folder, index), _summarizing(folder, index, "_2")
    return Two(first, second), [first, second]


def three(folder: Path, index: Mapping[str, Any], width: int) -> tuple[Embed, list[TextEncoder]]:
    """Read SD3's two or three text encoders.

    Args:
        folder: The folder of the pipeline.
        index: The content of model_index.json.
        width: The width of the hidden states that the network takes.

    Returns:
        The function from a text to the network's inputs, and the encoders.

    Raises:
        InputError: If a component is missing, damaged or unknown, or if the encoders are wider than the network.
    """
    first, second = _summarizing(folder, index, ""), _summarizing(folder, index, "_2")
    third = TextEncoder(folder, index, "_3") if has(index, "text_encoder_3") else None
    widths = [first.width + second.width, *([third.width] if third else [])]
    if widths[0] > width or any(last != width for last in widths[1:]):
        gives = " and ".join(map(str, widths))
        raise InputError(
            f"{folder}: the network takes texts of width {width}, but the text encoders return {gives}: copy the whole "
            "folder"
        )
    return Three(first, second, third, width), [first, second, *([third] if third else [])]


def has(index: Mapping[str, Any], part: str) -> bool:
    """Return whether a pipeline has a component. model_index.json lists a missing component as [null, null]."""
    named = index.get(part)
    return isinstance(named, list) and len(named) == 2 and isinstance(named[1], str)


def _summarizing(folder: Path, index: Mapping[str, Any], number: str) -> TextEncoder:
    encoder = TextEncoder(folder, index, number)
    if not encoder.summarizes:
        raise InputError(
            f"{folder / f'text_encoder{number}'} must be a CLIPTextModelWithProjection, because this pipeline uses its "
            "summary: copy the whole folder"
        )
    return encoder


def _named(folder: Path, index: Mapping[str, Any], part: str, known: tuple[str, ...]) -> str:
    """Return the class of a component. Raises InputError if the component is missing or its class is unknown."""
    if not has(index, part) or not (folder / part).is_dir():
        raise InputError(f"{folder} has no {part}, which the network needs for prompts: copy the whole folder")
    kind = str(index[part][1])
    if kind not in known:
        raise InputError(f"{folder} names a {kind} as its {part}, but odeddim supports only {', '.join(known)}")
    return kind


def _tokenizer(folder: Path, index: Mapping[str, Any], part: str) -> Any:
    kind = _named(folder, index, part, TOKENIZERS)
    if (held := object_at(folder / part)) is not None:
        return held
    if not any(all((folder / part / name).is_file() for name in names) for names in VOCABULARIES):
        known = ", or ".join(" and ".join(names) for names in VOCABULARIES)
        raise InputError(f"{folder / part} has no vocabulary ({known}): copy the whole folder")
    make = class_of("transformers", kind)
    try:
        return make.from_pretrained(str(folder / part), local_files_only=True)
    except Exception as error:  # a parser of foreign files may raise any type
        raise InputError(f"{folder / part} cannot be read as a tokenizer ({line(error)}): copy it again") from error
