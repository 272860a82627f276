"""What a command says of its work: bars and lines, -q, -v, JSON lines; and progress= of the jobs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from rich.console import Console
from support import command

from odeddim import cli, jobs
from odeddim.cli import progress
from odeddim.cli.telling import OPTIONS, telling
from odeddim.runs.progress import Display, Lines, of_all, shown

Run = Callable[..., tuple[int, str, str]]
MIXTURE = ("--model", "exact-mixture", "--steps", "2")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((), "there are cores for 6: stop it, and the same call with --workers 'auto' goes on"),
        (("--threads", 3), "cores for 2:"), (("--threads", 4), ""), (("--workers", 1), ""), (("-q",), ""),
    ],
)  # fmt: skip
def test_a_long_run_tells_once_of_idle_cores(
    run: Run, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...], told: str
) -> None:
    monkeypatch.setattr("odeddim.jobs.machine.cores", lambda threads: 6 // threads)
    code, _, err = run("encode", "-n", 3, "-o", "z.h5", *MIXTURE, "--batch-size", 1, *more, patience=0.0)
    assert code == 0, err
    assert err.count("there are cores for") == (told != "")
    assert told in err


def lines_over(seconds: int, total: int, each: float, **how: Any) -> list[tuple[float, str]]:
    """What is written in so many seconds of work, at which time, if something is done every `each` seconds."""
    clock, written = Clock(), []
    lines = Lines(total, "encoding", clock=clock, write=lambda text: written.append((clock.now, text)), **how)
    for second in range(1, seconds + 1):
        clock.now = second
        if second % each == 0:
            lines.advance(1)
        else:
            lines.tick()
    return written


def test_lines_come_after_ten_seconds_and_then_at_growing_gaps() -> None:
    written = lines_over(1500, 3000, 1)
    times = [int(time) for time, _ in written]
    assert times == [10, 30, 70, 150, 310, 610, 910, 1210]
    assert written[0][1] == "encoding: 10/3000, 1/s, 0:49:50 left\n"
    assert written[2][1] == "encoding: 70/3000, 1/s, 0:48:50 left\n"
    assert not lines_over(9, 3000, 1)


def test_lines_come_while_nothing_is_finished_and_count_from_where_a_run_goes_on() -> None:
    assert lines_over(12, 4, 100)[0][1] == "encoding: 0/4 after 0:00:10\n"
    assert lines_over(12, 104, 5, done=100)[0][1] == "encoding: 102/104, 5 s each, 0:00:10 left\n"


def test_a_notebook_gets_one_line_that_is_written_anew() -> None:
    clock, written = Clock(), []
    lines = Lines(10, "encoding", again=True, clock=clock, write=written.append)
    with lines.ticking(still=True) as advance:
        for second in (1, 1.2, 3.75):
            clock.now = second
            advance(2.5)
    line = "\rencoding: 7/10, 2/s, 0:00:01 left"
    assert written == ["\rencoding: 2/10, 2.5/s, 0:00:03 left", f"{line}  ", line, "\n"]


def test_parts_of_images_are_not_counted_as_images() -> None:
    assert of_all(2.999, 4) == "2/4"
    assert of_all(sum([0.1] * 30), 4) == "3/4"


def test_progress_is_false_true_a_function_or_a_display(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[float, float]] = []
    for way in (False, True, lambda *it: told.append(it), Display()):
        with shown(way, 4, "encoding", 1) as advance:
            advance(1)
            advance(2)
    assert told == [(2, 4), (4, 4)]
    assert capsys.readouterr() == ("", "")  # nothing before ten seconds where no terminal is


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    with shown(True, 4, "encoding") as advance:
        advance(2.5)
    assert "encoding" in screen.getvalue()
    assert "2/4" in screen.getvalue()
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    screen.truncate(0)
    with shown(True, 4, "encoding") as advance:
        advance(2.5)
    assert screen.getvalue().strip("\0") == ""


def test_jobs_take_a_function(here: Path) -> None:
    told: list[tuple[float, float]] = []
    jobs.encode(None, "z.h5", model="exact-mixture", steps=2, count=5, progress=lambda *it: told.append(it))
    assert told[-1] == (5, 5)
    told.clear()
    jobs.decode("z.h5", "x.h5", progress=lambda *it: told.append(it))
    jobs.verify("z.h5", progress=True)
    assert told[-1] == (5, 5)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_say_what_happens(run: Run, here: Path) -> None:
    code, out, err = run("encode", "-n", 5, "-o", "z.h5", *MIXTURE, "--log-json", "log.jsonl")
    assert (code, err) == (0, "")
    start, *between, finish = events(Path("log.jsonl").read_text())
    assert start["event"] == "start"
    assert start["command"][:4] == ["odeddim", "encode", "-n", "5"]
    assert between[-1]["event"] == "progress"
    assert (between[-1]["unit"], between[-1]["done"], between[-1]["total"]) == ("encoding", 5, 5)
    assert between[-1]["rate"] > 0
    assert finish["event"] == "finish"
    assert (finish["path"], finish["done"], finish["total"], finish["words"]) == ("z.h5", 5, 5, out.rstrip())
    assert finish["seconds"] >= between[-1]["seconds"] > 0
    assert all("time" in event for event in (start, *between, finish))
    run("verify", "z.h5", "--log-json", "log.jsonl")  # is added
    last = events(Path("log.jsonl").read_text())[-1]
    assert (last["event"], last["latents"]) == ("finish", 5)
    assert last["median"]["round_trip"] < 1


def test_json_lines_of_warnings_and_errors(run: Run, here: Path) -> None:
    run("encode", "-n", 3, "-o", "z.h5", *MIXTURE)
    code, out, err = run("decode", "z.h5", "-o", "x.h5", "--dtype", "float64", "--log-json", "-")
    assert code == 0
    told = {event["event"]: event for event in events(err)}
    assert set(told) == {"start", "warning", "progress", "finish"}
    assert "does not come back exactly" in told["warning"]["message"]
    assert "images in x.h5" in out
    code, out, err = run("decode", "no.h5", "-o", "x.h5", "--log-json", "-")
    assert (code, out) == (2, "")
    assert [event["event"] for event in events(err)] == ["start", "error"]
    assert events(err)[-1]["code"] == 2
    assert "no.h5" in events(err)[-1]["message"]
    code, out, err = run("decode", "z.h5", "--log-json", "-", "--no-such-option")
    assert code == 2
    code, out, err = run("decode", "z.h5", "--log-json", "-")
    assert (code, events(err)[-1]["event"]) == (2, "error")


def test_a_defect_is_an_error_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(jobs, "sample", broken)
    monkeypatch.setattr("sys.argv", ["odeddim", "sample", "-o", "x.h5", "--log-json", "log.jsonl"])
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main()
    assert "RuntimeError: a defect" in events(Path("log.jsonl").read_text())[-1]["message"]


@pytest.mark.parametrize("name", ["z.h5", "folder", "no/such/log.jsonl"])
def test_a_log_goes_into_no_other_file(here: Path, name: str) -> None:
    np.save("z.npy", np.zeros(3))
    Path("z.npy").rename("z.h5")
    Path("folder").mkdir()
    before = Path("z.h5").read_bytes()
    said = command("sample", "-n", 1, "-o", "x.h5", *MIXTURE, "--size", "1,4,4", "--log-json", name, code=2)
    assert said.startswith(f"Error: --log-json '{name}'")
    assert said.rstrip().endswith("give another name")
    assert Path("z.h5").read_bytes() == before
    assert not Path("x.h5").exists()


def test_quiet_is_the_result_and_errors_alone(run: Run, here: Path) -> None:
    run("encode", "-n", 3, "-o", "z.h5", *MIXTURE)
    code, out, err = run("decode", "z.h5", "-o", "x.h5", "--dtype", "float64", "-q")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    code, out, err = run("decode", "z.h5", "-o", "y.h5", "--dtype", "float64")  # and the next one is itself again
    assert err.startswith("warning: ")
    code, out, err = run("decode", "no.h5", "-o", "x.h5", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    code, out, err = run("decode", "z.h5", "-o", "x.h5", "-q", "-v")
    assert code == 2
    assert "-q and -v exclude each other" in err


def test_verbose_says_what_is_done(run: Run, here: Path) -> None:
    code, out, err = run("encode", "-n", 3, "-o", "z.h5", *MIXTURE, "-v")
    assert code == 0
    assert "exact-mixture: Schedule.linear" in err
    assert "plan: belm, log grid, 2 steps, end zero, σ from 0 to 157.4" in err
    assert "device cpu, dtype float32, network batch 8, threads 1" in err
    assert "images in work at once" in err
    code, out, err = run("encode", "-n", 3, "-o", "y.h5", *MIXTURE)
    assert err == ""


def test_of_several_processes_the_first_one_tells(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    code, out, err = run("decode", "no.h5", "-o", "x.h5", "-v", "--log-json", "log.jsonl")
    assert (code, out) == (2, "")
    assert err.startswith("Error: (process 1) ")
    (error,) = events(Path("log.jsonl").read_text())
    assert (error["event"], error["process"]) == ("error", 1)


def test_a_command_in_a_terminal_draws_a_bar_unless_it_is_quiet(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with mock.patch("rich.console.Console", return_value=console):
        command("sample", "-n", 2, "-o", "x.h5", *MIXTURE, "--size", "1,4,4", "-q")
        assert screen.getvalue() == ""
        command("sample", "-n", 2, "-o", "y.h5", *MIXTURE, "--size", "1,4,4", "--log-json", "-")
        assert screen.getvalue() == ""
        command("sample", "-n", 2, "-o", "z.h5", *MIXTURE, "--size", "1,4,4")
        assert "sampling" in screen.getvalue()


def test_every_command_that_works_for_long_has_the_options() -> None:
    import click

    def below(group: click.Group, name: str) -> list[tuple[str, click.Command]]:
        found = group.get_command(click.Context(group), name)
        assert found is not None
        if isinstance(found, click.Group):
            return [it for word in found.list_commands(click.Context(found)) for it in below(found, word)]
        return [(name, found)]

    for name in cli.COMMANDS:
        for word, found in below(cli.group, name) + below(cli.group, name):  # loaded twice, added once
            has = [option for option in OPTIONS if found.params.count(option) == 1]
            assert len(has) == (0 if word in cli.BRIEF else 3), word


def test_training_tells_in_the_same_way(run: Run, here: Path) -> None:
    np.save("images.npy", np.zeros((4, 8, 8), np.uint8))
    small = ("--steps", 2, "--batch-size", 2, "--channels", 4, "--multipliers", "1", "--blocks", 1, "--attention", 4)
    code, out, err = run("train", "images.npy", "-o", "m", *small, "-q", "--log-json", "log.jsonl")
    assert (code, err) == (0, "")
    told = events(Path("log.jsonl").read_text())
    assert [told[0]["event"], told[-1]["event"]] == ["start", "finish"]
    assert (told[-2]["unit"], told[-2]["done"], told[-2]["total"]) == ("training", 2, 2)
    assert telling.quiet
    assert progress.bar.still is False
