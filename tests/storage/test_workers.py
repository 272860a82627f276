"""Which of how many processes this is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from odeddim.storage.workers import local_rank, rank
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the environment as torchrun does; what is not given is not set."""
    for name in (*NUMBERS, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def call(**variables: str) -> None:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "29500")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return call


def test_ranks(torchrun: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (rank(), local_rank()) == ((0, 1), 0)
    monkeypatch.setenv("RANK", "anything")  # of another program, if there is no torchrun
    assert rank() == (0, 1)
    torchrun(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1")
    assert (rank(), local_rank()) == ((3, 4), 1)
    torchrun(RANK="", WORLD_SIZE="", LOCAL_RANK="")
    assert (rank(), local_rank()) == ((0, 1), 0)


@pytest.mark.parametrize("value", ["one", "-1", "1.5", "0x1", "²", "9" * 5000, " 1"])
@pytest.mark.parametrize("name", NUMBERS)
def test_ranks_that_are_no_numbers(torchrun: Callable[..., None], name: str, value: str) -> None:
    torchrun(**{"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", name: value})
    with pytest.raises(InputError, match=f"variable {name} is .*, which is not a number of processes") as caught:
        (local_rank if name == "LOCAL_RANK" else rank)()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("here", "processes"), [("2", "2"), ("0", "0")])
def test_ranks_beyond_the_number_of_processes(torchrun: Callable[..., None], here: str, processes: str) -> None:
    torchrun(RANK=here, WORLD_SIZE=processes)
    with pytest.raises(InputError, match=f"RANK is {here} and WORLD_SIZE is {processes}"):
        rank()


@pytest.mark.parametrize("name", NUMBERS)
def test_commands_say_so(run: Command, here: Path, torchrun: Callable[..., None], name: str) -> None:
    torchrun(**{"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", name: "first"})
    device = "cuda" if name == "LOCAL_RANK" else "cpu"
    command = ("sample", "-n", 1, "-o", "x.h5", "--model", "exact-mixture", "--size", "1,6,6", "--steps", 2)
    code, out, err = run(*command, "--device", device)
    assert (code, out) == (2, "")
    (sentence,) = err.splitlines()
    assert f"the environment variable {name} is 'first', which is not a number of processes" in sentence
    assert not list(here.iterdir())
