"""The settings of a row, read from the signature of the function that has them: each default is stated there only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def defaults_of(function: Callable[..., Any], *names: str) -> dict[str, Any]:
    """The defaults of these keyword arguments of a function, for `Solver.settings`.

    Args:
        function: A run function or a plan function, or a `functools.partial` of one, whose values take precedence.
        *names: The keyword arguments that are settings; a function may have others that only its rows fix.

    Returns:
        {name: default}, in the order of the names.
    """
    parameters = inspect.signature(function).parameters
    return {name: parameters[name].default for name in names}
