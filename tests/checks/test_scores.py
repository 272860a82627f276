"""Scores: the sums over a path against the paper's formula, and what a threshold promises, on exact fields."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

import odeddim
from odeddim.checks.paths import PROFILE, SUMS
from odeddim.checks.scores import Reference
from odeddim.checks.whiteness import statistics
from odeddim.types import InputError

GAUSSIAN, MIXTURE = "exact-gaussian", "exact-mixture"
SPREAD = 0.5  # the standard deviation of exact-gaussian's data


def gaussian(count: int, seed: int, shape: tuple[int, ...] = (1, 3, 4), spread: float = SPREAD) -> Tensor:
    """Draws from the distribution of exact-gaussian."""
    return spread * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ddim_path(x: np.ndarray, sigmas: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """DDIM's inversion in the paper's coordinate x, and each ε: (B, T, C, H, W), for data N(0, 0.5²); and x_T.

    ε is known: the mean of x_0 given x is s²·√α·x/(s²·α + 1 - α).
    """
    alphas = [1 / (1 + sigma**2) for sigma in sigmas]
    x, seen = x * math.sqrt(alphas[0]), []
    for now, then in itertools.pairwise(alphas):
        mean = SPREAD**2 * math.sqrt(now) * x / (SPREAD**2 * now + 1 - now)
        eps = (x - math.sqrt(now) * mean) / math.sqrt(1 - now)
        seen.append(eps)
        predicted = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(then) * predicted + math.sqrt(1 - then) * eps
    return np.stack(seen, 1), x


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_six_sums_are_those_of_the_paper(dtype: torch.dtype, close: float) -> None:
    plan = odeddim.plan(GAUSSIAN, "euler", grid="linear", steps=6, end="sigma_min")
    images = gaussian(30, 0)
    reference = odeddim.calibrate(images.to(dtype), model=GAUSSIAN, plan=plan)
    found = odeddim.score(images.to(dtype), model=GAUSSIAN, reference=reference)
    eps, x_T = ddim_path(images.numpy(), plan.nodes.tolist())
    rates = np.diff(eps, axis=1) * eps.shape[1]
    for name, values in zip(SUMS, [*(eps**p for p in (1, 2, 3)), *(rates**p for p in (1, 2, 3))], strict=True):
        scale = np.abs(values).sum((1, 2, 3, 4)).max()
        assert np.abs(found.statistics[name].numpy() - values.sum((1, 2, 3, 4))).max() < close * scale, name
    for name, figure in statistics(torch.from_numpy(x_T)).items():
        assert torch.allclose(found.statistics[name], figure, rtol=100 * close, atol=10 * close), name


def test_the_profile_is_what_it_says() -> None:
    plan = odeddim.plan(GAUSSIAN, "euler", grid="linear", steps=3, end="sigma_min")
    images = gaussian(20, 1)
    profile = odeddim.calibrate(images, model=GAUSSIAN, plan=plan).profile.numpy()
    assert profile.shape == (20, len(PROFILE) * 3 - 1)
    eps, _ = ddim_path(images.numpy(), plan.nodes.tolist())
    for image, row in zip(eps[:, :, 0], profile, strict=True):
        wanted: list[float] = []
        for n, e in enumerate(image):
            pairs = [e[i, j] - e[i + 1, j] for i in range(2) for j in range(4)]
            pairs += [e[i, j] - e[i, j + 1] for i in range(3) for j in range(3)]
            rough = math.fsum(pair**2 for pair in pairs) / len(pairs)
            wanted += [e.mean(), (e**3).mean(), math.log(math.sqrt((e**2).mean())), math.log(math.sqrt(rough))]
            if n:
                wanted.append(math.log(3 * math.sqrt(((e - image[n - 1]) ** 2).mean())))
        assert np.allclose(row, wanted, rtol=1e-7, atol=1e-10)


def test_the_score_is_a_distance_to_the_nearest() -> None:
    """Of Mahalanobis' kind, with the correlations of the reference and a little of the identity."""
    reference = odeddim.calibrate(gaussian(50, 2), model=GAUSSIAN, steps=3)
    found = odeddim.score(gaussian(9, 3, spread=0.7), model=GAUSSIAN, reference=reference)

    def distances(known: np.ndarray, new: np.ndarray) -> np.ndarray:
        scale = known.std(0)
        inverse = np.linalg.inv(np.corrcoef(known.T) + 1e-3 * np.eye(len(scale))) / np.outer(scale, scale)
        return cdist(new, known, "mahalanobis", VI=inverse).min(1)

    known = reference.profile.numpy()
    assert np.allclose(found.score.numpy(), distances(known, found.profile.numpy()), rtol=1e-6)
    parts = np.arange(50) % 20
    for part in range(20):
        own = distances(known[parts != part], known[parts == part])
        assert np.allclose(reference.own_scores.numpy()[parts == part], own, rtol=1e-6)
    assert torch.equal(found.strange, found.score > reference.threshold)


@pytest.mark.parametrize(("count", "share", "place"), [(19, 0.05, 19), (39, 0.05, 38), (100, 0.1, 91), (20, 0.5, 11)])
def test_the_threshold_is_the_quantile_of_exchangeable_scores(count: int, share: float, place: int) -> None:
    """At most k of N + 1 in random order exceed the (N+1-k)-th of the others: k = share·(N+1), rounded down."""
    plan = odeddim.plan(GAUSSIAN, "euler", steps=1)
    profile = torch.randn(count, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    reference = Reference(profile, plan, share)
    assert reference.threshold == sorted(reference.own_scores.tolist())[place - 1]


@pytest.mark.parametrize("share", [0.05, 0.25])
def test_false_positives_are_as_asked(share: float) -> None:
    """On fresh images of a known distribution, within three standard deviations of both sets."""
    many = gaussian(1700, 5)
    reference = odeddim.calibrate(many[:500], model=GAUSSIAN, steps=4, false_positives=share)
    found = odeddim.score(many[500:], model=GAUSSIAN, reference=reference)
    deviation = math.sqrt(share * (1 - share) * (1 / 500 + 1 / 1200))
    assert abs(float(found.strange.double().mean()) - share) < 3 * deviation
    others = odeddim.score(gaussian(50, 6, spread=1.5), model=GAUSSIAN, reference=reference)
    assert float(others.strange.double().mean()) > 0.9


def test_a_score_does_not_depend_on_the_batch() -> None:
    images = odeddim.sample(45, model=MIXTURE, shape=(1, 6, 6), steps=5)
    reference = odeddim.calibrate(images[:30], model=MIXTURE, steps=5)
    again = odeddim.calibrate(images[:30], model=MIXTURE, steps=5, batch_size=7)
    assert torch.equal(reference.profile, again.profile)
    assert reference.threshold == again.threshold
    whole, *others = (
        odeddim.score(images[30:], model=MIXTURE, reference=reference, round_trip=True, density=True, batch_size=size)
        for size in (None, 1, 4, "auto")
    )
    for other in others:
        assert torch.equal(whole.score, other.score)
        assert all(torch.equal(whole.statistics[name], other.statistics[name]) for name in whole.statistics)
    alone = odeddim.score(images[44:], model=MIXTURE, reference=reference)
    assert float(alone.score[0]) == float(whole.score[14])


def test_the_density_is_that_of_log_density_and_no_part_of_the_score(here: Path) -> None:
    """In memory and in the file of the job, whose batches begin at images of their own."""
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    x = torch.from_numpy(images / 127.5 - 1).float()[:, None]
    reference = odeddim.calibrate(x[:25], model=GAUSSIAN, steps=5)
    found = odeddim.score(x[25:], model=GAUSSIAN, reference=reference, density=True)
    wanted = odeddim.log_density(x[25:], model=GAUSSIAN, dequantise="none").bits_per_dim
    assert torch.equal(found.statistics["bits_per_dim"], wanted)
    assert torch.equal(found.score, odeddim.score(x[25:], model=GAUSSIAN, reference=reference).score)
    machine = odeddim.jobs.Machine(batch_size=2)
    odeddim.jobs.score(images[25:], "s.h5", model=GAUSSIAN, reference=reference, density=True, machine=machine)
    with h5py.File("s.h5") as file:
        stored = torch.from_numpy(file["statistics/bits_per_dim"][:])
    assert torch.allclose(stored, wanted, rtol=0, atol=1e-5)  # pixels are read in an arithmetic of their own


def test_the_round_trip_is_that_of_decoding() -> None:
    images = gaussian(25, 7)
    reference = odeddim.calibrate(images, "unipc-2", model=GAUSSIAN, steps=5, grid="log")
    found = odeddim.score(images[:3], model=GAUSSIAN, reference=reference, round_trip=True)
    state = odeddim.encode(images[:3], "unipc-2", model=GAUSSIAN, steps=5, grid="log")
    again = odeddim.decode(state, model=GAUSSIAN)
    wanted = (again - images[:3]).square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(found.statistics["round_trip"], wanted)
    assert float(wanted.min()) > 0


def test_what_is_the_same_in_all_images_does_no_harm() -> None:
    """Constant images: no roughness, a logarithm of nothing; and the reference has no spread in it."""
    tones = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(40, 1, 1, 1).expand(40, 1, 4, 4)
    reference = odeddim.calibrate(tones, model=GAUSSIAN, steps=3)
    found = odeddim.score(torch.cat([tones[:1] * 0.97, gaussian(1, 8, (1, 4, 4))]), model=GAUSSIAN, reference=reference)
    assert found.strange.tolist() == [False, True]


def test_samples_are_the_reference_of_the_built_in_models(monkeypatch: pytest.MonkeyPatch) -> None:
    few = odeddim.open_images()[:20]
    monkeypatch.setattr("odeddim.checks.scores.open_images", lambda: few)
    found = odeddim.score(-few[:2], steps=1)
    assert len(found.reference) == 20
    assert found.reference.plan.notes["model"] == "fashion-mnist"
    assert len(found) == 2


def test_a_reference_comes_back_from_its_file(tmp_path: Path) -> None:
    images = odeddim.sample(40, model=MIXTURE, shape=(1, 4, 4), steps=5)
    reference = odeddim.calibrate(images, "bdia", model=MIXTURE, steps=4, false_positives=0.1, gamma=0.7)
    reference.save(tmp_path / "reference.json")
    loaded = Reference.load(tmp_path / "reference.json")
    assert torch.equal(loaded.profile, reference.profile)
    assert loaded.plan == reference.plan
    assert (loaded.threshold, loaded.false_positives) == (reference.threshold, 0.1)
    assert loaded.fingerprint == reference.fingerprint
    one, other = (odeddim.score(images[:2], model=MIXTURE, reference=each) for each in (reference, loaded))
    assert torch.equal(one.score, other.score)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return odeddim.calibrate(gaussian(20, 9), model=GAUSSIAN, steps=3)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: "no JSON",
        lambda said: "[" * 100_000,
        lambda said: json.dumps([said]),
        lambda said: json.dumps(said | {"format": "odeddim plan"}),
        lambda said: json.dumps(said | {"version": 2}),
        lambda said: json.dumps(said | {"plan": None}),
        lambda said: json.dumps(said | {"plan": said["plan"] | {"solver": "eulr"}}),
        lambda said: json.dumps(said | {"profile": "x"}),
        lambda said: json.dumps(said | {"profile": []}),
        lambda said: json.dumps(said | {"profile": said["profile"][:5]}),
        lambda said: json.dumps(said | {"profile": [*said["profile"][:-1], said["profile"][-1][:-1]]}),
        lambda said: json.dumps(said | {"profile": [[*row[:-1], math.nan] for row in said["profile"]]}),
        lambda said: json.dumps(said | {"profile": [row[:-5] for row in said["profile"]]}),
        lambda said: json.dumps(said | {"false_positives": "all"}),
        lambda said: json.dumps({key: value for key, value in said.items() if key != "false_positives"}),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence(tmp_path: Path, reference: Reference, change) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "reference.json"
    path.write_text(change(json.loads(reference.to_json())))
    with pytest.raises(InputError) as caught:
        Reference.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Reference.load(tmp_path / "reference.json")


def test_a_reference_of_another_run_is_refused(reference: Reference) -> None:
    images = gaussian(2, 10)
    for said in ({"steps": 4}, {"solver": "ab2", "steps": 3}, {"grid": "log", "steps": 3}):
        with pytest.raises(InputError, match=r"the reference was made by euler, karras grid, 3 steps.*cannot be comp"):
            odeddim.score(images, model=GAUSSIAN, reference=reference, **said)
    same = odeddim.score(images, model=GAUSSIAN, reference=reference, steps=3, grid="karras")
    assert torch.equal(same.score, odeddim.score(images, model=GAUSSIAN, reference=reference).score)


def test_a_reference_of_another_model_is_refused(reference: Reference) -> None:
    with pytest.raises(InputError, match="made for the model 'exact-gaussian', not 'exact-mixture'"):
        odeddim.score(gaussian(2, 10), model=MIXTURE, reference=reference)
    net = odeddim.VectorField.from_network(
        lambda x, t, label: x / 2, odeddim.Schedule.linear(), classes=3, name="mine", shape=(1, 3, 4)
    )
    of_one = odeddim.calibrate(gaussian(20, 11), model=net.conditioned(1), steps=3)
    with pytest.raises(InputError, match="made under class 1, not class 2"):
        odeddim.score(gaussian(2, 12), model=net.conditioned(2), reference=of_one)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"solver": "heun"}, "one evaluation a step"),
        ({"solver": "dopri5"}, "one evaluation a step"),
        ({"solver": "deis-tab2"}, "one evaluation a step"),
        ({"solver": "ddim-eta"}, "only"),
        ({"solver": "eulr"}, "did you mean"),
        ({"steps": 0}, "steps"),
        ({"false_positives": 0.04}, "at least 24 images"),
        ({"false_positives": 0}, "a share between 0 and 1"),
        ({"false_positives": True}, "a share between 0 and 1"),
        ({"images": torch.zeros(0, 1, 3, 4)}, "at least one image"),
        ({"images": torch.full((20, 1, 3, 4), torch.nan)}, "NaN"),
        ({"images": torch.zeros(20, 1, 3, 4, dtype=torch.uint8)}, "floating point"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_calibrate_refuses(said: dict[str, object], words: str) -> None:
    arguments = {"images": gaussian(20, 13), "model": GAUSSIAN, "steps": 3, **said}
    with pytest.raises(InputError, match=words):
        odeddim.calibrate(**arguments)  # type: ignore[arg-type]


def test_score_refuses(reference: Reference) -> None:
    images = gaussian(2, 14)
    with pytest.raises(InputError, match="has no reference of its own"):
        odeddim.score(images, model=GAUSSIAN)
    exact = odeddim.calibrate(gaussian(20, 15), "belm", model=GAUSSIAN, steps=3)
    with pytest.raises(InputError, match="'belm' comes back exactly"):
        odeddim.score(images, model=GAUSSIAN, reference=exact, round_trip=True)
    assert len(odeddim.score(images, model=GAUSSIAN, reference=exact)) == 2
