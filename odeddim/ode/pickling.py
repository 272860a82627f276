"""A check that the parts of a field can be pickled, before anything is written."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch

from odeddim.types import InputError


def check_pickles(name: str, parts: Mapping[str, Any]) -> None:
    """Raise an InputError for the first part of a model that cannot be pickled.

    pickle itself would name an inner object ("Can't pickle local object ..."), not the model that it belongs to.

    Args:
        name: The name of the model.
        parts: The parts, by the name that a message gives them.

    Raises:
        InputError: If a part cannot be pickled.
    """
    for called, part in parts.items():
        try:
            _Structure(_Nowhere(), pickle.HIGHEST_PROTOCOL).dump(part)
        except InputError:
            raise
        except Exception as error:  # whatever the part's own code raises
            words = " ".join(str(error).split())[:200]
            raise InputError(
                f"the {called} of the model {name!r} cannot be pickled ({words}): load the model where it is needed, "
                "or make it of classes and functions that are defined at the top of a module"
            ) from error


class _Structure(pickle.Pickler):
    """A pickler of everything but the numbers in tensors, which can always be pickled and take most of the time."""

    def persistent_id(self, part: Any) -> str | None:
        return "tensor" if isinstance(part, torch.Tensor) else None


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)
