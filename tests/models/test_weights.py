"""Weights files are read without running anything, and fit the network or say what does not."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import in_memory
from torch import nn

import odeddim
from odeddim.models import DEFAULT, json_files, weights
from odeddim.models import sidecar as beside
from odeddim.models.formats import native
from odeddim.models.guarded import Loaded
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
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
    eighth = {name: value.to(torch.float8_e4m3fn) for name, value in GOOD.items()}
    assert torch.equal(weights.fit(small(), eighth, tmp_path).weight, GOOD["weight"])


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"weight": GOOD["weight"]}, "missing bias"),
        ({**GOOD, "a": GOOD["bias"], "b": GOOD["bias"]}, "unexpected a, b"),
        ({**GOOD, "bias": torch.zeros(3)}, r"bias has the shape \(3,\), not \(2,\)"),
        ({**GOOD, "bias": torch.tensor([0.0, torch.nan])}, "bias holds NaN"),
        ({**GOOD, "bias": torch.zeros(2, dtype=torch.int64)}, "bias holds int64, not float32"),
        ({**GOOD, "bias": torch.zeros(2, dtype=torch.complex64)}, "bias holds complex64, not float32"),
        ({**GOOD, "weight": torch.zeros(1, 1).expand(2, 3)}, "not hold all values of weight"),
        ({**GOOD, "weight": GOOD["weight"].to_sparse()}, "not hold all values of weight"),
        ({**GOOD, "weight": GOOD["weight"].to("meta")}, "not hold all values of weight"),
    ],
)
def test_what_does_not_fit_is_named(state: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        weights.fit(small(), state, Path("its.pt"))


def test_tensors_are_named_as_in_their_file() -> None:
    for spoilt in (torch.full((2,), torch.nan), torch.zeros(3), torch.zeros(2).int(), torch.zeros(1).expand(2)):
        with pytest.raises(InputError, match=r"\bfc\.b\b"):
            weights.fit(small(), {**GOOD, "bias": spoilt}, Path("its.pt"), called={"bias": "fc.b"})


def test_whole_numbers_stay_what_they_are() -> None:
    def counting() -> nn.Module:
        with torch.device("meta"):
            return nn.BatchNorm1d(2)

    state = nn.BatchNorm1d(2).state_dict()
    weights.fit(counting(), state, Path("its.pt"))
    with pytest.raises(InputError, match="num_batches_tracked holds float32, not int64"):
        weights.fit(counting(), {**state, "num_batches_tracked": torch.tensor(0.0)}, Path("its.pt"))


def test_what_describes_no_network_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"no network can be built from its settings \(.+\): copy it again$"):
        weights.described(lambda: nn.Linear(10**10, 10**10))
    with pytest.raises(InputError, match=r"^its own words$"):
        weights.described(lambda: (_ for _ in ()).throw(InputError("its own words")))  # type: ignore[arg-type,return-value]


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
    for name in ("none.pt", "none.safetensors"):
        with pytest.raises(InputError, match=rf"{name} cannot be read \(No such file") as error:
            weights.read(tmp_path / name)
        assert str(error.value).count(name) == 1


def test_pytorch_says_nothing_of_its_own(tmp_path: Path) -> None:
    (path := tmp_path / "w.pt").write_bytes(pickle.dumps(GOOD, protocol=4))
    with warnings.catch_warnings(record=True) as said, pytest.raises(InputError):
        weights.read(path)
    assert said == []


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "W.SAFETENSORS")
    assert torch.equal(weights.read(tmp_path / "W.SAFETENSORS")["weight"], GOOD["weight"])


@pytest.mark.parametrize("name", ["p.pt", "p.ckpt", "p.safetensors", "p.pt2", "p.pkl", "model.safetensors", "p"])
def test_nothing_waits_at_a_pipe(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    for path in (tmp_path / name, Path("/dev/null")):
        with pytest.raises(InputError, match=f"{path} is a folder, a pipe or a device, not a file"):
            odeddim.load(path, allow_pickle=True)


@pytest.mark.parametrize("name", ["model_index.json", "config.json", "unet/config.json", "model.json"])
def test_nor_in_a_folder(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "pipe", tmp_path / "huge"):
        path = folder / name
        path.parent.mkdir(parents=True)
        if folder.name == "pipe":
            os.mkfifo(path)
        else:
            path.touch()
            os.truncate(path, 20 << 30)
        with pytest.raises(InputError, match=r"no format that odeddim knows|too much for a file of settings"):
            odeddim.load(folder)


def test_odeddims_own_weights_are_numbers_of_the_same_kind(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(native.BUILT_IN / DEFAULT, tmp_path / "own"))
    state = in_memory(folder / native.WEIGHTS)
    name = min(state)
    for strange in (state[name].to(torch.int64), state[name].to(torch.complex64)):
        try:
            save_file({**state, name: strange}, folder / native.WEIGHTS)
        except KeyError:
            assert strange.is_complex()  # numbers that old safetensors do not know
            continue
        with pytest.raises(InputError, match=r"safetensors does not match .*not all weights are floating-point"):
            odeddim.load(folder)
    (folder / native.WEIGHTS).unlink()
    os.mkfifo(folder / native.WEIGHTS)
    with pytest.raises(InputError, match=r"model.safetensors is a folder, a pipe"):
        odeddim.load(folder)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (path := tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"notes\.txt has no format that odeddim knows: see .*models\.md") as error:
        odeddim.load(path)
    assert len(str(error.value)) < 200 + len(str(path))


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    path.write_text('{"lambda_min_clipped": -Infinity}')  # as diffusers writes it
    assert json_files.read(path) == {"lambda_min_clipped": float("-inf")}
    assert "lambda" in json_files.glance(path)
    for content, words in (
        (b'{"norm_eps": NaN}', "NaN is not a valid setting"),
        (b"null", "must hold settings by name"),
        (b"[", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"\0", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"[" * 10**6, "cannot be read as JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words) as error:
            json_files.read(path)
        assert str(path) in str(error.value)
    os.truncate(path, 20 << 30)
    with pytest.raises(InputError, match=r"said\.json has 21,475 MB"):
        json_files.read(path)
    assert json_files.glance(path) == ""
    path.unlink()
    with pytest.raises(InputError, match=r"said\.json cannot be read \(No such file or directory\): look for it"):
        json_files.read(path, "look for it")
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"said\.json is a folder, a pipe"):
        json_files.read(path)
    assert json_files.glance(path) == ""


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't allocate memory: 1 TB"), torch.cuda.OutOfMemoryError("of CUDA")]
)
def test_too_little_memory_is_no_fault_of_a_file(error: Exception) -> None:
    def fails(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        Loaded(fails, Schedule.linear(), name="its.pt")(torch.tensor(1.0), torch.ones(1, 1, 2, 2))
    assert caught.value is error


@pytest.mark.parametrize("error", [TypeError("a\nb"), RuntimeError("sizes"), ZeroDivisionError()])
def test_what_a_loaded_network_raises_names_its_file(error: Exception) -> None:
    def fails(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise error

    given = torch.tensor(1.0), torch.ones(2, 1, 3, 4)
    with pytest.raises(InputError, match=rf"its\.pt fails on 2×1×3×4 .*{type(error).__name__}") as caught:
        Loaded(fails, Schedule.linear(), name="its.pt")(*given)
    assert "\n" not in str(caught.value)
    for own in (KeyboardInterrupt(), InputError("as it is")):
        with pytest.raises(type(own)) as stopped:
            Loaded(lambda x, t: (_ for _ in ()).throw(own), Schedule.linear())(*given)  # noqa: B023
        assert stopped.value is own
    with pytest.raises(type(error)):  # of a network of one's own, everything is as it was
        VectorField.from_network(fails, Schedule.linear())(*given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "settings by name"),
        ('{"predict": "v"}', "predicts"),
        ('{"schedule": {"name": "linnear"}}', "linear"),
        ('{"schedule": {"name": "linear", "T": 1e99}}', "schedule"),
        ('{"shape": [3, 0]}', "shape must be"),
        ('{"classes": true}', "whole number"),
        ('{"classes": 0}', "whole number from 1"),
        (f'{{"classes": {10**30}}}', "classes must be a whole number from 1 to 10,000,000"),
        ('{"classes": 10, "null": 11}', "null.* must be at most the number of classes, 10, not 11"),
        ('{"null": -1}', "null must be a whole number from 0"),
        (f'{{"null": {10**25}}}', "null must be a whole number"),
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
    (tmp_path / "v.json").write_text('{"classes": 10000000, "null": 10000000}')
    assert beside.read(tmp_path / "v.pt") == {"classes": 10**7, "null": 10**7}
    assert found == {"schedule": Schedule.cosine(4000), "shape": (3, 8, 8), "null": 10, "own": [1]}
