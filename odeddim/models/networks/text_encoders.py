"""Prompts for networks of diffusers' pipelines: tokenizers and text encoders, through transformers.

    Stable Diffusion 1, 2   CLIP's last hidden states
    SDXL (2307.01952)       the last but one of two CLIPs side by side; the second's projected summary; six sizes
    SD3 (2403.03206)        the same two, widened with zeros, and T5's after them; both projected summaries

Encoders run in float32 on the CPU, those of a pipeline in memory in its dtype on its device: once for a text, however
many images there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from odeddim.models.components import changed_settings, config_of, library, made, object_at
from odeddim.models.weights import line
from odeddim.ode.conditions import Given
from odeddim.types import InputError

Embed = Callable[[str], Given]
"""A text -> what the network takes for it."""

ENCODERS = {
    "CLIPTextModel": "CLIPTextConfig",
    "CLIPTextModelWithProjection": "CLIPTextConfig",
    "T5EncoderModel": "T5Config",
}
"""Class -> the class of its settings."""
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""The files of a tokenizer, any of these. Without them transformers would make one that knows no words."""
_ANY_TEXT = "A cat's  Photo: ÄÖ é, 3.14 <b>2nd</b>\nof 東京!"
"""A text that tokenizers of the same vocabulary divide alike only if they treat capitals, accents and spaces alike."""
T5_TOKENS = 256  # of a text, as SD3 was trained to read and its pipeline gives


class TextEncoder:
    """A tokenizer and its encoder, from two parts of a pipeline. `width`: of its hidden states."""

    def __init__(self, folder: Path, index: Mapping[str, Any], number: str = "") -> None:
        """number: "", "_2" or "_3", which of the pipeline's. Raises InputError for parts that are missing."""
        self._tokenizer = _tokenizer(folder, index, f"tokenizer{number}")
        tokens = len(self._tokenizer)
        where = folder / f"text_encoder{number}"
        kind = _named(folder, index, where.name, tuple(ENCODERS))
        transformers, config = library("transformers"), config_of(where)
        settings = getattr(transformers, ENCODERS[kind])
        self._encoder = made(lambda: getattr(transformers, kind)(settings.from_dict(config)), where)
        its: Any = self._encoder.config
        if tokens > its.vocab_size:
            raise InputError(
                f"{folder / f'tokenizer{number}'} knows {tokens} tokens, but {where} {its.vocab_size}: "
                "they do not belong together"
            )
        self.width: int = its.hidden_size
        self.summarizes = kind == "CLIPTextModelWithProjection"
        positions = getattr(its, "max_position_embeddings", T5_TOKENS)
        self._longest = min(self._tokenizer.model_max_length, positions)
        self._masked = bool(config.get("use_attention_mask"))

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
        """What is pickled: the encoder as its class, settings and weights, for transformers hooks functions into it."""
        encoder = self._encoder
        parts = (type(encoder).__name__, encoder.config, encoder.state_dict())
        return {**self.__dict__, "_encoder": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kind, config, weights = state["_encoder"]
        encoder = getattr(library("transformers"), kind)(config)
        encoder.load_state_dict(weights)
        self.__dict__.update(state, _encoder=encoder.eval().requires_grad_(False))

    def _padded(self, text: str) -> tuple[Tensor, Tensor]:
        """The tokens of a text and their mask, (1, n) each, filled up to the longest text."""
        tokens = self._tokenizer(text, padding="max_length", max_length=self._longest, return_tensors="pt")
        return tokens.input_ids, tokens.attention_mask

    def __call__(self, text: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last hidden states (1, n, width), those before, and the projected summary (1, d) if it makes one.

        Raises:
            InputError: for a text that is too long.
        """
        tokens = self._tokenizer(text, return_tensors="pt")
        if tokens.input_ids.shape[1] > self._longest:
            raise InputError(
                f"the prompt {text[:40] + '...'!r} is {tokens.input_ids.shape[1]} tokens long, its ends among them, "
                f"but this model reads {self._longest}: make it shorter"
            )
        ids, mask = (part.to(next(self._encoder.parameters()).device) for part in self._padded(text))
        with torch.no_grad():
            found = self._encoder(ids, attention_mask=mask if self._masked else None, output_hidden_states=True)
        return found.last_hidden_state, found.hidden_states[-2], getattr(found, "text_embeds", None)


@dataclass(frozen=True)
class One:
    """Stable Diffusion's: a text -> hidden states (1, n, width)."""

    encoder: TextEncoder

    def __call__(self, text: str) -> Given:
        return (self.encoder(text)[0],)


@dataclass(frozen=True)
class Two:
    """SDXL's: a text -> hidden states (1, n, widths), summary (1, d), and the sizes (1, 6) int64 that it is told."""

    first: TextEncoder
    second: TextEncoder
    sizes: tuple[int, ...]

    def __call__(self, text: str) -> Given:
        (_, states, _), (_, more, summary) = self.first(text), self.second(text)
        assert summary is not None
        return torch.cat([states, more], dim=2), summary, torch.tensor([self.sizes])


@dataclass(frozen=True)
class Three:
    """SD3's: a text -> hidden states (1, n, width) and summaries (1, d). Without a T5 its states are zeros."""

    first: TextEncoder
    second: TextEncoder
    third: TextEncoder | None
    width: int

    def __call__(self, text: str) -> Given:
        (_, states, summary), (_, more, another) = self.first(text), self.second(text)
        assert summary is not None
        assert another is not None
        both = torch.cat([states, more], dim=2)
        last = self.third(text)[0] if self.third else both.new_zeros(1, T5_TOKENS, self.width)
        states = torch.cat([pad(both, (0, self.width - both.shape[2])), last], dim=1)
        return states, torch.cat([summary, another], dim=1)


def one(folder: Path, index: Mapping[str, Any]) -> tuple[Embed, list[TextEncoder]]:
    """Stable Diffusion's text encoder."""
    encoder = TextEncoder(folder, index)
    return One(encoder), [encoder]


def two(folder: Path, index: Mapping[str, Any], sizes: tuple[int, ...]) -> tuple[Embed, list[TextEncoder]]:
    """SDXL's two text encoders.

    Args:
        folder: of the pipeline.
        index: what its model_index.json says.
        sizes: height and width of the image before cropping, top and left of the crop, height and width after it.
    """
    first, second = TextEncoder(folder, index), _summarizing(folder, index, "_2")
    return Two(first, second, sizes), [first, second]


def three(folder: Path, index: Mapping[str, Any], width: int) -> tuple[Embed, list[TextEncoder]]:
    """SD3's two or three text encoders. width: of the texts that the network takes."""
    first, second = _summarizing(folder, index, ""), _summarizing(folder, index, "_2")
    third = TextEncoder(folder, index, "_3") if has(index, "text_encoder_3") else None
    widths = [first.width + second.width, *([third.width] if third else [])]
    if widths[0] > width or any(last != width for last in widths[1:]):
        gives = " and ".join(map(str, widths))
        raise InputError(f"{folder}: its network takes texts of width {width}, but its text encoders give {gives}")
    return Three(first, second, third, width), [first, second, *([third] if third else [])]


def has(index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline has this part: model_index.json lists those it has not as [null, null]."""
    named = index.get(part)
    return isinstance(named, list) and len(named) == 2 and isinstance(named[1], str)


def _summarizing(folder: Path, index: Mapping[str, Any], number: str) -> TextEncoder:
    encoder = TextEncoder(folder, index, number)
    if not encoder.summarizes:
        raise InputError(
            f"{folder / f'text_encoder{number}'} must be a CLIPTextModelWithProjection: this pipeline takes its summary"
        )
    return encoder


def _named(folder: Path, index: Mapping[str, Any], part: str, known: tuple[str, ...]) -> str:
    """The class of a part. Raises InputError where it is missing, or none of those known."""
    if not has(index, part) or not (folder / part).is_dir():
        raise InputError(f"{folder} has no {part}, which its network needs for prompts: copy the whole folder")
    kind = str(index[part][1])
    if kind not in known:
        raise InputError(f"{folder} names a {kind} as its {part}: odeddim reads {', '.join(known)}")
    return kind


def _tokenizer(folder: Path, index: Mapping[str, Any], part: str) -> Any:
    kind = _named(folder, index, part, TOKENIZERS)
    if (held := object_at(folder / part)) is not None:
        return held
    if not any(all((folder / part / name).is_file() for name in names) for names in VOCABULARIES):
        known = ", or ".join(" and ".join(names) for names in VOCABULARIES)
        raise InputError(f"{folder / part} has no vocabulary ({known}): copy the whole folder")
    transformers = library("transformers")
    try:
        return getattr(transformers, kind).from_pretrained(str(folder / part), local_files_only=True)
    except Exception as error:  # a parser of foreign files: whatever it raises means the same
        raise InputError(f"{folder / part} holds no readable tokenizer ({line(error)}): copy it again") from error
