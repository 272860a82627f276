"""Programs of torch.export and TorchScript: the numbers of the network exported, and what a program cannot say."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support import refused
from torch import Tensor, nn

import odeddim
from odeddim.models.formats import exported
from odeddim.models.networks.adm import ADM
from odeddim.models.networks.unet import UNet
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

SAID: dict[str, Any] = {"schedule": {"name": "linear", "T": 1000}, "predicts": "eps", "time": "index"}
UNET: dict[str, Any] = {"in_channels": 3, "image_size": 8, "channels": 8, "multipliers": [1, 2], "attention": [4]}


def drawn(net: nn.Module) -> nn.Module:
    chance = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2, generator=chance)
    return net.eval().requires_grad_(False)


class Toy(nn.Module):
    """Convolution, label, class; everything that an answer can depend on."""

    def __init__(self, out: int = 3, *, classes: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, out, 3, padding=1)
        self.classes = nn.Embedding(classes, out) if classes else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h: Tensor = self.dropout(self.conv(x)) + torch.sin(t / 100).to(x.dtype)[:, None, None, None]
        return h if self.classes is None else h + self.classes(y)[:, :, None, None]


def saved(
    folder: Path,
    net: nn.Module,
    *,
    batch: int | None = None,
    most: int | None = None,
    label: Any = torch.float32,
    dtype: torch.dtype = torch.float32,
    sizes: bool = False,
    said: dict[str, Any] | None = None,
    classes: bool = False,
) -> Path:
    """A network exported for a batch of its own, or for any batch (up to `most`)."""
    size = batch or 2
    given = [torch.zeros(size, 3, 8, 8, dtype=dtype), torch.zeros(size, dtype=label)]
    given += [torch.zeros(size, dtype=torch.int64)] if classes else []
    dim = torch.export.Dim("B", min=1, max=most) if most else torch.export.Dim("B")
    side = {2: torch.export.Dim("H", max=64), 3: torch.export.Dim("W", max=64)} if sizes else {}
    dynamic = None if batch else ({0: dim, **side}, *({0: dim} for _ in given[1:]))
    path = folder / "network.pt2"
    torch.export.save(torch.export.export(net, tuple(given), dynamic_shapes=dynamic), path)
    path.with_suffix(".json").write_text(json.dumps(SAID if said is None else said))
    return path


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("which", ["unet", pytest.param("adm", marks=pytest.mark.slow)])
def test_a_trajectory_is_the_networks_own(which: str, tmp_path: Path) -> None:
    net: nn.Module = UNet(**UNET) if which == "unet" else ADM(channels=32, widths=[32, 32], blocks=1, attention=[1])
    net = drawn(net)
    field = odeddim.load(saved(tmp_path, net))
    own = VectorField(net, Schedule.linear(), shape=(3, 8, 8))
    assert (field.shape, field.schedule, field.dtype) == (own.shape, own.schedule, torch.float32)
    x = draw(3, 3, 8, 8)
    for t in (torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0.25, 17.3, 998.99])):
        assert torch.allclose(field.eps(x.float(), t), net(x.float(), t), rtol=1e-5, atol=1e-6)
    for walk in (odeddim.solve, odeddim.encode):
        theirs, ours = (walk(x, "heun", model=model, steps=6) for model in (own, field))
        a, b = (end if isinstance(end, Tensor) else end.x for end in (theirs, ours))
        assert float((a - b).abs().max() / a.abs().max()) < 1e-5
    assert own.nfe == field.nfe


@pytest.mark.parametrize(("fixed", "most"), [(4, None), (1, None), (None, 5), (None, None)])
def test_batches_of_any_size(fixed: int | None, most: int | None, tmp_path: Path) -> None:
    net = drawn(Toy())
    field = odeddim.load(saved(tmp_path, net, batch=fixed, most=most))
    wanted = {(4, None): "batches of 4", (1, None): "batches of 1", (None, 5): "up to 5", (None, None): "any batch"}
    assert wanted[fixed, most] in field.details["found"]
    for count in (1, 2, 4, 5, 11):
        x, t = draw(count, 3, 8, 8, dtype=torch.float32), torch.arange(count) * 77.7
        assert torch.allclose(field.eps(x, t), net(x, t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fixed", [None, 3])
def test_classes_and_guidance(fixed: int | None, tmp_path: Path) -> None:
    net = drawn(Toy(classes=5))
    said = {**SAID, "classes": 5, "null": 4}
    field = odeddim.load(saved(tmp_path, net, batch=fixed, classes=True, said=said))
    own = VectorField.from_network(net, Schedule.linear(), classes=5, null=4)
    x, sigma = draw(4, 3, 8, 8), torch.tensor(2.0)
    for how in ({"label": 2}, {"label": 1, "guidance": 3.0}, {}):
        theirs, ours = (f.conditioned(**how)(sigma, x) for f in (own, field))  # type: ignore[arg-type]
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    refused(saved(tmp_path, net, classes=True), "takes classes: give their number")
    refused(saved(tmp_path, drawn(Toy()), said=said), "takes no classes: leave out classes")


def test_labels_and_dtypes_are_those_of_the_program(tmp_path: Path) -> None:
    net = drawn(Toy())
    path = saved(tmp_path, net, label=torch.int64)
    refused(path, "whole numbers", "integer")
    path = saved(tmp_path, net, label=torch.int64, said={**SAID, "time": "integer"})
    field = odeddim.load(path)
    assert field(torch.tensor(1.234), draw(2, 3, 8, 8)).dtype == torch.float64
    double = drawn(Toy()).double()
    field = odeddim.load(saved(tmp_path, double, dtype=torch.float64, label=torch.float64))
    x = draw(2, 3, 8, 8)
    sigma = torch.tensor(1.234, dtype=torch.float64)
    expected = double(x / (1 + sigma**2).sqrt(), Schedule.linear().t(sigma).expand(2))
    assert torch.allclose(field(sigma, x), expected, rtol=1e-12)
    odeddim.load(path, dtype=torch.float64)
    with pytest.raises(InputError, match=r"network\.pt2 computes in float64, which is part of the program"):
        odeddim.load(path, dtype=torch.bfloat16)


def test_variances(tmp_path: Path) -> None:
    net = drawn(Toy(6))
    refused(saved(tmp_path, net), "returns 6 channels, not 3", "variances")
    field = odeddim.load(saved(tmp_path, net, said={**SAID, "variances": True}))
    x, t = draw(2, 3, 8, 8, dtype=torch.float32), torch.tensor([1.0, 2.0])
    assert torch.allclose(field.eps(x, t), net(x, t)[:, :3], atol=1e-6)
    refused(saved(tmp_path, drawn(Toy()), said={**SAID, "variances": True}), "returns 3 channels, not 6")
    refused(saved(tmp_path, drawn(Toy(5))), "returns 5 channels, not 3")


def test_sizes_that_the_program_leaves_open(tmp_path: Path) -> None:
    net = drawn(Toy())
    field = odeddim.load(saved(tmp_path, net, sizes=True))
    assert field.shape is None
    x, t = draw(2, 3, 16, 12, dtype=torch.float32), torch.tensor([1.0, 2.0])
    assert torch.allclose(field.eps(x, t), net(x, t), atol=1e-6)
    assert odeddim.load(saved(tmp_path, net, sizes=True, said={**SAID, "shape": [3, 16, 8]})).shape == (3, 16, 8)
    refused(saved(tmp_path, net, said={**SAID, "shape": [3, 16, 8]}), "shape is [3, 16, 8]", "[3, 8, 8]")


def test_what_a_program_cannot_say(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn(Toy()))
    place = path.with_suffix(".json")
    place.unlink()
    refused(path, "does not state its schedule, predicts, time", str(place), exported.EXAMPLE)
    place.write_text(exported.EXAMPLE)  # the very sentence's example is good
    assert odeddim.load(path).schedule == Schedule.linear()
    for key in SAID:
        place.write_text(json.dumps({name: value for name, value in SAID.items() if name != key}))
        refused(path, f"does not state its {key}:")
    wrong: list[dict[str, Any]] = [
        {"predicts": "noise"},
        {"time": "seconds"},
        {"variances": 1},
        {"schedule": {"name": "linea"}},
        {"steps": 50},
        {"shape": [3, 8]},
        {"classes": 10**30},
        {"classes": 4, "null": 5},
    ]
    for said in wrong:
        place.write_text(json.dumps({**SAID, **said}))
        refused(path)
    for text in ("", "{", "[]"):
        place.write_text(text)
        refused(path)


def test_a_network_that_draws_is_refused(tmp_path: Path) -> None:
    net = drawn(Toy(dropout=0.5))
    odeddim.load(saved(tmp_path, net))
    refused(saved(tmp_path, net.train()), "draws random numbers", "network.eval()")


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class Flat(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * t[:, None]

    for net, given in (
        (One(), (torch.zeros(2, 3, 8, 8),)),
        (Flat(), (torch.zeros(2, 3), torch.zeros(2))),
        (Toy(), (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1))),
    ):
        path = tmp_path / "network.pt2"
        if isinstance(net, Toy):
            net.forward = lambda x, t: x * t[..., None, None]  # type: ignore[assignment,method-assign,misc]
        torch.export.save(torch.export.export(net, given), path)
        path.with_suffix(".json").write_text(json.dumps(SAID))
        refused(path, "does not take images (B, C, H, W), labels (B,)")


def test_torchscript_too(tmp_path: Path) -> None:
    net = drawn(Toy())
    path = tmp_path / "network.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net, (torch.zeros(2, 3, 8, 8), torch.zeros(2))).save(str(path))  # type: ignore[no-untyped-call]
    refused(path, "does not state its schedule")
    path.with_suffix(".json").write_text(json.dumps({**SAID, "shape": [3, 8, 8]}))
    field = odeddim.load(path)
    x, t = draw(5, 3, 8, 8, dtype=torch.float32), torch.arange(5.0)
    assert torch.allclose(field.eps(x, t), net(x, t), atol=1e-6)
    with pytest.raises(InputError, match=r"fails on 1×2×8×8"):
        field.eps(x[:1, :2], t[:1])


def test_a_name_in_capitals(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn(Toy()))
    assert odeddim.load(path.rename(tmp_path / "network.PT2")).shape == (3, 8, 8)


def test_too_little_memory_is_no_fault_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field = odeddim.load(saved(tmp_path, drawn(Toy())))

    def fails(*given: Tensor) -> Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(field.eps.program, "forward", fails)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        field(torch.tensor(1.0), draw(1, 3, 8, 8))


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn(Toy()))
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole)
    names = zipfile.ZipFile(path).namelist()
    for left_out in names:
        if not left_out.endswith(("json", "model.pt", "weight_0")):
            continue
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "less.pt2", "w") as new:
            for name in names:
                if name != left_out:
                    new.writestr(name, old.read(name))
        (tmp_path / "less.json").write_text(json.dumps(SAID))
        refused(tmp_path / "less.pt2")
    torch.save(Toy().state_dict(), path)
    refused(path, "pickle")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    torch.save(Toy().state_dict(), tmp_path / "state.pt")
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("state.pt", "folder.pt2", "empty.pt", "none.pt"):
        assert not exported.matches(tmp_path / name), name
