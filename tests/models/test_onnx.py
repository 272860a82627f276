"""ONNX programs: files written byte by byte, against the same network in torch; by name, in batches; what is refused.

Without onnxruntime (`pip install 'odeddim[onnx]'`) only the sentence that says so is tested.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import refused
from torch import Tensor
from torch.nn import functional as F

import odeddim
from odeddim import solvers
from odeddim.models.formats import onnx
from odeddim.models.onnx_files import look_into
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

runs = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
SAID: dict[str, Any] = {"schedule": {"name": "linear", "T": 1000}, "predicts": "eps", "time": "index"}
KINDS = {torch.float32: 1, torch.int64: 7}  # of the file's format


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def part(field: int, content: bytes | str | int) -> bytes:
    """A field of a message: a whole number, or bytes with their length."""
    if isinstance(content, int):
        return number(field << 3) + number(content)
    data = content.encode() if isinstance(content, str) else content
    return number(field << 3 | 2) + number(len(data)) + data


def tensor(name: str, value: Tensor, elsewhere: str = "", **entries: int) -> bytes:
    """entries: the offset and the length of what is elsewhere."""
    head = b"".join(part(1, side) for side in value.shape) + part(2, KINDS[value.dtype]) + part(8, name)
    if elsewhere:
        said = {"location": elsewhere, **entries}
        return head + b"".join(part(13, part(1, key) + part(2, str(its))) for key, its in said.items()) + part(14, 1)
    return head + part(9, value.numpy().tobytes())


def value(name: str, dtype: torch.dtype, sides: Sequence[int | str]) -> bytes:
    shape = b"".join(part(1, part(1 if isinstance(side, int) else 2, side)) for side in sides)
    return part(1, name) + part(2, part(1, part(1, KINDS[dtype]) + part(2, shape)))


def node(kind: str, inputs: Sequence[str], output: str, domain: str = "", **lists: list[int]) -> bytes:
    told = b"".join(
        part(5, part(1, name) + b"".join(part(8, each) for each in its) + part(20, 7)) for name, its in lists.items()
    )
    return b"".join(part(1, name) for name in inputs) + part(2, output) + part(4, kind) + told + part(7, domain)


class Network:
    """A convolution, sines of the label and a row for each class: in torch, and as the bytes of a file."""

    def __init__(self, *, classes: int = 0, outer: int = 3, label: torch.dtype = torch.float32) -> None:
        chance = torch.Generator().manual_seed(0)
        self.label = label
        self.weight = torch.randn(outer, 3, 3, 3, generator=chance) / 5
        self.rows = torch.randn(classes, outer, generator=chance)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = F.conv2d(x, self.weight.to(x.dtype), padding=1) + torch.sin(t / 100)[:, None, None, None].to(x.dtype)
        return torch.tanh(h if y is None else h + self.rows.to(x.dtype)[y][:, :, None, None])

    def file(self, sides: Sequence[int | str] = ("B", 3, 8, 8), order: str = "xty", **odd: Any) -> bytes:
        """The file; odd: `elsewhere`, where the weights are, and `entries`; `first`, a node; `extra`, another input."""
        batch, kind = sides[0], torch.float32
        cast = "t" if self.label == kind else "cast"
        nodes = [
            odd.get("first", b""),
            node("Conv", ["sample", "W"], "c", pads=[1, 1, 1, 1]),
            b"" if cast == "t" else part(1, "timestep") + part(2, cast) + part(4, "Cast") + part(
                5, part(1, "to") + part(3, KINDS[kind]) + part(20, 2)
            ),
            node("Div", ["timestep" if cast == "t" else cast, "hundred"], "d"),
            node("Sin", ["d"], "s"),
            node("Unsqueeze", ["s", "axes3"], "s4"),
            node("Add", ["c", "s4"], "h"),
        ]  # fmt: skip
        told = {"x": ("sample", kind, sides), "t": ("timestep", self.label, [batch])}
        kept = {"W": self.weight, "hundred": torch.tensor(100, dtype=kind), "axes3": torch.tensor([1, 2, 3])}
        last = "h"
        if len(self.rows):
            told["y"] = ("class", torch.int64, [batch])
            kept |= {"rows": self.rows, "axes2": torch.tensor([2, 3])}
            nodes += [node("Gather", ["rows", "class"], "g"), node("Unsqueeze", ["g", "axes2"], "g4")]
            nodes += [node("Add", ["h", "g4"], last := "hg")]
        nodes.append(node("Tanh", [last], "out_sample"))
        graph = b"".join(part(1, one) for one in nodes if one) + part(2, "network")
        graph += b"".join(
            part(5, tensor(name, its, odd.get("elsewhere", "") * (name == "W"), **odd.get("entries", {})))
            for name, its in kept.items()
        )
        graph += b"".join(part(11, value(*told[one])) for one in order if one in told)
        graph += part(11, value("text", kind, [batch, 4])) if odd.get("extra") else b""
        graph += part(12, value("out_sample", kind, [batch, self.weight.shape[0], *sides[2:]]))
        return part(1, 8) + part(7, graph) + part(8, part(2, 17))


def saved(folder: Path, blob: bytes, **said: Any) -> Path:
    path = folder / "network.onnx"
    path.write_bytes(blob)
    path.with_suffix(".json").write_text(json.dumps({**SAID, **said}))
    return path


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def own(net: Network, **how: Any) -> VectorField:
    return VectorField.from_network(net, Schedule.linear(), **how)


def test_onnxruntime_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(saved(tmp_path, Network().file()), "needs the package onnxruntime", "pip install 'odeddim[onnx]'")


@runs
@pytest.mark.parametrize("sides", [("B", 3, 8, 8), (2, 3, 8, 8), ("B", 3, "H", "W")])
def test_a_program_is_its_network(sides: Sequence[int | str], tmp_path: Path) -> None:
    """Whatever batches it was exported for: 20 steps down and up."""
    net = Network()
    field, theirs = odeddim.load(saved(tmp_path, net.file(sides))), own(net)
    assert field.shape == (None if "H" in sides else (3, 8, 8))
    assert field.details["found"].startswith("ONNX program, ")
    x = draw(5, 3, 8, 8)
    nodes = Schedule.linear().levels[[0, *range(49, 1000, 50)]]
    for solver in ("euler", "heun"):
        plan = Plan(solvers.get(solver), nodes)
        for start in (State(x * float(nodes[-1]), float(nodes[-1])), State(x.tanh(), float(nodes[0]))):
            ours, right = integrate(field, start, plan).xbar, integrate(theirs, start, plan).xbar
            assert torch.allclose(ours, right, rtol=1e-5, atol=1e-5)


@runs
def test_inputs_by_name(tmp_path: Path) -> None:
    net = Network(classes=4)
    names = {"x": "sample", "t": "timestep", "label": "class"}
    said = {"classes": 4, "inputs": names, "output": "out_sample"}
    path = saved(tmp_path, net.file(order="ytx"), **said)
    field, theirs = odeddim.load(path).conditioned(2), own(net, classes=4).conditioned(2)
    sigma, x = torch.tensor(2.0), draw(3, 3, 8, 8)
    assert torch.allclose(field(sigma, x), theirs(sigma, x), rtol=1e-5, atol=1e-6)
    first = odeddim.load(saved(tmp_path, net.file(), classes=4))
    assert torch.equal(first.conditioned(2)(sigma, x), field(sigma, x))
    assert first.sha256 != odeddim.load(saved(tmp_path, net.file(), **said)).sha256
    refused(saved(tmp_path, net.file(order="ytx"), classes=4), "export it with these")
    for wrong in (
        {"x": "sample"},
        {**names, "label": "klass"},
        {**names, "label": "sample"},
        {"y": "sample"},
        ["x"],
        3,
    ):
        refused(saved(tmp_path, net.file(), classes=4, inputs=wrong), "inputs")
    refused(saved(tmp_path, net.file(), classes=4, output="other"), "no output 'other'", "out_sample")
    refused(saved(tmp_path, net.file(), classes=4, output=3), "output must be a name")
    refused(saved(tmp_path, net.file()), "takes classes: give their number")
    refused(saved(tmp_path, Network().file(), classes=4), "takes no classes")
    refused(saved(tmp_path, Network().file(extra=True)), "'text', float of shape ['B', 4], where 1 dimensions are")


@runs
def test_numbers_of_the_program(tmp_path: Path) -> None:
    net = Network(label=torch.int64)
    refused(saved(tmp_path, net.file()), "whole numbers", "integer")
    field = odeddim.load(saved(tmp_path, net.file(), time="integer"))
    sigma, x = torch.tensor(1.3, dtype=torch.float64), draw(2, 3, 8, 8).double()
    assert torch.allclose(field(sigma, x), own(net, time="integer")(sigma, x), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="computes in float32, which is part of the program"):
        odeddim.load(saved(tmp_path, net.file(), time="integer"), dtype="float64")
    net = Network(outer=6)
    refused(saved(tmp_path, net.file()), "returns 6 channels, not 3", "variances")
    field = odeddim.load(saved(tmp_path, net.file(), variances=True))
    assert torch.allclose(field(sigma, x.float()), own(net, variances=True)(sigma, x.float()), atol=1e-6)


@runs
def test_it_has_no_gradients_and_stays_here(tmp_path: Path) -> None:
    field = odeddim.load(saved(tmp_path, Network().file()))
    x = draw(1, 3, 8, 8).requires_grad_()
    with pytest.raises(InputError, match="has no gradients"):
        field(torch.tensor(1.0), x)
    with pytest.raises(InputError, match="cannot be pickled"):
        pickle.dumps(field)
    with pytest.raises(InputError, match=r"network\.onnx.*fails on 1×2×8×8"):
        field.eps(x.detach()[:, :2], torch.ones(1))


@runs
def test_what_a_file_could_hide_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3 * 3 * 9 * 4))
    (tmp_path / "a").mkdir()
    for where in (
        str(secret),
        "../secret",
        "a/../../secret",
        "..\\secret",
        "C:secret",
        "*/_ORT_MEM_ADDR_/*",
        "secret\0",
    ):
        refused(saved(tmp_path / "a", Network().file(elsewhere=where)), "keeps weights in", "not in its folder")
    for kind in ("RandomNormalLike", "RandomUniformLike", "Bernoulli"):
        odd = node(kind, ["sample"], "r")
        refused(saved(tmp_path, Network().file(first=odd)), "draws random numbers")
    refused(saved(tmp_path, Network().file(first=node("Run", ["sample"], "r", domain="mine"))), "export it again")
    refused(saved(tmp_path, Network().file(first=node("Nonsense", ["sample"], "r"))), "export it again")


@runs
def test_weights_in_further_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.onnx.export and its converters leave them, read from the program's folder wherever one is."""
    net, (sigma, x) = Network(), (torch.tensor(2.0), draw(2, 3, 8, 8))
    content, folder = net.weight.numpy().tobytes(), tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hashes = {odeddim.load(saved(folder, net.file())).sha256}
    for place in ("network.onnx.data", "./weights.pb", "more/ü 1"):
        path = saved(folder, net.file(elsewhere=place, entries={"offset": 8, "length": len(content)}))
        for name in (place, path.name):  # what lies in the present folder under these names is another thing
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(bytes(8 + len(content)))
        (folder / place).write_bytes(bytes(8) + content)
        field = odeddim.load(path)
        assert torch.allclose(field(sigma, x), own(net)(sigma, x), rtol=1e-5, atol=1e-6)
        hashes.add(field.sha256)
        (folder / place).write_bytes(bytes(8) + (net.weight * 1.01).numpy().tobytes())
        hashes.add(odeddim.load(path).sha256)
        (folder / "elsewhere").write_bytes(bytes(8) + content)  # a link of the user's, as in Hugging Face's cache
        (folder / place).unlink()
        (folder / place).symlink_to(folder / "elsewhere")
        assert odeddim.load(path).sha256 == field.sha256
    assert len(hashes) == 7


@runs
def test_missing_and_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    net, place = Network(), tmp_path / "w.bin"
    size = net.weight.numel() * 4
    path = saved(tmp_path, net.file(elsewhere="w.bin", entries={"length": size}))
    refused(path, "keeps weights in a further file", "w.bin cannot be read", "copy it to the program's folder")
    place.write_bytes(bytes(size - 1))
    refused(path, f"{size} bytes of weights or more in {place}, which has {size - 1}: copy it again")
    place.unlink()
    place.mkdir()
    refused(path, "w.bin is a folder")
    place.rmdir()
    path = saved(tmp_path, net.file(elsewhere="w.bin"))  # which does not say how long it is
    for short in (b"", b"123"):
        place.write_bytes(short)
        refused(path, "w.bin" if not short else "export it again")
    refused(saved(tmp_path, net.file(elsewhere="w.bin", entries={"length": -1})), "network.onnx")


def test_what_lies_deep_in_a_file_is_found() -> None:
    """In a branch, a function, a sparse tensor, a constant; the value before the key; with fields that are unknown."""
    odd = (
        part(13, part(2, "deep.bin") + part(1, "location"))
        + number(99 << 3 | 1)
        + bytes(8)
        + number(98 << 3 | 5)
        + bytes(4)
    )
    draws = part(1, node("RandomNormal", [], "r"))
    for graph in (
        part(1, part(4, "If") + part(5, part(6, draws + part(5, odd)))),  # a node's attribute: a graph
        part(1, part(4, "If") + part(5, part(11, draws + part(15, part(1, odd))))),
        draws + part(1, part(4, "Constant") + part(5, part(5, odd))),
        draws + part(15, part(2, odd)),
    ):
        for blob in (part(7, graph), part(1, 8) + part(20, part(2, graph))):
            kinds, places = look_into(blob)
            assert "RandomNormal" in kinds
            assert places == {"deep.bin": 0}
    kinds, places = look_into(part(25, part(7, node("Bernoulli", [], "r")) + part(7, part(5, part(10, odd)))))
    assert (kinds, places) == ({"Bernoulli"}, {"deep.bin": 0})
    deep = b""
    for _ in range(400):
        deep = part(1, part(5, part(6, deep)))
    for wrong in (
        part(7, deep),
        b"\xff" * 20,
        part(7, b"\x0a\x7f"),
        number(7 << 3 | 3),
        part(7, part(1, part(4, b"\xff"))),
    ):
        with pytest.raises(ValueError, match=r"deep|end|longer|decode"):
            look_into(wrong)
    assert look_into(Network().file(elsewhere="w", entries={"offset": 5, "length": 7}))[1] == {"w": 12}


@runs
def test_damage_is_one_sentence(tmp_path: Path) -> None:
    whole = Network().file()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        refused(saved(tmp_path, whole[:size]))
    refused(saved(tmp_path, b"\x80\x04" + pickle.dumps({"a": 1})))
    path = saved(tmp_path, whole)
    for key in SAID:
        path.with_suffix(".json").write_text(json.dumps({name: SAID[name] for name in SAID if name != key}))
        refused(path, f"does not state its {key}")
    wrongs: list[dict[str, Any]] = [{"shape": [3, 9, 9]}, {"variances": 1}, {"time": "seconds"}, {"solver": "euler"}]
    for wrong in wrongs:
        refused(saved(tmp_path, whole, **wrong))


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(Network().file())
    (tmp_path / "folder.onnx").mkdir()
    assert not onnx.matches(tmp_path / "a.pt")
    assert not onnx.matches(tmp_path / "folder.onnx")
    assert onnx.matches(saved(tmp_path, b"").rename(tmp_path / "NET.ONNX"))
