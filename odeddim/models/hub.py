"""Models of Hugging Face's hub, hf:ORG/NAME or hf:ORG/NAME@REVISION, through its library huggingface_hub.

Only what a format reads is downloaded: settings, one set of weights for each part (safetensors where there are some),
tokenizers. Files lie in that library's cache, and its environment variables hold (HF_HOME, HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE). What is in the cache is used where the hub cannot be reached, and a model at a commit, which never
changes, is not asked for again.
"""

from __future__ import annotations

import glob
import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from odeddim.models import components
from odeddim.models.weights import line
from odeddim.ode.field import VectorField
from odeddim.types import InputError

PREFIX = "hf:"

_EXAMPLE = "hf:google/ddpm-cifar10-32"
_FORMATS = ("native", "latent_diffusion", "diffusers_unet")  # those of folders, in the order in which they are tried
_SETTINGS = ("config.json", "scheduler_config.json")
_ROOT = ("model_index.json", "odeddim.json", "model.json", *_SETTINGS)
_PARTS = (
    *("scheduler", "unet", "unet_ema", "transformer", "vae", "vqvae"),
    *("text_encoder", "text_encoder_2", "text_encoder_3"),
)
_WHOLE = "tokenizer"  # the beginning of the names of parts that are vocabularies, in files of any name
_COMMIT = re.compile("[0-9a-f]{40}")


def is_named(model: object) -> bool:
    """Whether this is the name of a model of the hub."""
    return isinstance(model, (str, Path)) and str(model).startswith(PREFIX)


def loaded(name: str, load: Callable[[Path], VectorField]) -> VectorField:
    """A model of the hub. Its name is hf:ORG/NAME@COMMIT, by which latent files find it again.

    Args:
        name: hf:ORG/NAME, or hf:ORG/NAME@REVISION with a branch, a tag or a commit.
        load: Loads the model of a folder.

    Returns:
        The model.

    Raises:
        InputError: If there is no such model, or it cannot be had or read.
    """
    folder = fetched(name)
    field = load(folder)
    field.name = f"{PREFIX}{_parsed(name)[0]}@{folder.name}"
    return field


def is_cached(name: str) -> bool:
    """Whether `fetched` gives the model of this name without asking the hub: it names a commit, and all is there."""
    repository, revision = _parsed(name)
    _check_library(name)
    return _COMMIT.fullmatch(revision) is not None and _in_cache(repository, revision) is not None


def fetched(name: str) -> Path:
    """The folder of a model in the cache, with all files that it needs. The folder's own name is the commit.

    Args:
        name: hf:ORG/NAME, or hf:ORG/NAME@REVISION.

    Returns:
        The folder.

    Raises:
        InputError: If the package huggingface_hub is missing, if the hub has no such model or revision or does not
            give it, if it is of no format that odeddim reads, and if the hub cannot be reached and the cache lacks it.
    """
    repository, revision = _parsed(name)
    _check_library(name)
    if _COMMIT.fullmatch(revision) and (folder := _in_cache(repository, revision)):
        return folder
    try:
        return _gathered(repository, revision)
    except InputError:
        raise
    except Exception as error:  # of a network and of other people's code: anything
        from huggingface_hub.errors import RevisionNotFoundError

        if not isinstance(error, RevisionNotFoundError) and (folder := _in_cache(repository, revision)):
            return folder
        raise InputError(_why(name, repository, revision, error)) from error


def _parsed(name: str) -> tuple[str, str]:
    """The repository and the revision that a name says."""
    repository, at, revision = name.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or bool(at) != bool(revision):
        raise InputError(f"{name[:200]!r} is no name of a model of the hub: write {_EXAMPLE}, or {_EXAMPLE}@REVISION")
    return repository, revision or "main"


def _check_library(name: str) -> None:
    try:
        importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(f"{name} needs the package huggingface_hub: pip install 'odeddim[hub]'") from error


def _in_cache(repository: str, revision: str) -> Path | None:
    """The folder of a model, or None if the cache lacks any of it."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _gathered(repository, revision, here=True)
    except (LocalEntryNotFoundError, HFValidationError, InputError):
        return None


def _gathered(repository: str, revision: str, *, here: bool = False) -> Path:
    """The folder of a model, with all of it. here: from the cache alone.

    Settings come first, for they say what else is needed. Weights come last: where they are, a kill has left out
    nothing.
    """
    import huggingface_hub

    def get(names: Iterable[str], of: str) -> Path:
        patterns = [glob.escape(name) for name in names]
        return Path(
            huggingface_hub.snapshot_download(repository, revision=of, allow_patterns=patterns, local_files_only=here)
        )

    def need(names: Iterable[str]) -> None:
        if missing := [name for name in names if not (folder / name).is_file()]:
            get(missing, folder.name)

    folder = get(_ROOT, revision)  # which notes in the cache what commit the revision is
    if here:
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    else:
        told = huggingface_hub.HfApi().model_info(repository, revision=folder.name)
        there = {file.rfilename for file in told.siblings or ()}
    need(there & {f"{part}/{name}" for part in _PARTS for name in _SETTINGS})
    parts = _parts(folder, repository)
    weights = {part: _weights(part, there, repository) for part in parts if not part.startswith(_WHOLE)}
    words = {name for name in there for part in parts if part.startswith(_WHOLE) and _is_in(name, part)}
    need({*words, *(name for name in weights.values() if name.endswith(".json"))})
    pieces = {piece for part, name in weights.items() for piece in _pieces(folder / part, part, name)}
    if lacks := (pieces | {f"{part}/{components.CONFIG}" for part in weights if part}) - there:
        raise InputError(f"{PREFIX}{repository} is not whole, it lacks {min(lacks)}: choose another revision")
    need(pieces)
    return folder


def _parts(folder: Path, repository: str) -> list[str]:
    """The parts of a model that its format reads, by its settings."""
    for name in _FORMATS:
        reader = importlib.import_module(f"odeddim.models.formats.{name}")
        if reader.matches(folder):
            found: list[str] = reader.parts(folder)
            return found
    raise InputError(
        f"{PREFIX}{repository} holds no model that odeddim reads from the hub: neither a pipeline or network of "
        "diffusers, nor a folder that `odeddim train` wrote, see the table of formats in the manual (docs/models.md)"
    )


def _within(part: str, name: str) -> str:
    """The name of a part's file in the repository; the part "" is the repository itself."""
    return f"{part}/{name}" if part else name


def _is_in(name: str, part: str) -> bool:
    return name.rpartition("/")[0] == part


def _weights(part: str, there: Iterable[str], repository: str) -> str:
    """The file of a part's weights, or the file that lists its pieces: the one that `components.files_of` takes."""
    for name in (kind + index for kind in components.WEIGHTS for index in ("", ".index.json")):
        if _within(part, name) in there:
            return _within(part, name)
    raise InputError(
        f"{PREFIX}{repository} has no weights that odeddim reads{part and f' of its {part}'}: neither "
        f"{components.WEIGHTS[0]} nor the like"
    )


def _pieces(folder: Path, part: str, name: str) -> list[str]:
    """The files that weights consist of."""
    return [_within(part, file.name) for file in components.files_of(folder)] if name.endswith(".json") else [name]


def _why(name: str, repository: str, revision: str, error: Exception) -> str:
    """Why a model is not to be had, in a sentence."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms on its page of the hub, and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{PREFIX}{repository} has no revision {revision!r}: give one of its branches, tags or commits"
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return f"the hub has no model {repository!r}, or it is private: check the name, or log in with `hf auth login`"
    lacks = f"{name} is not in the cache of Hugging Face, or not all of it"
    if isinstance(error.__cause__ or error, errors.OfflineModeIsEnabled):
        return f"{lacks}, and HF_HUB_OFFLINE forbids to ask the hub: unset it, or load the model once without it"
    cause = error.__cause__ or error
    return f"{lacks}, and it cannot be downloaded ({type(cause).__name__}: {line(cause)}): check the network"
