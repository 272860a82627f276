"""Sources: the same images in any wrapping are the same tensors, and other images have another fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest
import torch
from support import command
from torch import Tensor

import odeddim
from odeddim.storage.images import ImageSource, open_images
from odeddim.storage.sources import source_of
from odeddim.types import InputError

GRAY = np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8)  # (N, H, W)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 6, 4, 3), np.uint8)  # (N, H, W, C)
WANT = {
    "gray": torch.from_numpy(GRAY)[:, None] / 127.5 - 1,
    "colour": torch.from_numpy(COLOUR).movedim(-1, 1) / 127.5 - 1,
}


class Items(torch.utils.data.Dataset[Any]):
    """A map-style dataset of torch. made: how often an item was made."""

    def __init__(self, images: Any, wrap: Callable[[Any], Any] = lambda image: image) -> None:
        self.images, self.wrap, self.made = images, wrap, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        self.made += 1
        return self.wrap(self.images[i])


def pictures(folder: Path, images: np.ndarray[Any, Any] = COLOUR) -> list[Path]:
    paths = [folder / ("a" if i < 2 else "b") / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.parent.mkdir(exist_ok=True, parents=True)
        PIL.Image.fromarray(image).save(path)
    return paths


def unit(image: Any) -> Tensor:
    """As torchvision's ToTensor."""
    return torch.from_numpy(image).movedim(-1, 0) / 255


IN_MEMORY: dict[str, tuple[str, Callable[[], Any]]] = {
    "(N, H, W)": ("gray", lambda: GRAY),
    "(N, H, W, C)": ("colour", lambda: COLOUR),
    "(N, C, H, W), a view": ("colour", lambda: COLOUR.transpose(0, 3, 1, 2)),
    "a tensor": ("colour", lambda: torch.from_numpy(COLOUR).movedim(-1, 1)),
    "a tensor of floats": ("colour", lambda: WANT["colour"].double().requires_grad_()),
    "floats in [0, 1]": ("colour", lambda: COLOUR / 255),
    "a list of images": ("colour", lambda: [PIL.Image.fromarray(image) for image in COLOUR]),
    "images of Pillow": ("colour", lambda: Items(COLOUR, PIL.Image.fromarray)),
    "gray images of Pillow": ("gray", lambda: Items(GRAY, PIL.Image.fromarray)),
    "images and labels": ("colour", lambda: Items(COLOUR, lambda image: (PIL.Image.fromarray(image), 3))),
    "rows by name": ("colour", lambda: Items(COLOUR, lambda image: {"image": image, "label": 3})),
    "arrays (H, W, C)": ("colour", lambda: Items(COLOUR)),
    "arrays (H, W)": ("gray", lambda: Items(GRAY)),
    "tensors (C, H, W)": ("colour", lambda: Items(COLOUR, lambda image: [torch.from_numpy(image).movedim(-1, 0), 1])),
    "tensors in [0, 1]": ("colour", lambda: Items(COLOUR, unit)),
    "tensors in [-1, 1]": ("colour", lambda: Items(COLOUR, lambda image: unit(image) * 2 - 1)),
    "a part of a dataset": ("colour", lambda: torch.utils.data.Subset(Items(COLOUR), range(5))),
}


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_images_in_memory(kind: str) -> None:
    want, make = IN_MEMORY[kind]
    source = source_of(make())
    assert len(source) == 5
    assert source.shape == tuple(WANT[want].shape[1:])
    torch.testing.assert_close(source.read(), WANT[want], rtol=0, atol=2e-7)
    assert torch.equal(source.read([3, 0, 3]), source.read()[[3, 0, 3]])
    assert list(source.names) == [f"{i:06d}" for i in range(5)]
    assert source_of(make()).fingerprint() == source.fingerprint() != source.fingerprint(3)
    other = 1 if want == "colour" else 3
    assert source_of(make(), channels=other)[:2].shape == (2, other, 6, 4)


@pytest.mark.parametrize("kind", ["(N, H, W)", "a tensor", "images of Pillow", "tensors in [0, 1]"])
def test_another_pixel_is_another_fingerprint(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_of(IN_MEMORY[kind][1]()).fingerprint()
    for name in ("GRAY", "COLOUR"):
        changed = globals()[name].copy()
        changed[4, 5, 3] ^= 1
        monkeypatch.setitem(globals(), name, changed)
    assert source_of(IN_MEMORY[kind][1]()).fingerprint() != before


def test_a_list_of_paths_is_that_list(tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    source = source_of([paths[3], str(paths[0])])
    assert torch.equal(source.read(), WANT["colour"][[3, 0]])
    assert list(source.names) == [str(paths[3]), str(paths[0])]
    before = source.fingerprint()
    PIL.Image.fromarray(COLOUR[1]).save(paths[0])
    assert source_of([paths[3], str(paths[0])]).fingerprint() != before
    with pytest.raises(InputError, match=r"none\.png cannot be read"):
        source_of([paths[3], tmp_path / "none.png"])


def test_paths_and_sources_are_as_before(tmp_path: Path) -> None:
    pictures(tmp_path / "folder")
    source = source_of(tmp_path / "folder")
    assert list(source.names) == [f"a/{i}.png" for i in (0, 1)] + [f"b/{i}.png" for i in (2, 3, 4)]
    assert source.fingerprint() == open_images(tmp_path / "folder").fingerprint()
    assert source_of(source) is source
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = COLOUR
        assert torch.equal(source_of(file["images"])[1:4], source[1:4])
    assert torch.equal(source_of(str(tmp_path / "x.h5")).read(), source.read())


def test_a_datasets_own_names(tmp_path: Path) -> None:
    paths = pictures(tmp_path)

    class Folder(Items):
        """torchvision's ImageFolder, as far as names go."""

        root, samples = str(tmp_path), [(str(path), 0) for path in paths]

    source = source_of(Folder(paths, PIL.Image.open))
    assert list(source.names) == ["a/0.png", "a/1.png", "b/2.png", "b/3.png", "b/4.png"]
    assert torch.equal(source.read(), WANT["colour"])


def test_only_what_is_taken_is_read() -> None:
    items = Items(COLOUR, PIL.Image.fromarray)
    source = source_of(items)
    source.fingerprint(2)
    source.read([4])
    assert items.made == 2 + 2 + 1


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from COLOUR


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "sizes": (lambda: [*COLOUR[:2], COLOUR[2][:5]], "image 2 of the list in memory is 3×5×4 uint8 .* image 0 is 3×6×4"),
    "kinds": (lambda: [COLOUR[0], unit(COLOUR[1])], r"image 1 of .* is 3×6×4 float32 .* image 0 is 3×6×4 uint8"),
    "values": (lambda: [COLOUR[0].astype(np.int64)], "image 0 of the list in memory holds int64 values"),
    "range": (lambda: [COLOUR[0].astype(np.float32)], "holds floats from .* scale them"),
    "NaN": (lambda: [np.full((4, 4), np.nan)], r"NaN"),
    "axes": (lambda: [COLOUR[0, :3, :, :]], r"image 0 of the list in memory has shape \(3, 4, 3\)"),
    "no image": (lambda: ["a.png", 3], "image 1 of the list in memory is a|is a str"),
    "an object": (lambda: [{"picture": COLOUR[0]}], "is a dict: items are images"),
    "nothing": (lambda: [], "the list in memory holds no images"),
    "empty": (lambda: GRAY[:0], "holds no images"),
    "an iterator": (Endless, "images cannot be read from the Endless in memory, which has no length"),
    "a loader": (lambda: torch.utils.data.DataLoader(Items(COLOUR)), "the DataLoader in memory, which has no"),
    "a generator": (lambda: iter(COLOUR), "the iterator in memory"),
    "a number": (lambda: 3, "the int in memory"),
    "splits": (lambda: {"train": COLOUR, "test": COLOUR}, r"holds several sets of images \(train, test\): give one"),
    "depth": (lambda: [PIL.Image.new("F", (4, 4))], "holds floats, whose range is not known"),
    "axes of an array": (lambda: COLOUR[0, 0], "has shape"),
    "whole numbers": (lambda: GRAY.astype(np.int32), "the ndarray in memory holds int32 values"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_images_is_one_sentence(kind: str) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(InputError, match=words) as caught:
        source_of(make()).fingerprint()
    assert "\n" not in str(caught.value)


def test_chance_in_a_dataset_is_refused() -> None:
    with pytest.raises(InputError, match="another image whenever it is read"):
        source_of(Items(COLOUR, lambda image: image + np.uint8(np.random.default_rng().integers(256))))


def test_an_item_that_fails_is_named() -> None:
    def fails(image: Any) -> Any:
        if image is images[3]:
            raise KeyError("label")
        return image

    images = list(COLOUR)
    source = source_of(Items(images, fails))
    with pytest.raises(
        InputError, match=r"image 3 of the Items in memory cannot be read as an image \('label'\)"
    ) as caught:
        source.read()
    assert isinstance(caught.value.__cause__, KeyError)


def test_jobs_take_them(tmp_path: Path) -> None:
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", images.numpy())
    how: dict[str, Any] = {"model": "exact-mixture", "solver": "euler", "steps": 3}
    odeddim.jobs.encode(tmp_path / "x.npy", tmp_path / "path.h5", **how)
    want = odeddim.open(tmp_path / "path.h5")[:]
    for name, given in (("array", images.numpy()), ("tensor", images), ("items", Items(list(images)))):
        made = odeddim.jobs.encode(given, tmp_path / f"{name}.h5", **how)
        assert made.done == 3
        assert torch.equal(odeddim.open(made.path)[:].xbar, want.xbar)
    # The same images go on, others do not.
    assert odeddim.jobs.encode(Items(list(images)), tmp_path / "items.h5", **how).done == 3
    with pytest.raises(InputError, match="other settings"):
        odeddim.jobs.encode(Items(list(images.flip(0))), tmp_path / "items.h5", **how)
    crossed = odeddim.jobs.bridge(images, tmp_path / "out", "exact-gaussian", model="exact-mixture", steps=3)
    assert crossed.done == 3
    verified = odeddim.jobs.verify(tmp_path / "items.h5", Items(list(images)))
    assert len(verified.names) == 3
    with pytest.raises(InputError, match="was made of other ones"):
        odeddim.jobs.verify(tmp_path / "array.h5", images.numpy()[::-1])
    assert isinstance(source_of(images), ImageSource)


# datasets of Hugging Face: `pip install 'odeddim[datasets]'`.


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets")


def table(datasets: Any, folder: Path, **more: Any) -> Any:
    """A dataset of image files with labels."""
    paths = pictures(folder)
    features = datasets.Features({"label": datasets.Value("int64"), "image": datasets.Image(), **more})
    rows = {"label": list(range(5)), "image": [str(path) for path in paths], **{name: [None] * 5 for name in more}}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_table(datasets: Any, tmp_path: Path) -> None:
    whole = table(datasets, tmp_path, mask=datasets.Image())
    source = source_of(whole)
    assert torch.equal(source.read(), WANT["colour"])
    assert [Path(name).name for name in source.names] == [f"{i}.png" for i in range(5)]
    same = source_of([PIL.Image.fromarray(COLOUR[i]) for i in (3, 1)])
    assert source_of(whole.select([3, 1])).fingerprint() == same.fingerprint()
    assert list(source_of(whole.select([3, 1])).names) == [source.names[3], source.names[1]]
    for form in ("torch", "numpy"):
        assert torch.equal(source_of(whole.with_format(form)).read(), WANT["colour"])
    turned = whole.with_transform(lambda rows: {"image": [each.rotate(180) for each in rows["image"]]})
    assert torch.equal(source_of(turned).read(), WANT["colour"].flip(2, 3))
    assert torch.equal(source_of(whole.remove_columns("mask").rename_column("image", "photo")).read(), WANT["colour"])
    with pytest.raises(InputError, match=r"no column `image` .* \(it has: label, photo, mask\)"):
        source_of(whole.rename_column("image", "photo"))
    with pytest.raises(InputError, match="no length"):
        source_of(whole.to_iterable_dataset())
    with pytest.raises(InputError, match=r"several sets of images \(train, test\)"):
        source_of(whole.train_test_split(2))


def test_a_saved_table_on_the_command_line(datasets: Any, here: Path) -> None:
    whole = table(datasets, here / "files")
    whole.save_to_disk(here / "saved")
    how = ("--model", "exact-mixture", "--steps", "3")
    command("encode", "hf:saved", "-o", "z.h5", *how)
    command("encode", "files", "-o", "files.h5", *how)
    assert torch.equal(odeddim.open("z.h5")[:].xbar, odeddim.open("files.h5")[:].xbar)
    assert "5" in command("verify", "z.h5")
    datasets.DatasetDict({"train": whole}).save_to_disk(here / "splits")
    command("encode", "hf:splits/train", "-o", "train.h5", *how)
    assert "several sets of images (train)" in command("encode", "hf:splits", "-o", "no.h5", *how, code=2)
    assert "save_to_disk" in command("encode", "hf:files", "-o", "no.h5", *how, code=2)


def test_a_saved_table_that_cannot_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no folder org/mnist" in command("encode", "hf:org/mnist", "-o", "z.h5", code=2)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (here / "saved").mkdir()
    said = " ".join(command("encode", "hf:saved", "-o", "z.h5", code=2).split())
    assert "hf:saved needs the package datasets: pip install 'odeddim[datasets]'" in said
