"""The manual's table of formats: each line of code runs, on a file of that format, and gives a field that encodes."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import test_diffusers_models
import test_edm
import test_edm2
import test_exported
import test_flow_matching
import test_guided
import test_k_diffusion
import test_latent_diffusion
import test_onnx
import test_score_sde
import test_video_models

import odeddim
from odeddim.models.formats import native
from odeddim.models.networks.unet import UNet

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Formats\n")[2].partition("\n## ")[0]
LINES = re.findall(r"^\|[^|]*\| `(odeddim\..*)` \|$", SECTION, re.MULTILINE)


class Net(torch.nn.Module):
    """A network for those that are called with (x, t) or (x, t, y)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        h: torch.Tensor = self.conv(x) + torch.sin(t)[:, None, None, None]
        return h if y is None else h + y[:, None, None, None] / 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One checkpoint of each format, under the names of the table."""
    here = tmp_path_factory.mktemp("formats")
    shutil.copytree(native.BUILT_IN / "fashion-mnist", here / "MODEL")
    unet = UNet(in_channels=3, image_size=32, channels=32, multipliers=(1, 2), blocks=1, attention=(16,), groups=32)
    state = unet.state_dict()
    torch.save([state, {}, 3, 1000, state], here / "model-790000.ckpt")
    diffusers.DDPMPipeline(unet=test_diffusers_models.network(), scheduler=diffusers.DDPMScheduler()).save_pretrained(
        here / "ddpm-cifar10-32"
    )
    test_latent_diffusion.stable_diffusion(here / "sd", diffusers.DDIMScheduler(**test_latent_diffusion.AS_SD))
    (here / "sd" / "model").rename(here / "stable-diffusion")
    scheduler = diffusers.CogVideoXDDIMScheduler(**test_video_models.PUBLISHED)
    test_video_models.cogvideox(here / "video", scheduler)
    (here / "video" / "model").rename(here / "cogvideox")
    test_guided.saved(here, test_guided.network("guided"), "64x64_mine.pt")
    (here / "code").mkdir()
    (here / "code" / "torch_utils_of_test.py").write_text(textwrap.dedent(test_edm.CODE))
    sys.path.insert(0, str(here / "code"))
    edm = importlib.import_module("torch_utils_of_test")
    (here / "edm-cifar10.pkl").write_bytes(pickle.dumps({"ema": edm.EDMPrecond(8, 3)}))
    test_edm2.saved(here, test_edm2.drawn(), "edm2-img64-s.pt")
    test_score_sde.saved(here, "ve/cifar10_ncsnpp_continuous")
    test_k_diffusion.saved(here, test_k_diffusion.config())
    test_flow_matching.saved(here, "cifar10")
    test_onnx.saved(here, test_onnx.Network().file()).rename(here / "net.onnx")
    test_exported.saved(here, test_exported.drawn(test_exported.Toy()))
    (here / "network.pt2").rename(here / "net.pt2")
    (here / "network.json").rename(here / "net.json")
    yield here
    sys.path.remove(str(here / "code"))
    sys.modules.pop("torch_utils_of_test")


def test_the_table_is_there() -> None:
    assert len(LINES) == 20
    assert SECTION.count("\n| ") == len(LINES) + 1  # and its head


@pytest.mark.parametrize("line", LINES)
def test_each_line_gives_a_field_that_encodes(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if ".onnx" in line:
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    names: dict[str, Any] = {"odeddim": odeddim, "net": Net(), "told": Net(), "denoiser": Net()}
    names |= {"unet": test_diffusers_models.network(), "scheduler": diffusers.DDPMScheduler()}
    names |= {"pipe": diffusers.DDPMPipeline(names["unet"], names["scheduler"])}
    field = eval(line, names)
    assert isinstance(field, odeddim.VectorField)
    assert field.describe()
    if line.startswith("odeddim.load"):
        assert len(field.sha256) == 64
    shape = field.codec.image_shape if field.codec else field.shape or (3, 8, 8)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = odeddim.encode(images, "euler", model=field, steps=2, end="sigma_min")
    assert state.sigma == pytest.approx(field.schedule.sigma_max)
    assert odeddim.decode(state, "euler", model=field, steps=2, end="sigma_min").shape == images.shape
    if ".pt2" in line or ".onnx" in line:  # the network of a program cannot be pickled
        with pytest.raises(odeddim.InputError, match="cannot be pickled"):
            pickle.dumps(field)
    else:
        again = odeddim.encode(images, "euler", model=pickle.loads(pickle.dumps(field)), steps=2, end="sigma_min")
        assert torch.equal(again.xbar, state.xbar)


def test_what_stands_beside_a_checkpoint_is_as_the_table_says(folder: Path) -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    path = folder / "again.pt2"
    shutil.copy(folder / "net.pt2", path)
    said = json.loads(block)
    path.with_suffix(".json").write_text(json.dumps({**said, "shape": [3, 8, 8]}))
    field = odeddim.load(path)
    assert (field.schedule, field.predicts, field.time) == (odeddim.Schedule.cosine(4000), "eps", "index")
    assert set(said) <= {"schedule", "predicts", "time", "shape"}
