"""The form of a network: autocast, channels last, compiled. Its bits are other ones, so files say it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import odeddim
from odeddim.jobs import Machine
from odeddim.latents.latent_file import LatentFile
from odeddim.models.networks.unet import UNet
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

IMAGES = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Convolutions(nn.Module):
    """A network that notes how it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.seen: set[tuple[bool, torch.dtype]] = set()
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = self.first(x)
        self.seen.add((x.is_contiguous(memory_format=torch.channels_last), hidden.dtype))
        return 0.5 * x + 0.1 * self.last(torch.tanh(hidden))


def field(**form: Any) -> VectorField:
    dtype = form.pop("dtype", None)
    return VectorField(Convolutions(), Schedule.linear(), shape=(2, 8, 8), name="mine").to("cpu", dtype, **form)


def latent(model: VectorField) -> Tensor:
    return odeddim.encode(IMAGES, "ab2", model=model, steps=6).xbar


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize(
    ("form", "seen", "most"),
    [
        ({"channels_last": True}, (True, torch.float32), 1e-6),
        ({"dtype": "autocast-bfloat16"}, (False, torch.bfloat16), 1e-2),
        ({"dtype": "autocast-float16"}, (False, torch.float16), 1e-3),
        ({"dtype": "autocast-bfloat16", "channels_last": True}, (True, torch.bfloat16), 1e-2),
    ],
)
def test_a_form_is_how_the_network_is_evaluated(form: dict[str, Any], seen: Any, most: float) -> None:
    plain, other = field(), field(**form)
    found = latent(other)
    assert other.eps.seen == {seen}
    assert relative(found, latent(plain)) < most
    assert found.is_contiguous()
    assert (found.dtype, other.dtype) == (torch.float32, torch.float32)  # of the state, and of the weights
    other.to("cpu", "float32", channels_last=False)
    assert torch.equal(latent(other), latent(plain))


def test_fields_that_share_a_network_share_its_form_and_copies_keep_it() -> None:
    model = field(dtype="autocast-bfloat16", channels_last=True, compile=True)
    assert model.conditioned().form is model.form
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.form == model.form
        assert twin.form is not model.form


@pytest.mark.parametrize("argument", ["compile", "channels_last"])
def test_only_modules_have_another_form(argument: str) -> None:
    model = VectorField(lambda x, t: x, Schedule.linear(), name="mine")
    with pytest.raises(InputError, match=f"'mine' is no module of torch .* leave out {argument}=True"):
        model.to("cpu", **{argument: True})


def compiles(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a stand-in in the place of torch.compile: like a graph of CUDA it writes all its answers into one place."""
    asked: list[dict[str, Any]] = []

    def stand_in(network: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        asked.append(options)
        place: list[Tensor] = []

        def answer(x: Tensor, *rest: Tensor) -> Tensor:
            out = network(x, *rest)
            if not place:
                place.append(out.clone())
            return place[0].copy_(out)

        return answer

    monkeypatch.setattr(torch, "compile", stand_in)
    return asked


def test_the_network_alone_is_compiled_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compiles(monkeypatch)
    model = field(compile=True)
    model.network_batch = 3
    latent(model)
    latent(model)
    assert asked == [{"dynamic": False, "mode": None}]


def test_a_compiler_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    error = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def fails(*_: Any, **__: Any) -> Any:
        def answer(*_: Any) -> Any:
            raise error("No working C++ compiler found\nlong story")

        return answer

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(InputError, match=r"\(InductorError: No working C\+\+ compiler found\): leave out compile=True"):
        latent(field(compile=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small U-Net."""
    folder = tmp_path_factory.mktemp("model")
    settings = {"in_channels": 1, "image_size": 8, "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
    torch.manual_seed(0)
    network = UNet(**settings)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.1)
    save_file(network.state_dict(), folder / "model.safetensors")
    about = {"format": "odeddim unet", "version": 1, "architecture": settings, "predicts": "eps"}
    about["schedule"] = Schedule.linear().to_dict()
    (folder / "model.json").write_text(json.dumps(about))
    return folder


def encoded(model: Path, output: Path, **form: Any) -> dict[str, Any]:
    """The details of a latent file that is made with a form."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    np.save(output.with_suffix(".npy"), images)
    machine = Machine("cpu", network_batch=2, **form)
    odeddim.jobs.encode(output.with_suffix(".npy"), output, model=model, steps=4, machine=machine)
    with LatentFile(output) as file:
        return dict(file.provenance.details)


def came_back(folder: Path) -> bool:
    """Whether x.npz has the pixels of z.npy: with other bits of the network they would be off by much more."""
    with np.load(folder / "x.npz") as file:
        pixels = (file["images"].reshape(4, 8, 8).astype(np.float64) + 1) * 127.5
    return float(np.abs(pixels - np.load(folder / "z.npy")).max()) < 1e-4


def test_a_latent_file_says_the_form_and_decodes_by_it(model: Path, tmp_path: Path) -> None:
    plain = encoded(model, tmp_path / "plain.h5")
    assert not {"compile", "channels_last"} & set(plain)
    found = encoded(model, tmp_path / "z.h5", channels_last=True, dtype="autocast-bfloat16")
    assert (found["channels_last"], found["dtype"]) == (True, "autocast-bfloat16")
    odeddim.jobs.decode(tmp_path / "z.h5", tmp_path / "x.npz")
    assert came_back(tmp_path)
    with pytest.warns(UserWarning, match="channels last False where it was True"):
        odeddim.jobs.decode(tmp_path / "z.h5", tmp_path / "y.npz", machine=Machine(channels_last=False))


@pytest.mark.slow  # torch compiles a network: about 20 seconds of a core
def test_a_compiled_network_comes_back_bit_for_bit(model: Path, tmp_path: Path) -> None:
    found = encoded(model, tmp_path / "z.h5", compile=True)
    assert found["compile"] is True
    encoded(model, tmp_path / "plain.h5")
    with LatentFile(tmp_path / "z.h5") as file, LatentFile(tmp_path / "plain.h5") as plain:
        parts = [torch.from_numpy(it.rows(0, 4)["xbar"]) for it in (file, plain)]
    assert relative(*parts) < 1e-4
    odeddim.jobs.decode(tmp_path / "z.h5", tmp_path / "x.npz")
    assert came_back(tmp_path)
