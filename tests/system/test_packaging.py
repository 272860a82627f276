"""The wheel holds every module and the data, and works away from the checkout; so does the checkout itself.

What a release says of itself is true: version, minimum versions, licence; and its workflows run what the README says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import odeddim

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = {
    "actions/checkout", "actions/setup-python", "actions/upload-artifact", "actions/download-artifact",
    "actions/attest-build-provenance", "pypa/gh-action-pypi-publish",
}  # fmt: skip
in_a_checkout = pytest.mark.skipif(not WORKFLOWS, reason="an sdist holds no .github")


def test_the_sdist_holds_the_checkout_and_nothing_left_over(sdist: Path) -> None:
    """Its tests can be run and its manual can be built; and what lies about in a checkout stays there."""
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in inside if name.startswith("odeddim.egg-info/")}
    expected = {
        "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "RELEASING.md",
        "constraints-oldest.txt", "constraints.txt", "pyproject.toml",
    }  # fmt: skip
    for folder in (".ci", "odeddim", "solvers", "cli", "tests", "benchmarks", "docs", "examples"):
        found = {path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        expected |= {path.relative_to(ROOT).as_posix() for path in found if "_build" not in path.parts}
    assert inside - made == expected
    assert sdist.stat().st_size < 20_000_000


def test_the_metadata_says_what_is_so(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = message_from_bytes(archive.read(name))
    assert said["Version"] == odeddim.__version__
    assert said["License-Expression"] == "MIT"
    assert said.get_all("License-File") == ["LICENSE"]
    assert (said["Home-page"], said.get_all("Project-URL")) == (None, None)  # there is none
    assert said["Requires-Python"] == PROJECT["requires-python"]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == odeddim.__version__
    assert citation["license"] == PROJECT["license"]


def requirements() -> Iterator[Requirement]:
    """Of the package, of all extras, and of the build."""
    for line in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"]):
        yield Requirement(line)


def test_the_oldest_versions_are_those_that_are_declared() -> None:
    """constraints-oldest.txt, with which the tests are run, has each minimum of pyproject.toml."""
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    declared: dict[str, set[Version]] = {}
    for requirement in requirements():
        minima = {Version(each.version) for each in requirement.specifier if each.operator == ">="}
        declared.setdefault(requirement.name, set()).update(minima)
    assert all(len(minima) == 1 for minima in declared.values()), declared
    assert {name: {Version(version)} for name, version in oldest.items()} == declared
    newest = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(Requirement(line).specifier for line in newest)


def steps(workflow: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


@in_a_checkout
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_given_little_and_names_no_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())
    assert not re.search(r"https?:|secrets\.|\b[\w-]+\.(com|org|io|net)\b", text)
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        action, _, version = step.get("uses", "actions/checkout@v1").partition("@")
        assert action in ACTIONS
        assert re.fullmatch(r"v\d+|release/v\d+", version)
        for name in re.findall(r"[\w-]+\.txt|\.ci/\w+", step.get("run", "")):
            assert (ROOT / name).exists(), name


@in_a_checkout
def test_the_workflows_run_the_tests_as_the_readme_does() -> None:
    (line,) = re.findall(r"^python3 -m venv .* -m pytest .*$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    matrix = tests["jobs"]["tests"]["strategy"]["matrix"]["include"]
    runs = [step["run"] for step in steps(tests) if "run" in step]
    assert runs == [line.replace("constraints.txt", "${{ matrix.constraints }}"), "bash .ci/run"]
    weekly = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text(encoding="utf-8"))
    assert line.replace("-c constraints.txt ", "") in [step.get("run") for step in steps(weekly)]

    tried = {row["python"] for row in matrix} | {"3.11"}  # of .ci/run
    named = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python :: 3." in name}
    assert tried == named
    oldest = min(tried, key=Version)
    assert PROJECT["requires-python"] == f">={oldest}"
    assert {"python": oldest, "constraints": "constraints-oldest.txt"} in matrix


def test_the_wheel_holds_everything(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (("odeddim", "odeddim"), ("solvers", "odeddim/solvers"), ("cli", "odeddim/cli")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder).as_posix()}" in inside
    top = {name.split("/")[0] for name in inside}
    assert {name for name in top if not name.endswith(".dist-info")} == {"odeddim"}  # no `solvers` in site-packages
    assert wheel.stat().st_size < 15_000_000  # two models of 6 MB each


def test_the_wheel_works_anywhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    code = (
        "import odeddim, odeddim.solvers, odeddim.cli\n"
        f"assert odeddim.solvers.__file__.startswith({str(site)!r}), odeddim.solvers.__file__\n"
        "print(odeddim.load().shape, len(odeddim.solvers.names()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(1, 28, 28)")


def test_the_checkout_works_as_it_lies(tmp_path: Path) -> None:
    """`python -m odeddim` at the root, where odeddim/ comes first on the path and holds no solvers/ or cli/."""
    for arguments in (["-m", "odeddim", "--version"], ["-c", "import odeddim; print(odeddim.solvers.names()[0])"]):
        result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    code = "import pkgutil, odeddim; print(len(list(pkgutil.walk_packages(odeddim.__path__, 'odeddim.'))))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr  # and it ends


def test_a_second_checkout_uses_its_own_solvers(tmp_path: Path) -> None:
    """Even where this one is installed in editable mode, whose finder knows `odeddim.solvers` too."""
    for name in ("odeddim", "solvers", "cli"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    code = (
        "import odeddim.solvers, odeddim.cli; print(odeddim.__file__, odeddim.solvers.__file__, odeddim.cli.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(Path(file).is_relative_to(tmp_path) for file in result.stdout.split())


def test_names_are_handed_on_lazily() -> None:
    code = (
        "import sys, odeddim\n"
        "assert 'torch' not in sys.modules\n"
        "for name in dir(odeddim): getattr(odeddim, name)\n"
        "assert odeddim.solve.__module__ == 'odeddim.api'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = odeddim.nonsense
