"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

import odeddim
from odeddim.types import InputError


def refused(path: Path, *words: str) -> None:
    """Loading this file or folder is an InputError of one line that names it and says these words."""
    with pytest.raises(InputError) as caught:
        odeddim.load(path)
    sentence = str(caught.value)
    assert str(path.parent / path.stem) in sentence, sentence
    assert "\n" not in sentence, sentence
    for word in words:
        assert word in sentence, sentence
