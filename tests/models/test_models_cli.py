"""Models of other software on the command line: what is said of them, and what their latents depend on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import test_diffusers_models
import test_exported
import torch
from click.testing import CliRunner
from PIL import Image
from support import command

import odeddim
from odeddim.cli import group
from odeddim.types import InputError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three images of 8×8."""
    (tmp_path / "im").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (60 * i, 90, 200 - 50 * i)).save(tmp_path / "im" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, refused: str = "") -> str:
    result = CliRunner().invoke(group, list(arguments))
    if refused:
        assert isinstance(result.exception, InputError), (result.output, result.exception)
        assert refused in str(result.exception)
        return str(result.exception)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


SHORT = ("--steps", "4", "--solver", "ab2")


def test_a_program_keeps_its_own_dtype(here: Path) -> None:
    """The command line's dtype is for networks that have a choice."""
    net = test_exported.drawn(test_exported.Toy())
    test_exported.saved(here, net.double(), dtype=torch.float64)
    run("encode", "im", "-o", "z.h5", "--model", "network.pt2", *SHORT)
    run("decode", "z.h5", "-o", "out")
    run("encode", "im", "-o", "y.h5", "--model", "network.pt2", *SHORT, "--dtype", "float32", refused="leave out dtype")
    torch.jit.script(test_exported.drawn(test_exported.Toy())).save("script.pt")
    Path("script.json").write_text(json.dumps({**test_exported.SAID, "shape": [3, 8, 8]}))
    run("encode", "im", "-o", "x.h5", "--model", "script.pt", *SHORT)
    run("decode", "x.h5", "-o", "out2")


def test_a_link_is_a_model_by_its_own_name(here: Path) -> None:
    """As in caches, where NAME.pt2 leads to a file without a suffix."""
    test_exported.saved(here, test_exported.drawn(test_exported.Toy()))
    (here / "blobs").mkdir()
    Path("network.pt2").rename(here / "blobs" / "0123abcd")
    Path("network.pt2").symlink_to(here / "blobs" / "0123abcd")
    run("encode", "im", "-o", "z.h5", "--model", "network.pt2", *SHORT)
    run("decode", "z.h5", "-o", "out")


def test_settings_changed_after_encoding_are_refused(here: Path) -> None:
    folder = test_diffusers_models.saved(here / "model", test_diffusers_models.network())
    said = command("encode", "im", "-o", "z.h5", "--model", "model", *SHORT)
    assert "UNet2DModel" in said
    assert "predicts eps" in said
    config = folder / "unet" / "config.json"
    kept = config.read_text()
    config.write_text(json.dumps({**json.loads(kept), "norm_eps": 0.5}))
    run("decode", "z.h5", "-o", "out", refused="have changed since")
    config.write_text(kept)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    run("decode", "z.h5", "-o", "out", refused="was made with predicts eps, but")


def test_who_is_none_belongs_to_the_model(here: Path) -> None:
    test_exported.saved(here, test_exported.drawn(test_exported.Toy(classes=4)), classes=True, said=said(null=3))
    run("encode", "im", "-o", "z.h5", "--model", "network.pt2", *SHORT, "--label", "1", "--guidance", "2")
    Path("network.json").write_text(json.dumps(said(null=0)))
    run("decode", "z.h5", "-o", "out", refused="have changed since")


def said(**more: int) -> dict[str, object]:
    return {**test_exported.SAID, "classes": 4, **more}


def test_inspect_takes_what_load_takes(here: Path) -> None:
    test_diffusers_models.saved(here / "model", test_diffusers_models.network(num_class_embeds=5))
    for path in ("model", "model/model_index.json", "model/unet"):
        facts = json.loads(run("inspect", path, "--json"))
        assert facts["takes"] == "5 classes"
        assert facts["shape"] == [3, 8, 8]
        assert "UNet2DModel" in facts["found"]
    assert odeddim.load("model").sha256 == odeddim.load("model/unet").sha256
