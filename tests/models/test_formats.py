"""Formats are found by name, and imported when a path is tried: a built-in model loads none but its own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from odeddim import models
from odeddim.models import formats

FILES = sorted(path.stem for path in Path(formats.__path__[0]).glob("*.py") if path.stem != "__init__")


def test_every_file_is_named_and_is_a_format() -> None:
    assert sorted(models.FORMATS) == FILES
    for name in FILES:
        module = importlib.import_module(f"odeddim.models.formats.{name}")
        assert callable(module.matches)
        assert callable(module.read)


def loaded_by(line: str) -> set[str]:
    """What a line of code after `import odeddim` makes Python import."""
    code = f"import sys, odeddim\n{line}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["fashion-mnist", "exact-mixture"])
def test_a_built_in_model_imports_no_other_format(name: str) -> None:
    found = loaded_by(f"odeddim.load({name!r})")
    assert {one for one in FILES if f"odeddim.models.formats.{one}" in found} <= {"native"}
    assert not found & {"diffusers", "transformers"}
    assert "odeddim.models" in found


def test_a_path_imports_formats_up_to_its_own(tmp_path: Path) -> None:
    """Nor diffusers or transformers, which only some of the models need."""

    def tried(name: str) -> set[str]:
        path = tmp_path / name
        path.write_bytes(b"")
        return loaded_by(
            f"from pathlib import Path; from odeddim.models import format_of; format_of(Path({str(path)!r}))"
        )

    found = tried("net.pkl")
    first = models.FORMATS[: models.FORMATS.index("edm") + 1]
    assert {one for one in FILES if f"odeddim.models.formats.{one}" in found} == set(first)
    found = tried("net.xyz")
    assert all(f"odeddim.models.formats.{one}" in found for one in FILES)
    assert not found & {"diffusers", "transformers"}
