"""Weights files are read without running anything, and fit the network or say what does not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from odeddim.models import beside, weights
from odeddim.schedule import Schedule
from odeddim.types import InputError


def small() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 2)


GOOD = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


def test_good_weights_are_taken(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        path = tmp_path / name
        save_file(GOOD, path) if name.endswith("s") else torch.save(GOOD, path)
        network = weights.fit(small(), {**weights.read(path)}, path)
        assert torch.equal(network(torch.ones(1, 3)), torch.tensor([[3.0, 12.0]]))
        assert not any(parameter.requires_grad for parameter in network.parameters())
    half = {name: value.half() for name, value in GOOD.items()}
    assert weights.fit(small(), half, tmp_path).weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"weight": GOOD["weight"]}, "lacks bias"),
        ({**GOOD, "a": GOOD["bias"], "b": GOOD["bias"]}, "has a, b"),
        ({**GOOD, "bias": torch.zeros(3)}, r"bias has the shape \(3,\) where \(2,\)"),
        ({**GOOD, "bias": torch.tensor([0.0, torch.nan])}, "bias holds NaN"),
        ({**GOOD, "weight": torch.zeros(1, 1).expand(2, 3)}, "not hold all of weight"),
        ({**GOOD, "weight": GOOD["weight"].to_sparse()}, "not hold all of weight"),
        ({**GOOD, "weight": GOOD["weight"].to("meta")}, "not hold all of weight"),
    ],
)
def test_what_does_not_fit_is_named(state: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        weights.fit(small(), state, Path("its.pt"))


def test_many_names_are_counted() -> None:
    assert weights.some(list("abcde")) == "a, b, c and 2 more"


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_nothing_in_a_file_is_run(suffix: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"weight": GOOD["weight"], "bias": Bomb(mark)}, path)
    with pytest.raises(InputError, match=path.name):
        weights.read(path)
    assert not mark.exists()


def test_damaged_files_are_one_sentence(tmp_path: Path) -> None:
    torch.save(GOOD, whole := tmp_path / "w.pt")
    content = whole.read_bytes()
    for cut in (0, 1, 10, 100, len(content) // 2, len(content) - 10):
        (path := tmp_path / "cut.pt").write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"cut\.pt") as error:
            weights.read(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        weights.read(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "settings by name"),
        ('{"predict": "v"}', "predicts"),
        ('{"schedule": {"name": "linnear"}}', "linear"),
        ('{"schedule": {"name": "linear", "T": 1e99}}', "schedule"),
        ('{"shape": [3, 0]}', "shape must be"),
        ('{"classes": true}', "whole number"),
        ('{"time": 3}', "must be a name"),
    ],
)
def test_what_stands_beside_is_checked(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        beside.read(tmp_path / "w.pt")
    assert "w.json" in str(error.value)


def test_what_stands_beside_is_read(tmp_path: Path) -> None:
    assert beside.read(tmp_path / "w.pt") == {}
    said = {"schedule": Schedule.cosine(4000).to_dict(), "shape": [3, 8, 8], "null": 10, "own": [1]}
    (tmp_path / "w.json").write_text(json.dumps(said))
    found = beside.read(tmp_path / "w.pt", ("own",))
    assert found == {"schedule": Schedule.cosine(4000), "shape": (3, 8, 8), "null": 10, "own": [1]}
