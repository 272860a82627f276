"""hf:ORG/NAME: a server on this machine stands in for the hub, and huggingface_hub itself lays out the cache."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import test_diffusers_models
import test_latent_diffusion
import torch
from huggingface_hub import constants, file_download, utils
from support import command

import odeddim
from odeddim.models import hub
from odeddim.models.formats import native
from odeddim.types import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
COMMIT, OLDER = "a" * 40, "b" * 40
REVISIONS = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}


class Hub(http.server.ThreadingHTTPServer):
    """A hub of folders: the few routes of its API that huggingface_hub asks to download a model.

    folders: by repository and commit. asked: the paths of files that were asked for. says: status and error code of
    every answer, where the hub is to refuse.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folders: dict[tuple[str, str], Path] = {}
        self.asked: list[str] = []
        self.requests = 0
        self.says: tuple[int, str] | None = None


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests += 1
        steps = self.path.partition("?")[0].strip("/").split("/")
        if steps[:2] == ["api", "models"]:
            repository, kind, revision = "/".join(steps[2:4]), steps[4], steps[5]
            name = ""
        else:
            repository, kind, revision, name = "/".join(steps[:2]), steps[2], steps[3], "/".join(steps[4:])
        known = {repository for repository, _ in self.server.folders}
        if self.server.says and (name or self.server.says[1] != "GatedRepo"):  # what a gated model holds, all may see
            return self._say(*self.server.says)
        if repository not in known:
            return self._say(404, "RepoNotFound")
        folder = self.server.folders.get((repository, REVISIONS.get(revision, "")))
        if folder is None:
            return self._say(404, "RevisionNotFound")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        sha = REVISIONS[revision]
        if kind == "revision":
            return self._json({"id": repository, "sha": sha, "siblings": [{"rfilename": name} for name in names]})
        if kind == "tree":
            sizes = [file.stat().st_size for file in files]
            oids = [hashlib.sha1(file.read_bytes()).hexdigest() for file in files]
            told = [
                {"type": "file", "path": name, "size": size, "oid": oid}
                for name, size, oid in zip(names, sizes, oids, strict=True)
            ]
            return self._json(told)
        if name not in names:
            return self._say(404, "EntryNotFound")
        self.server.asked.append(name)
        content = (folder / name).read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self._end(content if with_body else b"", len(content))

    def _json(self, told: Any) -> None:
        content = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._end(content, len(content))

    def _say(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self._end(b"", 0)

    def _end(self, content: bytes, length: int) -> None:
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as they lie on the hub, beside what nobody needs."""
    here = tmp_path_factory.mktemp("models")
    ddpm = diffusers.DDPMPipeline(test_diffusers_models.network(), diffusers.DDPMScheduler())
    ddpm.save_pretrained(here / "ddpm")
    diffusers.DDPMPipeline(test_diffusers_models.network(seed=1), diffusers.DDPMScheduler()).save_pretrained(
        here / "older"
    )
    ddpm.save_pretrained(here / "bin", safe_serialization=False)
    shutil.copy(here / "bin/unet/diffusion_pytorch_model.bin", here / "ddpm/unet")
    ddpm.unet.save_pretrained(here / "flat")  # all in one folder, as the first of them were published
    ddpm.scheduler.save_pretrained(here / "flat")
    shutil.copy(here / "ddpm/model_index.json", here / "flat")
    ddpm.save_pretrained(here / "pieces", max_shard_size="100KB")
    test_latent_diffusion.stable_diffusion(here / "sd", diffusers.DDIMScheduler(**test_latent_diffusion.AS_SD))
    sd = here / "sd" / "model"
    index = json.loads((sd / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (sd / "model_index.json").write_text(json.dumps(index))
    (sd / "safety_checker").mkdir()
    for name in ("safety_checker/config.json", "safety_checker/model.safetensors", "vae/model.onnx"):
        (sd / name).write_text("{}")
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "v1-5-pruned.ckpt"):
        (sd / name).write_bytes(b"no weights")
    flux = json.loads(json.dumps(index)) | {"transformer": ["diffusers", "Flux2Transformer2DModel"]}
    del flux["unet"]
    shutil.copytree(sd, here / "flux")
    (here / "flux" / "model_index.json").write_text(json.dumps(flux))
    shutil.copytree(native.BUILT_IN / "fashion-mnist", here / "native")
    for folder in (here / "ddpm", sd, here / "native"):
        (folder / "images").mkdir()
        (folder / "images" / "sample.png").write_bytes(b"\x89PNG")
        (folder / "README.md").write_text("A model.")
    (here / "nothing").mkdir()
    (here / "nothing" / "README.md").write_text("No model.")
    return here


@pytest.fixture
def server(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, and an empty cache."""
    with Hub() as server:
        for name in ("ddpm", "bin", "flat", "pieces", "flux", "native", "nothing"):
            server.folders[f"org/{name}", COMMIT] = models / name
        server.folders["org/sd", COMMIT] = models / "sd" / "model"
        server.folders["org/ddpm", OLDER] = models / "older"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", here)
        for module in (constants, file_download):  # the latter has it by name in old versions
            template = here + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        forget()
        yield server
        server.shutdown()
    forget()


def forget() -> None:
    """Sessions of old versions of huggingface_hub, which are made for one mode, offline or not."""
    getattr(utils, "reset_sessions", lambda: None)()


def offline(monkeypatch: pytest.MonkeyPatch, server: Hub) -> None:
    """From here on HF_HUB_OFFLINE=1 holds, and nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    server.folders.clear()


def draw(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


NEEDED = {
    "ddpm": {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    },
    "bin": {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.bin",
    },
    "flat": {"model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"},
    "native": {"model.json", "model.safetensors"},
    "sd": {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json", "text_encoder/model.safetensors",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["ddpm", "bin", "flat", "pieces", "sd", "native"])
def test_a_model_of_the_hub_is_that_of_its_folder(
    name: str, server: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = server.folders[f"org/{name}", COMMIT]
    folder = odeddim.load(source)
    found = odeddim.load(f"hf:org/{name}")
    assert found.name == f"hf:org/{name}@{COMMIT}"
    assert found.sha256 == folder.sha256
    images = draw(folder.image_shape or ())
    want = odeddim.encode(images, "euler", model=folder, steps=2)
    assert torch.equal(odeddim.encode(images, "euler", model=found, steps=2).xbar, want.xbar)
    asked = {*server.asked}
    if name == "pieces":
        assert asked == {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
        assert len(asked) > 5
    elif name == "sd":
        words = {path.relative_to(source).as_posix() for path in (source / "tokenizer").iterdir()}
        assert asked == NEEDED[name] | words
    else:
        assert asked == NEEDED[name]
    # Without the hub, by all its names, and bit for bit.
    offline(monkeypatch, server)
    for said in (f"hf:org/{name}", f"hf:org/{name}@main", found.name):
        again = odeddim.load(said)
        assert (again.name, again.sha256) == (found.name, found.sha256)
    assert torch.equal(odeddim.encode(images, "euler", model=again, steps=2).xbar, want.xbar)


def test_a_revision_is_the_model_at_that_commit(server: Hub) -> None:
    new, old = odeddim.load("hf:org/ddpm"), odeddim.load("hf:org/ddpm@v1")
    assert old.name == f"hf:org/ddpm@{OLDER}"
    assert new.sha256 != old.sha256 == odeddim.load(server.folders["org/ddpm", OLDER]).sha256
    server.folders["org/ddpm", OLDER] = server.folders["org/ddpm", COMMIT]
    requests = server.requests
    assert odeddim.load(old.name).sha256 == old.sha256
    assert server.requests == requests  # a commit in the cache is not asked for again


def test_what_a_kill_left_out_is_downloaded(server: Hub) -> None:
    found = odeddim.load("hf:org/sd")
    folder = hub.fetched(found.name)
    assert hub.is_cached(found.name)
    for name in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json"):
        (folder / name).unlink()
        assert not hub.is_cached(found.name)
        server.asked.clear()
        assert odeddim.load(found.name).sha256 == found.sha256
        assert (folder / name).is_file()


def sentence(name: str) -> str:
    """What loading a model of this name is refused with."""
    with pytest.raises(InputError) as caught:
        odeddim.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "says", "words"),
    [
        ("hf:org/ddqm", None, "the hub has no model 'org/ddqm', or it is private"),
        ("hf:org/ddpm@v7", None, "hf:org/ddpm has no revision 'v7'"),
        (f"hf:org/ddpm@{'c' * 40}", None, f"hf:org/ddpm has no revision '{'c' * 40}'"),
        ("hf:org/ddpm", (403, "GatedRepo"), "hf:org/ddpm is gated: accept its terms"),
        ("hf:org/ddpm", (500, "Fire"), "hf:org/ddpm is not in the cache of Hugging Face, or not all of it, and it can"),
        ("hf:org/nothing", None, "hf:org/nothing holds no model that odeddim reads from the hub"),
        ("hf:org/flux", None, "names a Flux2Transformer2DModel as its transformer"),
        *((bad, None, "is no name of a model of the hub: write hf:") for bad in ("hf:", "hf:d", "hf:a/b@", "hf:a/b/c")),
        ("hf:-x/y--z", None, "the hub has no model '-x/y--z'"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_one_sentence(
    name: str, says: tuple[int, str] | None, words: str, server: Hub, here: Path
) -> None:
    server.says = says
    assert words in sentence(name)
    said = command("sample", "-n", "1", "-o", "out", "--model", name, code=2)
    assert words in " ".join(said.split())
    assert not (here / "out").exists()
    assert not any(".safetensors" in file for file in server.asked)


def test_without_a_network_is_one_sentence(server: Hub, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    offline(monkeypatch, server)
    words = "hf:org/ddpm is not in the cache of Hugging Face, or not all of it, and HF_HUB_OFFLINE forbids to ask"
    assert words in sentence("hf:org/ddpm")
    assert words in " ".join(command("sample", "-n", "1", "-o", "out", "--model", "hf:org/ddpm", code=2).split())


def test_the_environment_of_huggingface_hub_holds(server: Hub, tmp_path: Path) -> None:
    found = odeddim.load("hf:org/ddpm")
    call = [sys.executable, "-m", "odeddim", "inspect", "--json", "hf:org/ddpm"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    result = subprocess.run(call, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["hash"] == found.sha256


def test_a_hub_that_is_gone_is_not_needed(server: Hub) -> None:
    found = odeddim.load("hf:org/ddpm")
    server.says = (500, "Fire")
    assert odeddim.load("hf:org/ddpm").name == found.name


def test_without_the_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'odeddim[hub]'" in sentence("hf:org/ddpm")


def test_decode_finds_the_model_that_a_file_names(server: Hub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = odeddim.load(server.folders["org/ddpm", COMMIT]).shape
    assert size is not None
    np.save(here / "x.npy", ((draw(size) + 1) * 127.5).to(torch.uint8).numpy())
    command("encode", "x.npy", "-o", "z.h5", "--model", "hf:org/ddpm", "--steps", "2")
    with odeddim.open("z.h5") as file:
        assert file.provenance.model == f"hf:org/ddpm@{COMMIT}"
    server.folders["org/ddpm", COMMIT] = server.folders["org/ddpm", OLDER]  # main has moved on
    requests = server.requests
    command("decode", "z.h5", "-o", "out.h5")
    assert server.requests == requests
    assert f"hf:org/ddpm@{COMMIT}" in command("inspect", f"hf:org/ddpm@{COMMIT}")
    # A file must not make a machine download what its user has not named.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "another"))
    said = " ".join(command("decode", "z.h5", "-o", "again.h5", code=2).split())
    assert f"z.h5 belongs to the model hf:org/ddpm@{COMMIT}, which is not in the cache of Hugging Face" in said
    assert "--model" in said
    assert server.requests == requests
    assert not (here / "another").exists()


def test_nothing_else_asks_the_hub(server: Hub, here: Path) -> None:
    for name in ("org/ddpm", "google/ddpm-cifar10-32", "HF:org/ddpm"):
        with pytest.raises(InputError, match="neither a built-in name nor an existing path"):
            odeddim.load(name)
    assert server.requests == 0
