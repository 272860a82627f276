"""Feature networks and the distances of sets of features: against definitions written out, and files that mean harm."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import train_classifier
from click.testing import CliRunner
from torch import Tensor

from odeddim.bench import distances, features
from odeddim.bench.distances import frechet, kid, precision_recall
from odeddim.bench.features import BLOCK, Features, load_features
from odeddim.models import programs
from odeddim.models.networks import classifier
from odeddim.storage.images import open_images
from odeddim.storage.png import to_bytes
from odeddim.types import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

pytest.importorskip("torchmetrics", reason="distances are torchmetrics'")


def normal(rows: int, d: int, seed: int) -> Tensor:
    """Correlated features with a mean."""
    chance = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=chance, dtype=torch.float64)
    return torch.randn(rows, d, generator=chance, dtype=torch.float64) @ mix + torch.randn(d, generator=chance)


@pytest.fixture(scope="module")
def reference() -> tuple[Tensor, Tensor]:
    """The reference images (2048, 1, 28, 28) and their labels."""
    labels = torch.from_numpy(np.load(classifier.REFERENCE)["labels"])
    return open_images(classifier.REFERENCE).read(), labels


@pytest.fixture(scope="module")
def real(reference: tuple[Tensor, Tensor]) -> Tensor:
    """Features of 600 reference images."""
    return load_features()(reference[0][:600])


# Fréchet distance.


def by_scipy(a: Tensor, b: Tensor) -> float:
    """The definition, by SciPy's Schur method."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a.numpy(), b.numpy()))
    root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_frechet_is_scipys(real: Tensor) -> None:
    for a, b in ((normal(300, 12, 0), normal(200, 12, 1)), (real[:350].double(), real[350:].double())):
        assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)
        assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)


def with_moments(mean: Tensor, std: Tensor, seed: int) -> Tensor:
    """100 rows with exactly this mean and the covariance diag(std²)."""
    x = torch.randn(100, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * 99**0.5  # columns of mean 0, orthogonal, of variance 1
    return x * std + mean


def test_frechet_of_known_moments() -> None:
    """Covariances that commute: Σ (m - m')² + Σ (s - s')²."""
    means, stds = torch.tensor([[1.0, 2, 3], [0, 4, 2.5]]).double(), torch.tensor([[1.0, 2, 0.5], [3, 1, 0.5]]).double()
    a, b = (with_moments(mean, std, seed) for seed, (mean, std) in enumerate(zip(means, stds, strict=True)))
    assert frechet(a, b) == pytest.approx(1 + 4 + 0.25 + 4 + 1, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a) >= 0


def test_frechet_is_the_same_in_slices_and_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(100, 6, 0), normal(90, 6, 1)
    whole = frechet(a, b)
    assert frechet(a + 1e7, b + 1e7) == pytest.approx(whole, rel=1e-6)
    monkeypatch.setattr(distances, "_SLICE", 7)
    assert frechet(a, b) == pytest.approx(whole, rel=1e-9)


# KID.


def mmd(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate of MMD², pair by pair."""
    m, d = a.shape

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / d + 1) ** 3)

    within = sum(kernel(x[i], x[j]) for x in (a, b) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(x, y) for x in a for y in b) / m**2


def test_kid_is_its_definition() -> None:
    a, b = normal(30, 5, 0), normal(30, 5, 1)
    mean, std = kid(a, b, subsets=3)
    assert mean == pytest.approx(mmd(a, b), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-9 * abs(mean))


def test_kid_of_subsets_is_that_of_the_same_subsets() -> None:
    a, b = normal(40, 5, 0), normal(30, 5, 1)
    chance = torch.Generator().manual_seed(7)
    figures = []
    for _ in range(4):
        mine, others = (torch.randperm(len(x), generator=chance)[:10] for x in (a, b))
        figures.append(mmd(a[mine], b[others]))
    mean, std = kid(a, b, subsets=4, subset_size=10, seed=7)
    assert mean == pytest.approx(np.mean(figures), rel=1e-9)
    assert std == pytest.approx(np.std(figures), rel=1e-9)


def test_kid_depends_on_its_seed_alone(recwarn: pytest.WarningsRecorder) -> None:
    a, b = normal(40, 5, 0), normal(30, 5, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = kid(a, b, subsets=4, subset_size=10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert kid(a, b, subsets=4, subset_size=10) == first
    assert kid(a, b, subsets=4, subset_size=10, seed=1) != first
    assert not [
        warning for warning in recwarn if "torchmetrics" in warning.filename or "Kernel" in str(warning.message)
    ]


# Precision and recall.


def naive(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    """Kynkäänniemi et al., equations 1 to 3, one pair at a time."""

    def share(members: Tensor, others: Tensor) -> float:
        reach = [
            sorted(float((x - y).norm()) for j, y in enumerate(members) if j != i)[k - 1] for i, x in enumerate(members)
        ]
        hits = [any(float((x - y).norm()) <= r for y, r in zip(members, reach, strict=True)) for x in others]
        return float(np.mean(hits))

    return share(real, fake), share(fake, real)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definition(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(40, 3, 0), normal(33, 3, 0)[:, [1, 0, 2]] * 1.5
    expected = naive(a, b, k)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    assert expected[0] != expected[1]
    assert precision_recall(a, b, k) == pytest.approx(expected, abs=1e-12)
    close = 1 + 1e-9 * a, 1 + 1e-9 * b  # products of such features would not tell them apart
    assert precision_recall(*close, k) == pytest.approx(naive(*close, k), abs=1e-12)
    monkeypatch.setattr(distances, "_PAIRS", 99)  # two or three rows at a time
    assert precision_recall(a, b, k) == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_of_made_up_sets() -> None:
    a = normal(50, 4, 0)
    far = a + 1e4
    assert precision_recall(a, a.clone()) == (1, 1)
    assert precision_recall(a, far) == (0, 0)
    assert precision_recall(a, torch.cat([a[:25], far[:25]])) == (0.5, pytest.approx(0.7, abs=0.2))
    assert precision_recall(torch.cat([a, far]), a) == (1, 0.5)  # a mode is missing


NAN = torch.full((10, 3), float("nan"))


@pytest.mark.parametrize("distance", [frechet, kid, precision_recall])
@pytest.mark.parametrize(
    ("real", "fake", "words"),
    [
        (normal(1, 3, 0), normal(9, 3, 0), "real ones have shape (1, 3)"),
        (normal(9, 3, 0), normal(1, 3, 0), "generated ones have shape (1, 3)"),
        (normal(9, 3, 0), normal(9, 4, 0), "have 3 values and those of the generated ones 4"),
        (normal(9, 3, 0), NAN, "features of the generated images hold NaN"),
        (NAN, normal(9, 3, 0), "features of the real images hold NaN"),
        (normal(9, 3, 0)[:, :, None], normal(9, 3, 0), "shape (9, 3, 1)"),
    ],
)
def test_distances_refuse(distance: Callable[..., Any], real: Tensor, fake: Tensor, words: str) -> None:
    with pytest.raises(InputError) as caught:
        distance(real, fake)
    assert words in str(caught.value)


def test_impossible_settings_are_refused() -> None:
    a = normal(9, 3, 0)
    for settings in ({"subsets": 0}, {"subset_size": 1}, {"subset_size": 10}):
        with pytest.raises(InputError, match="at least 1 subset of 2 to 9"):
            kid(a, a, **settings)
    for k in (0, 9):
        with pytest.raises(InputError, match=f"by {k} neighbours"):
            precision_recall(a, a, k)


def test_without_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchmetrics" else found(name))
    for distance in (frechet, kid):
        with pytest.raises(InputError, match=r"needs torchmetrics: pip install 'odeddim\[metrics\]'"):
            distance(normal(9, 3, 0), normal(9, 3, 0))
    with pytest.raises(InputError, match=r"Inception network needs torchmetrics: pip install 'odeddim\[fid\]'"):
        load_features("inception:weights.pth")


# The built-in classifier.


def test_the_stated_accuracy_is_that_of_the_reference(reference: tuple[Tensor, Tensor]) -> None:
    trained = classifier.read()
    stated = trained.description["accuracy"]
    images, labels = reference
    assert stated > 0.9
    assert (
        abs(train_classifier.accuracy(trained.network, images, labels) - stated)
        < 3 * (stated * (1 - stated) / 2048) ** 0.5
    )
    assert f"classifier of Fashion-MNIST (test accuracy {100 * stated:.1f}%)" in load_features().name
    assert trained.description["test_images"] == 10000


def test_the_files_are_small() -> None:
    assert classifier.BUILT_IN.stat().st_size < 1_000_000
    assert classifier.REFERENCE.stat().st_size < 1_000_000


def test_the_reference_shares_no_image_with_the_sample(reference: tuple[Tensor, Tensor]) -> None:
    images, labels = reference
    assert images.shape == (2048, 1, 28, 28)
    assert labels.shape == (2048,)
    sample = {image.numpy().tobytes() for image in to_bytes(open_images().read())}
    assert not sample & {image.numpy().tobytes() for image in to_bytes(images)}


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_reference_is_what_it_says(reference: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    source = open_images(DEBIAN / "t10k-images-idx3-ubyte.gz")
    labels = train_classifier.read_labels(DEBIAN / "t10k-labels-idx1-ubyte.gz", len(source))
    assert torch.equal(source.read(range(256, 2304)), reference[0])
    assert torch.equal(labels[256:2304], reference[1].long())
    train_classifier.write_reference(tmp_path / "again.npz", source, labels)
    again, stored = np.load(tmp_path / "again.npz"), np.load(classifier.REFERENCE)
    assert all((again[key] == stored[key]).all() for key in ("images", "labels"))


def test_features_do_not_depend_on_the_company(reference: tuple[Tensor, Tensor]) -> None:
    images, network = reference[0][:150], load_features()
    whole = network(images)
    assert whole.shape == (150, classifier.FEATURES)
    assert whole.dtype == torch.float32
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images[order]), whole[order])
    assert torch.equal(torch.cat([network(part) for part in images[:20].split(7)]), whole[:20])
    assert torch.equal(network(images[3:4]), whole[3:4])
    assert torch.equal(network(images[:9].to(memory_format=torch.channels_last)), whole[:9])
    spread = torch.stack([images[:9], images[:9]], dim=-1)[..., 0]
    assert torch.equal(network(spread), whole[:9])


def test_a_network_always_sees_a_whole_block() -> None:
    seen = []

    def mean(images: Tensor) -> Tensor:
        assert images.is_contiguous()
        seen.append(len(images))
        return images.mean(dim=(2, 3))

    images = torch.rand(BLOCK + 3, 2, 4, 4)
    network = load_features(mean)
    assert torch.allclose(network(images.to(memory_format=torch.channels_last)), images.mean(dim=(2, 3)))
    assert seen == [BLOCK, BLOCK]
    assert (network.name, network.sha256, network.measure) == ("a function (mean)", "", "Fréchet distance")
    assert load_features(network) is network


def test_modules_are_set_to_evaluation() -> None:
    images = torch.rand(5, 1, 4, 4)
    network = load_features(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5)))
    assert torch.equal(network(images), images.flatten(1))


def test_features_refuse() -> None:
    network = load_features()
    good = torch.zeros(2, 1, 28, 28)
    for images, words in (
        (torch.zeros(2, 3, 28, 28), "takes images of 1×28×28 (channels×height×width), not 3×28×28"),
        (torch.zeros(2, 1, 32, 32), "not 1×32×32"),
        (torch.zeros(0, 1, 28, 28), "at least one"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "not of torch.uint8"),
        (torch.zeros(28, 28), "shape (28, 28)"),
        (good.fill_(float("nan")), "the images hold such values"),
    ):
        with pytest.raises(InputError) as caught:
            network(images)
        assert words in str(caught.value)
    for function, words in (
        (lambda x: x.flatten(1) / 0, "for finite images"),
        (lambda x: x.mean(), "returned shape ()"),
        (lambda x: x, "returned shape (64, 1, 28, 28)"),
        (lambda x: x.flatten(1)[:5], "returned shape (5, 784)"),
        (lambda x: [x], "returned a list"),
    ):
        with pytest.raises(InputError) as caught:
            Features(function, "it")(torch.ones(2, 1, 28, 28))
        assert words in str(caught.value)


def test_names(tmp_path: Path) -> None:
    assert load_features().sha256 == load_features("fashion-mnist").sha256 != ""
    assert load_features(classifier.BUILT_IN).name == load_features().name
    assert load_features().measure == "Fréchet distance"
    with pytest.raises(InputError, match="did you mean fashion-mnist"):
        load_features("fashion-mnits")
    with pytest.raises(InputError, match="not a value of type int"):
        load_features(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be read as a feature network"):
        load_features(tmp_path)


# Programs.


class Small(torch.nn.Module):
    """Images (B, 1, 8, 8) -> (B, 6, 1, 1), with weights and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 6, 3)
        self.norm = torch.nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm(self.convolution(x)).relu()
        return h.reshape(x.shape[0], 6, 36).mean(dim=2)[:, :, None, None]


@pytest.fixture(scope="module")
def small() -> Small:
    return Small().eval()


@pytest.fixture(scope="module")
def exported(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.pt2"
    batch = {0: torch.export.Dim("batch", max=1000)}
    torch.export.save(torch.export.export(small, (torch.zeros(4, 1, 8, 8),), dynamic_shapes=(batch,)), path)
    return path


@pytest.fixture(scope="module")
def script(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "small.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(small).save(path)
    return path


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # what other tests left behind is not meant
def test_programs_give_the_networks_features(small: Small, exported: Path, script: Path) -> None:
    images = torch.rand(70, 1, 8, 8) * 2 - 1
    for path in (exported, script):
        network = load_features(path)
        with torch.no_grad():
            assert torch.allclose(network(images), small(images).flatten(1), atol=1e-6)
        assert torch.equal(network(images[5:6]), network(images)[5:6])
        assert path.name in network.name
        assert len(network.sha256) == 64
        assert network.measure == "Fréchet distance"
        with pytest.raises(InputError, match="1×9×9"):
            network(torch.zeros(2, 1, 9, 9))


def test_an_exported_network_of_a_fixed_batch(small: Small, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(small, (torch.zeros(4, 1, 8, 8),)), tmp_path / "four.pt2")
    network, images = load_features(tmp_path / "four.pt2"), torch.rand(10, 1, 8, 8)
    assert network.block == 4
    with torch.no_grad():
        assert torch.allclose(network(images), small(images).flatten(1), atol=1e-6)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def rewritten(path: Path, to: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive in which some files are changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(to, "w") as archive:
        for name, part in parts.items():
            archive.writestr(f"{to.stem}/{name}", part)
    return to


def saved(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def in_graph(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes], Path], None]:
    def rewrite(parts: dict[str, bytes], mark: Path) -> None:
        graph = json.loads(parts["models/model.json"])
        change(graph)
        parts["models/model.json"] = json.dumps(graph).replace("MARK", str(mark)).encode()

    return rewrite


def system(graph: dict[str, Any]) -> None:
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.mkdir"
    node["inputs"] = [{"name": "path", "arg": {"as_string": "MARK"}, "kind": 1}]


def size(graph: dict[str, Any]) -> None:
    values = graph["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": "open('MARK', 'w').fileno()", "hint": None}}


def guard(graph: dict[str, Any]) -> None:
    graph["guards_code"] = ["open('MARK', 'w') is not None"]


def signature(graph: dict[str, Any]) -> None:
    call = graph["graph_module"]["module_call_graph"][0]["signature"]
    call["forward_arg_names"] = ["x=open('MARK', 'w')"]


def from_file(graph: dict[str, Any]) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def pickled(kind: str) -> Callable[[dict[str, bytes], Path], None]:
    def rewrite(parts: dict[str, bytes], mark: Path) -> None:
        name = f"data/{kind}/model_{kind}_config.json"
        stored = json.loads(parts[name])
        prefix = {"weights": "weight_", "constants": "opaque_obj_"}[kind]
        meta = {"path_name": f"{prefix}99", "is_param": False, "use_pickle": True, "tensor_meta": None}
        stored["config"]["convolution.weight"] = meta
        parts[name] = json.dumps(stored).encode()
        parts[f"data/{kind}/{prefix}99"] = {"weights": saved, "constants": pickle.dumps}[kind](Bomb(mark))

    return rewrite


def sample(parts: dict[str, bytes], mark: Path) -> None:
    parts["data/sample_inputs/model.pt"] = saved(((Bomb(mark),), {}))


def legacy(parts: dict[str, bytes], mark: Path) -> None:
    parts["data/weights/model.pt"] = saved({"x": Bomb(mark)})


def library(parts: dict[str, bytes], mark: Path) -> None:
    parts["data/aotinductor/model/model.so"] = b"\x7fELF"


HARM = {
    "operation": in_graph(system),
    "size": in_graph(size),
    "argument": in_graph(signature),
    "file": in_graph(from_file),
    "weights": pickled("weights"),
    "constants": pickled("constants"),
    "sample": sample,
    "legacy": legacy,
    "library": library,
}


@pytest.mark.parametrize("harm", HARM)
def test_exported_networks_run_no_code(harm: str, exported: Path, tmp_path: Path, capfd: Any) -> None:
    mark = tmp_path / "mark"
    path = rewritten(exported, tmp_path / "bad.pt2", lambda parts: HARM[harm](parts, mark))
    with pytest.raises(InputError) as caught:
        load_features(path)(torch.zeros(2, 1, 8, 8))
    assert not mark.exists()
    assert str(path) in str(caught.value)
    assert "could run code" in str(caught.value)  # seen beforehand, and not by chance while it was read
    assert capfd.readouterr().err == ""


def test_a_damaged_network_is_told_in_one_sentence(exported: Path, tmp_path: Path, caplog: Any) -> None:
    path = rewritten(exported, tmp_path / "bad.pt2", lambda parts: parts.update({"data/weights/weight_0": b"0000"}))
    with pytest.raises(InputError, match="cannot be read as a feature network"):
        load_features(path)
    assert not caplog.records  # PyTorch logs a traceback


def test_guards_of_exported_networks_are_left_out(exported: Path, tmp_path: Path) -> None:
    """They are Python, about inputs that Features looks at itself."""
    mark = tmp_path / "mark"
    path = rewritten(exported, tmp_path / "bad.pt2", lambda parts: in_graph(guard)(parts, mark))
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(load_features(path)(images), load_features(exported)(images))
    assert not mark.exists()


def test_torchscript_opens_no_files(script: Path, tmp_path: Path) -> None:
    for text in (
        'torch.save(x, "MARK")',
        'torch . save (x, "MARK")',
        "torch.from_file(a)",
        'ops.image.write_file("MARK")',
    ):

        def add(parts: dict[str, bytes], text: str = text) -> None:
            name = next(name for name in parts if name.startswith("code/") and b"def forward" in parts[name])
            body = parts[name].decode()
            line = next(line for line in body.splitlines() if "convolution = self" in line)
            parts[name] = body.replace(line, f"    {text.replace('MARK', str(tmp_path / 'mark'))}\n{line}", 1).encode()

        with pytest.raises(InputError, match="an operation that may open files"):
            load_features(rewritten(script, tmp_path / "bad.pt", add))(torch.zeros(2, 1, 8, 8))
    assert not (tmp_path / "mark").exists()


def test_archives_that_swell_are_refused(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_MOST_UNPACKED", 0)  # TorchScript's text is compressed
    with pytest.raises(InputError, match="far larger when unpacked"):
        load_features(script)


def test_pickles_and_other_files_are_refused(small: Small, exported: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    whole = exported.read_bytes()
    for name, content, words in (
        ("module.pt", saved(small), "holds a pickle, as torch.save writes it, which could run code"),
        ("bomb.pt2", saved(Bomb(mark)), "holds a pickle"),
        ("raw.pt", pickle.dumps(Bomb(mark), protocol=2), "is a pickle, which could run code"),
        ("text.pt", b"cos\nsystem\n", "is not a program of PyTorch; save the network with torch.export.save"),
        ("empty.pts", b"", "is not a program of PyTorch"),
        ("half.pt2", whole[: len(whole) // 2], "cannot be read as a feature network"),
        ("bad.safetensors", b"\0" * 20, "cannot be read as a classifier"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_features(tmp_path / name)
        assert words in str(caught.value)
        assert name in str(caught.value)
    assert not mark.exists()


# Inception.


class Stub(torch.nn.Module):
    """In the place of torchmetrics' network, whose torch-fidelity is not always there."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert (name, features) == ("inception-v3-compat", ["2048"])
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))
        self.seen: list[Tensor] = []
        Stub.last = self  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x.float().mean(dim=(2, 3))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Weights for it."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "torch_fidelity" else found(name))
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Stub)
    torch.save({}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_inception_gets_bytes_of_three_channels(stub: Path) -> None:
    network = load_features(f"inception:{stub}")
    images = torch.tensor([-1.0, 0.0, 0.5, 1.2]).reshape(4, 1, 1, 1).expand(4, 1, 5, 5)
    out = network(images)
    (seen,) = Stub.last.seen  # type: ignore[attr-defined]
    assert seen.dtype == torch.uint8
    assert seen.shape[1:] == (3, 5, 5)
    assert out[:, 0].tolist() == [0, 128, 191, 255]
    assert network.measure == "FID"
    assert network.name == f"Inception-v3 (weights {network.sha256[:8]})"
    with pytest.raises(InputError, match="1 or 3 channels, not 2"):
        network(torch.zeros(1, 2, 5, 5))


def test_weights_of_inception_run_no_code(stub: Path, tmp_path: Path) -> None:
    torch.save({"x": Bomb(tmp_path / "mark")}, stub)
    for place, words in ((stub, "holds more than weights"), (tmp_path / "none.pth", "cannot be read as the weights")):
        with pytest.raises(InputError, match=words):
            load_features(f"inception:{place}")
    assert not (tmp_path / "mark").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is there")
def test_without_torch_fidelity() -> None:
    with pytest.raises(InputError, match=r"needs torch-fidelity: pip install 'odeddim\[fid\]'"):
        load_features("inception:weights.pth")


# Training.


def test_training_depends_on_its_seed_alone(reference: tuple[Tensor, Tensor]) -> None:
    images, labels = reference[0][:128], reference[1][:128].long()

    def trained(seed: int) -> Tensor:
        return train_classifier.train(images, labels, epochs=1, batch_size=32, seed=seed).head.weight

    before = torch.get_rng_state()
    first = trained(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(trained(0), first)
    assert not torch.equal(trained(1), first)


def test_training_learns(reference: tuple[Tensor, Tensor]) -> None:
    images, labels = reference[0][:256], reference[1][:256].long()
    network = train_classifier.train(images, labels, epochs=6, batch_size=32)
    assert train_classifier.accuracy(network, images, labels) > 0.5


def idx(path: Path, array: np.ndarray[Any, Any], packed: bool) -> Path:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def test_the_command(reference: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = to_bytes(reference[0][:160])[:, 0].numpy(), reference[1][:160].numpy()
    files = [idx(tmp_path / "x", images, False), idx(tmp_path / "y", labels, True)] * 2
    threads, output = torch.get_num_threads(), tmp_path / "f.safetensors"
    arguments = [*map(str, files), "-o", str(output), "--epochs", "1", "--threads", "1", "--data", "Trousers"]
    result = CliRunner().invoke(train_classifier.main, arguments)
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    assert "test accuracy" in result.output
    trained = classifier.read(output)
    stated = trained.description["accuracy"]
    assert stated == train_classifier.accuracy(trained.network, reference[0][:160], reference[1][:160].long())
    assert (trained.description["seed"], trained.description["epochs"]) == (0, 1)
    assert load_features(output).name == f"a classifier of Trousers (test accuracy {stated:.1%})"
    classifier.write(tmp_path / "again.safetensors", trained.network, trained.description)
    assert (tmp_path / "again.safetensors").read_bytes() == output.read_bytes()
    refused = CliRunner().invoke(train_classifier.main, [*map(str, files), "-o", str(tmp_path / "f.pt")])
    assert refused.exit_code == 1
    assert "NAME.safetensors" in refused.output


def test_labels_that_do_not_belong(tmp_path: Path) -> None:
    labels = idx(tmp_path / "labels", np.array([1, 2, 11], np.uint8), False)
    for count, words in ((4, "holds 3 labels for 4 images"), (3, "holds the label 11")):
        with pytest.raises(InputError, match=words):
            train_classifier.read_labels(labels, count)
    images = idx(tmp_path / "images", np.zeros((3, 2, 2), np.uint8), True)
    with pytest.raises(InputError, match="is it the file of images"):
        train_classifier.read_labels(images, 3)
    with pytest.raises(InputError, match="cannot be read as labels"):
        train_classifier.read_labels(tmp_path / "none", 3)


def test_other_files_are_no_classifiers(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="cannot be read as a classifier of odeddim"):
        classifier.read(tmp_path / "x.safetensors")
    assert features.DEFAULT == "fashion-mnist"
