"""Small JSON files that odeddim has written: plans, references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from odeddim.types import InputError


def read_json(path: str | Path, what: str, hint: str, *, most: int) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        what: What it should be, a noun, such as "plan".
        hint: How one is made, for the message.
        most: The number of characters that are read: a device may have no end.

    Raises:
        InputError: If the file cannot be read, or is no JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.loads(file.read(most))
    except OSError as error:
        raise InputError(f"the {what} {path} cannot be read ({error.strerror}): check its path and rights") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no {what}: {hint}") from error
